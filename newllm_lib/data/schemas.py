"""What the rows of known data sets look like, and how each becomes a record of messages (or of text).

A row becomes a record by the first of `SCHEMAS` whose columns it all has, or by the one that its data set
names (`datasets`); a new kind of row is one more entry there. Roles are what the data says, or alternate,
beginning with the user.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import cycle
from typing import NamedTuple, TypeVar

from newllm_lib.data.records import ROLES, BadRecord, Message, Record, RowStats
from newllm_lib.data.templates import join_context

LONGEST_TURN = 1_000_000  # bytes in one turn of a dialogue: nobody said so much, a row went wrong
END_OF_UTTERANCE = "__eou__"  # DailyDialog's text files: one dialogue a line, this after each turn
_HH_TURN = re.compile(r"\n\n(Human|Assistant):")  # hh-rlhf: one text with a label before each turn
_HH_ROLES = {"Human": "user", "Assistant": "assistant"}
T = TypeVar("T")


class Schema(NamedTuple):
    """One kind of row."""

    needs: tuple[str, ...]  # columns without which it is not this kind; the first one tells what was meant
    takes: tuple[str, ...]  # columns that are read if they are there
    parse: Callable[[dict], Record | None]  # None: the row holds no text at all

    def fits(self, row: dict) -> bool:
        """Whether a row has the columns that it needs."""
        return all(column in row for column in self.needs)

    def record(self, row: object) -> Record | None:
        """A row of this kind as a record; None where it holds no text at all.

        Raises:
            BadRecord: a column is missing, or holds a value that is not what it should be.
        """
        row = _checked_row(row)
        if not self.fits(row):
            raise BadRecord(
                f"no column {' and '.join(c for c in self.needs if c not in row)} (it has {_columns(row)})"
            )
        return self.parse(row)


def parse_row(row: object) -> Record | None:
    """A row as a record, by the first of `SCHEMAS` whose columns it has; None where it holds no text at all
    (blank rows are separators in some sets, not errors).

    Raises:
        BadRecord: no known column, a column that is missing beside the known one, or a value that is not what
        it should be.
    """
    row = _checked_row(row)
    for schema in SCHEMAS:
        if schema.fits(row):
            return schema.parse(row)
    firsts = dict.fromkeys(schema.needs[0] for schema in SCHEMAS)
    for first in firsts:
        if first in row:
            raise BadRecord(
                f"{first} without {' or '.join(s.needs[1] for s in SCHEMAS if s.needs[0] == first)}"
            )
    raise BadRecord(f"no column {' or '.join(firsts)} (it has {_columns(row)})")


def parse_rows(
    rows: Iterable[tuple[str, object]], tally: RowStats, parse: Callable[[object], T | None] = parse_row
) -> Iterator[T]:
    """What `parse` makes of (where, row) pairs; bad rows go to `tally`, rows without text are passed over."""
    for where, row in rows:
        if isinstance(row, ValueError):
            tally.reject(str(row), where)
            continue
        try:
            record = parse(row)
        except BadRecord as reason:
            tally.reject(str(reason), where)
            continue
        if record is not None:
            tally.accept()
            yield record


def _checked_row(row: object) -> dict:
    if not isinstance(row, dict):
        raise BadRecord(f"a value of type {type(row).__name__}, not an object")
    return row


def _columns(row: dict) -> str:
    return ", ".join(map(str, list(row)[:6])) or "none"


def ends_utterance(text: str) -> bool:
    """Whether a text is one of DailyDialog's lines."""
    return text.rstrip().endswith(END_OF_UTTERANCE)


def _text(row: dict) -> Record | None:
    text = row["text"]
    if isinstance(text, str) and ends_utterance(text):
        return _dialogue(_alternating(text.rstrip().removesuffix(END_OF_UTTERANCE).split(END_OF_UTTERANCE)))
    return Record(_checked_text(text, "text")) if text != "" else None


def _messages(row: dict) -> Record | None:
    return _message_list(row["messages"], "messages")


def _chosen(row: dict) -> Record | None:
    chosen = row["chosen"]
    if isinstance(chosen, list | tuple):  # other preference sets keep messages in it
        return _message_list(chosen, "chosen")
    before, *parts = _HH_TURN.split(_checked_text(chosen, "chosen"))
    if before.strip() or not parts:
        raise BadRecord("chosen does not begin with Human: or Assistant:")
    roles, turns = parts[::2], parts[1::2]
    return _dialogue((_HH_ROLES[role], turn.strip()) for role, turn in zip(roles, turns, strict=True))


def _turns(row: dict, column: str) -> Record | None:
    """A list of turns in `column`, by the user and the assistant in turn."""
    turns = row[column]
    if not isinstance(turns, list | tuple):
        raise BadRecord(f"{column} is of type {type(turns).__name__}, not a list")
    return _dialogue(_alternating(turns)) if turns else None


def _instruction(row: dict, context: str, response: str) -> Record | None:
    """An instruction, perhaps with a context below it, and the response to it."""
    task, below = _checked_turn(row["instruction"], "instruction"), row.get(context)
    below = "" if below is None else _checked_text(below, context).strip()
    whole = join_context(task, below)
    return _dialogue([("user", whole), ("assistant", _checked_turn(row[response], response))])._replace(
        context=below
    )


def _exchange(row: dict, asked: str, answered: str) -> Record | None:
    """What is asked and what is answered: two texts, or two lists of messages that follow each other."""
    prompt, answer = row[asked], row[answered]
    if isinstance(prompt, list | tuple) and isinstance(answer, list | tuple):
        return _message_list([*prompt, *answer], asked)
    return _dialogue([("user", _checked_turn(prompt, asked)), ("assistant", _checked_turn(answer, answered))])


# each goes to other processes: so `parse` is a function of this file, or a `partial` of one
MESSAGES = Schema(("messages",), (), _messages)
DOLLY = Schema(
    ("instruction", "response"), ("context",), partial(_instruction, context="context", response="response")
)
ALPACA = Schema(
    ("instruction", "output"), ("input",), partial(_instruction, context="input", response="output")
)
COMPLETION = Schema(("prompt", "completion"), (), partial(_exchange, asked="prompt", answered="completion"))
CHOSEN = Schema(("chosen",), (), _chosen)  # hh-rlhf
DIALOG = Schema(("dialog",), (), partial(_turns, column="dialog"))  # DailyDialog
# DailyDialog as others publish it
UTTERANCES = Schema(("utterances",), (), partial(_turns, column="utterances"))
TEXT = Schema(("text",), (), _text)
ULTRACHAT = Schema(("data",), (), partial(_turns, column="data"))
SCHEMAS = (MESSAGES, DOLLY, ALPACA, COMPLETION, CHOSEN, DIALOG, UTTERANCES, TEXT, ULTRACHAT)
COLUMNS = frozenset(column for schema in SCHEMAS for column in schema.needs + schema.takes)


def _message_list(messages: object, name: str) -> Record | None:
    if not isinstance(messages, list | tuple):
        raise BadRecord(f"{name} is of type {type(messages).__name__}, not a list")
    if not messages:
        return None
    pairs = []
    for message in messages:
        if not isinstance(message, dict) or "role" not in message or "content" not in message:
            raise BadRecord("a message without role and content")
        if message["role"] not in ROLES:
            raise BadRecord(f"a role that is none of {', '.join(ROLES)}")
        pairs.append((message["role"], message["content"]))
    return _dialogue(pairs, "content")


def _alternating(turns: Iterable[object]) -> Iterable[tuple[str, object]]:
    for role, turn in zip(cycle(("user", "assistant")), turns, strict=False):
        yield role, turn.strip() if isinstance(turn, str) else turn


def _dialogue(turns: Iterable[tuple[str, object]], name: str = "a turn") -> Record:
    return Record(None, tuple(Message(role, _checked_turn(text, name)) for role, text in turns))


def _checked_turn(text: object, name: str) -> str:
    """A turn's text as it is."""
    text = _checked_text(text, name)
    if not text.strip():
        raise BadRecord("an empty message")
    if "\0" in text:
        raise BadRecord("a message that holds a NUL character")
    if len(text) * 4 >= LONGEST_TURN and len(text.encode("utf-8")) >= LONGEST_TURN:
        raise BadRecord(f"a message of {LONGEST_TURN:,} bytes or more")
    return text


def _checked_text(text: object, name: str) -> str:
    if not isinstance(text, str):
        raise BadRecord(f"{name} is of type {type(text).__name__}, not a string")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise BadRecord(
            f"{name} holds half of a surrogate pair (text cut in the middle of a character)"
        ) from None
    return text
