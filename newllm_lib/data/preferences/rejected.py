"""Bad answers of five honest kinds, each as a model might really give them.

    vague       grammatical, and says nothing about the term
    off_topic   true, but about another term than the one asked for
    wrong       about the term asked for, but what it says is true of something else
    curt        refuses to explain
    repetitive  goes round in circles

Each kind gives many candidates, from which `generate` takes one whose length fits: a bad answer must not be told by its length.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from newllm_lib.data.preferences.facts import Fact

KINDS = ("vague", "off_topic", "wrong", "curt", "repetitive")

_VAGUE = {
    "what": (
        ("", "いろいろな場面で", "多くの分野で", "さまざまな所で", "世の中のあちこちで", "日々の仕事の中で",
         "人によって違う形で"),
        ("使われる大切なもの", "役に立つとされるもの", "よく話題になる考え方", "何となく便利に使われているもの",
         "大事だといわれている技術の一つ", "知っておくとよいとされるものの一種"),
    ),
    "use": (
        ("", "いろいろな場面で", "多くの人にとって", "仕事や生活の中で", "何かをするときに", "さまざまな場合に"),
        ("物事をよくする", "何かを便利にする", "いろいろなことを進める", "役に立つことを増やす", "全体として良い感じにまとめる"),
    ),
    "example": (
        ("", "いろいろな所で", "身の回りの多くの場面で", "さまざまな会社や学校で", "探してみればどこかで", "人によって違う形で"),
        ("使われています", "よく見かけます", "役に立っているようです", "何かに使われていると思います",
         "色々なものが当てはまります"),
    ),
    "caution": (
        ("", "いろいろな点で", "場合によって", "使う人や状況によって", "何をするときでも", "多くの場面で"),
        ("注意が必要な", "気をつけたほうがよい", "うまくいかないこともある", "良いことも悪いこともある",
         "人によって意見が変わる"),
    ),
}  # fmt: skip
_CURT = (
    ("自分で調べてください。", "検索すればすぐ出てきます。", "今さら聞くことではありません。", "本でも読めば分かります。",
     "知らないなら気にしなくて結構です。", "前にも誰かが答えています。", "説明するまでもありません。"),
    ("", "以上です。", "忙しいので失礼します。", "これ以上は答えません。", "説明は省きます。", "誰かほかの人に聞いてください。",
     "詳しく話すつもりはありません。"),
)  # fmt: skip
_CIRCLES = ("{term}のこと", "{term}は{term}", "{term}といえば{term}", "{term}、{term}", "つまり{term}", "{term}だから{term}")


def candidates(kind: str, fact: Fact, facet: str, frame: tuple[str, str], others: Sequence[Fact]) -> list[str]:
    """Answers of a kind to a question for `facet` of `fact`, in a frame of that facet; `others` are facts to borrow from."""
    beginning, end = frame[0].format(term=fact.term), frame[1]
    if kind == "vague":
        return [beginning + a + b + end for a, b in product(*_VAGUE[facet])]
    if kind == "off_topic":
        return [frame[0].format(term=other.term) + getattr(other, facet) + end for other in others if other != fact]
    if kind == "wrong":
        return [beginning + getattr(other, facet) + end for other in others if other.far_from(fact)]
    if kind == "curt":
        return [beginning + a + b for a, b in product(*_CURT)]
    circles = [circle.format(term=fact.term) for circle in _CIRCLES]
    return [beginning + "、".join([circle] * times) + "です。" for circle in circles for times in range(1, 12)]


def kinds_for(facet: str) -> tuple[str, ...]:
    """The kinds that suit a facet: a caution borrowed from another term might well hold for this one too."""
    return tuple(kind for kind in KINDS if (kind, facet) != ("wrong", "caution"))
