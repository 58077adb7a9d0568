"""Japanese preference pairs, as many as there are questions: for each a right answer and one bad answer.

Lengths are matched: the bad answer is one whose length lies as near as possible to the good one's plus a difference that is as
often positive as negative. What is left as a shortcut is measured in `shortcuts`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from newllm_lib.data.preferences.facts import FACETS, Fact, facts
from newllm_lib.data.preferences.pairs import Pair
from newllm_lib.data.preferences.questions import ASKED, OPENERS
from newllm_lib.data.preferences.rejected import candidates, kinds_for
from newllm_lib.data.records import Message
from newllm_lib.errors import UsageError

_DIFFERENCE = 6  # characters by which the two answers of a pair are allowed to differ on purpose


def most_pairs() -> int:
    """How many different questions there are."""
    return sum(len(ASKED[facet].questions) for facet in FACETS) * len(facts())


def generate(count: int | None = None, seed: int = 0) -> list[Pair]:
    """`count` pairs (default: all) with different prompts, in random order; the same seed gives the same pairs.

    Raises:
        UsageError: there are not so many.
    """
    most = most_pairs()
    count = most if count is None else count
    if not 1 <= count <= most:
        raise UsageError(f"--count {count}: there are between 1 and {most:,} pairs, each with a prompt of its own.")
    chance = random.Random(f"newllm preferences {seed}")
    asked = list(_questions())
    chance.shuffle(asked)
    kinds = _kinds(chance)
    sides = {held_out: [fact for fact in facts() if fact.held_out == held_out] for held_out in (True, False)}
    return [_pair(fact, facet, form, kinds, sides[fact.held_out], chance) for fact, facet, form in asked[:count]]


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


def _pair(fact: Fact, facet: str, form: str, kinds: dict[str, Iterator[str]], others: list[Fact], chance) -> Pair:
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
