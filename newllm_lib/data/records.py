"""One schema for everything that is trained on: a record is a document of plain text, or a dialogue of messages.

A row of a JSON, parquet or hub file becomes a record by the first of `SCHEMAS` whose column it has; a new kind of row
is one more entry there. A row that cannot become a record is skipped and counted by reason (`Tally`), until too many
are bad.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from newllm_lib.errors import NewLLMError

ROLES = ("user", "assistant", "system")
BAD_SHARE = 0.05  # more bad rows than this share of all: the file is not what it should be
HOPELESS = 1000  # so many bad rows and not one good: there is no use in reading the rest


class Message(NamedTuple):
    """One turn of a dialogue."""

    role: str  # one of ROLES
    content: str


class Record(NamedTuple):
    """A document: `text`, or else `messages`."""

    text: str | None
    messages: tuple[Message, ...] = ()

    def texts(self) -> list[str]:
        """Every piece of the author's text in order."""
        return [self.text] if self.text is not None else [m.content for m in self.messages]

    def digest(self) -> bytes:
        """16 bytes that depend on the content alone: equal records have equal digests, wherever they are read."""
        if self.text is not None:
            return hashlib.blake2b(self.text.encode("utf-8"), digest_size=16, person=b"newllm.text").digest()
        canonical = json.dumps(self.messages, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
        return hashlib.blake2b(canonical, digest_size=16, person=b"newllm.chat").digest()


class BadRecord(ValueError):
    """A row is not a record; the message is the reason, in a few words and without the row's content."""


def parse_row(row: object) -> Record | None:
    """A row as a record; None where it holds no text at all (blank rows are separators in some sets, not errors).

    Raises:
        BadRecord: no known column, or a value of the wrong type.
    """
    if not isinstance(row, dict):
        raise BadRecord(f"a value of type {type(row).__name__}, not an object")
    for column, parse in SCHEMAS.items():
        if column in row:
            return parse(row[column])
    raise BadRecord(f"no column {' or '.join(SCHEMAS)} (it has {', '.join(map(str, list(row)[:6])) or 'none'})")


def _text_record(text: object) -> Record | None:
    return Record(_checked_text(text, "text")) if text != "" else None


def _messages_record(messages: object) -> Record | None:
    if not isinstance(messages, list | tuple):
        raise BadRecord(f"messages is of type {type(messages).__name__}, not a list")
    if not messages:
        return None
    parsed = []
    for message in messages:
        if not isinstance(message, dict) or "role" not in message or "content" not in message:
            raise BadRecord("a message without role and content")
        if message["role"] not in ROLES:
            raise BadRecord(f"a role that is none of {', '.join(ROLES)}")
        content = _checked_text(message["content"], "content")
        if not content.strip():
            raise BadRecord("an empty message")
        parsed.append(Message(message["role"], content))
    return Record(None, tuple(parsed))


def _checked_text(text: object, name: str) -> str:
    if not isinstance(text, str):
        raise BadRecord(f"{name} is of type {type(text).__name__}, not a string")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise BadRecord(f"{name} holds half of a surrogate pair (text cut in the middle of a character)") from None
    return text


SCHEMAS: dict[str, Callable[[object], Record | None]] = {"messages": _messages_record, "text": _text_record}


class Tally:
    """Counts good and bad rows of one pass over a source, and stops it when the data is not what it should be."""

    def __init__(self):
        self.good = 0
        self.reasons: Counter[str] = Counter()
        self.first_at = self.first_reason = ""

    @property
    def bad(self) -> int:
        return sum(self.reasons.values())

    def reject(self, reason: str, where: str) -> None:
        """Count a bad row found at `where` ("file, line 3")."""
        if not self.bad:
            self.first_at, self.first_reason = where, reason
        self.reasons[reason] += 1
        if not self.good and self.bad >= HOPELESS:
            self.finish()

    def finish(self) -> None:
        """To be called at the end of a pass.

        Raises:
            NewLLMError: more than 5 % of the rows were bad.
        """
        if self.bad > BAD_SHARE * (self.good + self.bad):
            raise NewLLMError(
                f"{self.bad:,} of {self.good + self.bad:,} rows are no records; the first: {self.first_at}: "
                f'{self.first_reason}. Each row needs a "text", or "messages" as a list of '
                '{"role": "user|assistant|system", "content": "..."}.'
            )

    def summary(self) -> str:
        """`3 rows skipped (2 × an empty message, …; the first at file, line 3)`, or nothing when all were good."""
        if not self.bad:
            return ""
        reasons = ", ".join(f"{count:,} × {reason}" for reason, count in self.reasons.most_common(5))
        return f"{self.bad:,} rows skipped ({reasons}; the first at {self.first_at})"
