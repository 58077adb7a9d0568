"""What the Japanese preference pairs are about: facts on AI, programming and data science, a row each in `facts_ja.tsv`.

A fact says four things of one term: what it is, what knowing it is good for, an example, and what to watch out for. A term
belongs to training or to evaluation for good, whatever the seed: what is measured was never trained on.
"""

from __future__ import annotations

import csv
import functools
import hashlib
from pathlib import Path
from typing import NamedTuple

FACETS = ("what", "use", "example", "caution")
HELD_OUT_SHARE = 0.28
_FILE = Path(__file__).with_name("facts_ja.tsv")


class Fact(NamedTuple):
    """One term and four clauses about it, each fitting the frames of `questions`."""

    field: str
    term: str
    what: str  # a noun phrase
    use: str  # a verb phrase in dictionary form
    example: str  # a polite sentence without its full stop
    caution: str  # a plain clause

    @property
    def held_out(self) -> bool:
        """Whether the fact belongs to evaluation: decided by the term alone."""
        digest = hashlib.blake2b(self.term.encode("utf-8"), digest_size=8).digest()
        return int.from_bytes(digest, "big") / 2**64 < HELD_OUT_SHARE

    def far_from(self, other: Fact) -> bool:
        """Whether nothing said of the one could be true of the other: programming on one side, data on the other."""
        return (self.field == "プログラミング") != (other.field == "プログラミング")


@functools.cache
def facts() -> tuple[Fact, ...]:
    """All facts, in the order of the file."""
    with open(_FILE, encoding="utf-8", newline="") as file:
        return tuple(Fact(**row) for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
