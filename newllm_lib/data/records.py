"""One schema for all training data: a record is a document of plain text, or a dialogue of messages.

How the rows of files become records is in `schemas.py`. A row that cannot become one is skipped and counted
by reason (`RowStats`), until too many are bad.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from typing import NamedTuple

from newllm_lib.errors import NewLLMError

ROLES = ("user", "assistant", "system")
SHOWN = 12  # reasons in the summary, the most frequent ones
HOPELESS = 1000  # so many bad rows and not one good: there is no use in reading the rest


class Message(NamedTuple):
    """One turn of a dialogue."""

    role: str  # one of ROLES
    content: str


class Record(NamedTuple):
    """A document: `text`, or else `messages`."""

    text: str | None
    messages: tuple[Message, ...] = ()
    # what stands below the instruction in the first message, where the data keeps the two apart
    context: str = ""

    def texts(self) -> list[str]:
        """Every piece of the author's text in order."""
        return [self.text] if self.text is not None else [m.content for m in self.messages]

    def digest(self) -> bytes:
        """16 bytes that depend on the content alone: equal records have equal digests everywhere."""
        if self.text is not None:
            return hashlib.blake2b(self.text.encode("utf-8"), digest_size=16, person=b"newllm.text").digest()
        canonical = json.dumps(self.messages, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
        return hashlib.blake2b(canonical, digest_size=16, person=b"newllm.chat").digest()


class BadRecord(ValueError):
    """A row is not a record; the message is the reason, in a few words and without the row's content."""


class Kind(NamedTuple):
    """What the rows of a pass should be, in words for the user, and how many may be something else."""

    plural: str
    needs: str  # what each row needs
    left_out: str  # how messages call rows that are not
    bad_share: float  # more bad rows than this share of all: the data is not what it should be


RECORDS = Kind(
    "records",
    'a "text", or "messages" as a list of {"role": "user|assistant|system", "content": "..."}, or '
    '"instruction" and "response", or "prompt" and "completion"',
    "rows skipped",
    0.05,
)


class RowStats:
    """Counts good and bad rows of a pass over a source, and stops it when too many are bad.

    Args:
        kind: what the rows should be.
        hopeless: so many bad rows and not one good stop it at once.
    """

    def __init__(self, kind: Kind = RECORDS, hopeless: int = HOPELESS):
        self.kind, self.hopeless = kind, hopeless
        self.good = 0
        # training records that a validation or test split of the source holds too: not trained on
        self.held_out = 0
        self.reasons: Counter[str] = Counter()
        self.first_at = self.first_reason = ""

    @property
    def bad(self) -> int:
        return sum(self.reasons.values())

    def reject(self, reason: str, where: str = "", count: int = 1) -> None:
        """Count bad rows, the first of them found at `where` ("file, line 3")."""
        if count and not self.bad:
            self.first_at, self.first_reason = where, reason
        self.reasons[reason] += count
        if not self.good and self.bad >= self.hopeless:
            self.finish()

    def finish(self) -> None:
        """To be called at the end of a pass.

        Raises:
            NewLLMError: too many of the rows were bad (of records more than 5 %).
        """
        if self.bad > self.kind.bad_share * (self.good + self.bad):
            raise NewLLMError(
                f"{self.bad:,} of {self.good + self.bad:,} rows are no {self.kind.plural}; the first: "
                f"{self.first_at}: {self.first_reason}. Each row needs {self.kind.needs}."
            )

    def counts(self) -> dict:
        """All of it as plain values, for `add`."""
        return {
            "good": self.good,
            "held_out": self.held_out,
            "reasons": dict(self.reasons),
            "first_at": self.first_at,
            "first_reason": self.first_reason,
        }

    def add(self, counts: dict) -> None:
        """Count what another pass found after this one."""
        if not self.bad:
            self.first_at, self.first_reason = counts["first_at"], counts["first_reason"]
        self.good += counts["good"]
        self.held_out += counts.get("held_out", 0)
        self.reasons.update(counts["reasons"])

    def summary(self) -> str:
        """`3 rows skipped (2 × an empty message, …; the first at file, line 3)`, and how many were held out;
        or nothing when all were good."""
        said = []
        if self.bad:
            reasons = [f"{count:,} × {reason}" for reason, count in self.reasons.most_common(SHOWN) if count]
            first = f"; the first at {self.first_at}" if self.first_at else ""
            said.append(f"{self.bad:,} {self.kind.left_out} ({', '.join(reasons)}{first})")
        if self.held_out:
            said.append(
                f"{self.held_out:,} records not trained on, because validation or test holds the same"
            )
        return "; ".join(said)
