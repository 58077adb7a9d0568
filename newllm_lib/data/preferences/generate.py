"""Japanese preference pairs, as many as there are questions: for each a right answer and one bad answer.

Bad answers are of five honest kinds, each as a model might really give them:

    vague       grammatical, and says nothing about the term
    off_topic   true, but about another term than the one asked for
    wrong       about the term asked for, but what it says is true of something else
    curt        refuses to explain
    repetitive  goes round in circles

Each kind gives many candidates, and lengths are matched: the bad answer is one whose length lies as near as
possible to the good one's plus a difference that is as often positive as negative. What is left as a shortcut
is measured in `shortcuts`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import product

from newllm_lib.data.preferences.facts import ASKED, FACETS, OPENERS, Fact, facts
from newllm_lib.data.preferences.pairs import Pair
from newllm_lib.data.records import Message
from newllm_lib.errors import UsageError

KINDS = ("vague", "off_topic", "wrong", "curt", "repetitive")

_VAGUE = {
    "what": (
        (
            "",
            "いろいろな場面で",
            "多くの分野で",
            "さまざまな所で",
            "世の中のあちこちで",
            "日々の仕事の中で",
            "人によって違う形で",
        ),
        (
            "使われる大切なもの",
            "役に立つとされるもの",
            "よく話題になる考え方",
            "何となく便利に使われているもの",
            "大事だといわれている技術の一つ",
            "知っておくとよいとされるものの一種",
        ),
    ),
    "use": (
        (
            "",
            "いろいろな場面で",
            "多くの人にとって",
            "仕事や生活の中で",
            "何かをするときに",
            "さまざまな場合に",
        ),
        (
            "物事をよくする",
            "何かを便利にする",
            "いろいろなことを進める",
            "役に立つことを増やす",
            "全体として良い感じにまとめる",
        ),
    ),
    "example": (
        (
            "",
            "いろいろな所で",
            "身の回りの多くの場面で",
            "さまざまな会社や学校で",
            "探してみればどこかで",
            "人によって違う形で",
        ),
        (
            "使われています",
            "よく見かけます",
            "役に立っているようです",
            "何かに使われていると思います",
            "色々なものが当てはまります",
        ),
    ),
    "caution": (
        ("", "いろいろな点で", "場合によって", "使う人や状況によって", "何をするときでも", "多くの場面で"),
        (
            "注意が必要な",
            "気をつけたほうがよい",
            "うまくいかないこともある",
            "良いことも悪いこともある",
            "人によって意見が変わる",
        ),
    ),
}
_CURT = (
    (
        "自分で調べてください。",
        "検索すればすぐ出てきます。",
        "今さら聞くことではありません。",
        "本でも読めば分かります。",
        "知らないなら気にしなくて結構です。",
        "前にも誰かが答えています。",
        "説明するまでもありません。",
    ),
    (
        "",
        "以上です。",
        "忙しいので失礼します。",
        "これ以上は答えません。",
        "説明は省きます。",
        "誰かほかの人に聞いてください。",
        "詳しく話すつもりはありません。",
    ),
)
_CIRCLES = (
    "{term}のこと",
    "{term}は{term}",
    "{term}といえば{term}",
    "{term}、{term}",
    "つまり{term}",
    "{term}だから{term}",
)
_DIFFERENCE = 6  # characters by which the two answers of a pair are allowed to differ on purpose


def most_pairs() -> int:
    """How many different questions there are."""
    return sum(len(ASKED[facet].questions) for facet in FACETS) * len(facts())


def generate(count: int | None = None, seed: int = 0) -> list[Pair]:
    """`count` pairs (default: all) with different prompts, in an order that the seed decides.

    Raises:
        UsageError: there are not so many.
    """
    most = most_pairs()
    count = most if count is None else count
    if not 1 <= count <= most:
        raise UsageError(
            f"--count {count}: there are between 1 and {most:,} pairs, each with a prompt of its own."
        )
    chance = random.Random(f"newllm preferences {seed}")
    asked = list(_questions())
    chance.shuffle(asked)
    kinds = _kinds(chance)
    sides = {held_out: [fact for fact in facts() if fact.held_out == held_out] for held_out in (True, False)}
    return [
        _pair(fact, facet, form, kinds, sides[fact.held_out], chance) for fact, facet, form in asked[:count]
    ]


def _questions() -> Iterator[tuple[Fact, str, str]]:
    for fact in facts():
        for facet in FACETS:
            for form in ASKED[facet].questions:
                yield fact, facet, form


def _kinds(chance: random.Random) -> dict[str, Iterator[str]]:
    """For each facet its kinds in turn, each equally often, in an order that changes all the time."""

    def forever(kinds: tuple[str, ...]) -> Iterator[str]:
        while True:
            yield from chance.sample(kinds, len(kinds))

    return {facet: forever(kinds_for(facet)) for facet in FACETS}


def _pair(
    fact: Fact,
    facet: str,
    form: str,
    kinds: dict[str, Iterator[str]],
    others: list[Fact],
    chance: random.Random,
) -> Pair:
    kind = next(kinds[facet])
    frames = ASKED[facet].frames
    frame = chance.choice(frames)
    good = chance.choice(OPENERS) + frame[0].format(term=fact.term) + getattr(fact, facet) + frame[1]
    opener = chance.choice(OPENERS)
    wanted = len(good) + chance.randint(-_DIFFERENCE, _DIFFERENCE) - len(opener)
    found = candidates(kind, fact, facet, chance.choice(frames), others)
    chance.shuffle(found)  # of equally good lengths any
    bad = opener + min(found, key=lambda text: abs(len(text) - wanted))
    prompt = (Message("user", form.format(term=fact.term, field=fact.field)),)
    return Pair(prompt, good, bad, kind, fact.term, "evaluation" if fact.held_out else "train")


def candidates(
    kind: str, fact: Fact, facet: str, frame: tuple[str, str], others: Sequence[Fact]
) -> list[str]:
    """Answers of a kind on `facet` of `fact`, in a frame of that facet; `others`: facts to borrow from."""
    beginning, end = frame[0].format(term=fact.term), frame[1]
    if kind == "vague":
        return [beginning + a + b + end for a, b in product(*_VAGUE[facet])]
    if kind == "off_topic":
        return [
            frame[0].format(term=other.term) + getattr(other, facet) + end
            for other in others
            if other != fact
        ]
    if kind == "wrong":
        return [beginning + getattr(other, facet) + end for other in others if other.far_from(fact)]
    if kind == "curt":
        return [beginning + a + b for a, b in product(*_CURT)]
    circles = [circle.format(term=fact.term) for circle in _CIRCLES]
    return [
        beginning + "、".join([circle] * times) + "です。" for circle in circles for times in range(1, 12)
    ]


def kinds_for(facet: str) -> tuple[str, ...]:
    """The kinds that suit a facet: a caution borrowed from another term might well hold for this one too."""
    return tuple(kind for kind in KINDS if (kind, facet) != ("wrong", "caution"))
