"""How facts are asked for and answered: question forms, and frames that good and bad answers share.

An answer is an opener, a frame's beginning, what is said, and the frame's end. Openers and frames are drawn alike for both
sides of a pair, so that how an answer begins tells nothing about whether it is good.
"""

from __future__ import annotations

from typing import NamedTuple


class Facet(NamedTuple):
    """`questions` hold {term} and perhaps {field}; a frame is (beginning, end) of an answer."""

    questions: tuple[str, ...]
    frames: tuple[tuple[str, str], ...]


OPENERS = ("", "", "", "はい、", "簡単にいうと、", "一般に、", "基本的には、", "まとめると、")

ASKED = {
    "what": Facet(
        (
            "{term}とは何ですか。", "{term}について簡単に教えてください。", "{term}の意味を説明してください。",
            "{term}という言葉の意味は？", "{field}で使う{term}とはどういうものですか。",
            "初心者にも分かるように{term}を説明してください。",
        ),
        (("{term}とは、", "のことです。"), ("{term}は、", "です。"), ("{term}とは、", "を指します。")),
    ),
    "use": Facet(
        (
            "{term}を学ぶと何の役に立ちますか。", "{term}を理解する利点は何ですか。",
            "なぜ{term}を知っておくとよいのですか。", "{term}の知識はどんなときに役立ちますか。",
            "{field}で{term}を学ぶ目的は？",
        ),
        (("{term}を学ぶと、", "ときに役立ちます。"), ("{term}の知識は、", "ために役立ちます。"),
         ("{term}を理解すると、", "ことができます。")),
    ),
    "example": Facet(
        (
            "{term}の具体例を一つ挙げてください。", "{term}の身近な例を教えてください。",
            "{term}はどんな場面で見られますか。", "たとえば{term}とはどのようなものですか。", "{field}での{term}の例は？",
        ),
        (("{term}の例を挙げると、", "。"), ("たとえば{term}では、", "。"), ("{term}の身近な例では、", "。")),
    ),
    "caution": Facet(
        (
            "{term}で注意することは何ですか。", "{term}の注意点を教えてください。", "{term}で気をつける点は？",
            "{term}を扱うときの落とし穴は何ですか。", "初心者が{term}で間違えやすい点は？",
        ),
        (("{term}で注意したいのは、", "ことです。"), ("{term}には、", "という注意点があります。"),
         ("{term}では、", "点に気をつけます。")),
    ),
}  # fmt: skip
