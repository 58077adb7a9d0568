"""One schema for all training data: a record is a document of plain text, or a dialogue of messages.

How the rows of files become records is in `schemas.py`. A row that cannot become one is skipped and counted
by reason (`RowStats`), until too many are bad. What each file was taken for, and what of it is not read, is
noted on the way (`FileReport`), said before training and kept in the run (`DataReport`).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from newllm_lib.errors import NewLLMError
from newllm_lib.runs import Run, atomic_write_text, may_wait

ROLES = ("user", "assistant", "system")
# what speakers are called elsewhere, in small letters; what a tool gives back stands in a system turn
ROLE_NAMES = {
    **dict.fromkeys(("user", "human", "prompter", "ユーザー", "ユーザ", "用户", "用戶", "사용자"), "user"),
    **dict.fromkeys(
        ("assistant", "gpt", "chatgpt", "bot", "chatbot", "bing", "bard", "model", "ai"), "assistant"
    ),
    **dict.fromkeys(("アシスタント", "助手", "助理", "어시스턴트"), "assistant"),
    **dict.fromkeys(("function_call", "tool_call"), "assistant"),
    **dict.fromkeys(("system", "developer", "システム", "系统", "系統"), "system"),
    **dict.fromkeys(("tool", "function", "observation", "ipython", "tool_response"), "system"),
}
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
    # what stands below the instruction in the last user's message, where the data keeps the two apart
    context: str = ""
    muted: tuple[int, ...] = ()  # which messages are not to be learned, though an assistant says them
    notes: tuple[str, ...] = ()  # what was decided when it was read, for the report
    continues: bool = False  # a text that goes on where the record before it ended: of one document

    def texts(self) -> list[str]:
        """Every piece of the author's text in order."""
        return [self.text] if self.text is not None else [m.content for m in self.messages]

    def learned(self) -> list[str]:
        """Of these texts, those that are learned where only answers count."""
        said = enumerate(self.messages)
        mine = [m.content for i, m in said if m.role == "assistant" and i not in self.muted]
        return [self.text] if self.text is not None else mine

    def digest(self) -> bytes:
        """16 bytes that depend on the content alone: equal records have equal digests everywhere."""
        if self.text is not None:
            return hashlib.blake2b(self.text.encode("utf-8"), digest_size=16, person=b"newllm.text").digest()
        canonical = json.dumps(self.messages, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
        return hashlib.blake2b(canonical, digest_size=16, person=b"newllm.chat").digest()


def is_empty(value: object) -> bool:
    """Whether a value says nothing: null, NaN, an empty text, list or object."""
    return not value and value not in (0, False) or value.__class__ is float and value != value


def first_filled(row: dict, columns: Iterable[str]) -> str | None:
    """The first of these columns that holds something."""
    return next((column for column in columns if column in row and not is_empty(row[column])), None)


class BadRecord(ValueError):
    """A row is not a record; the message is the reason, in a few words and without the row's content."""


class EmptyRecord(BadRecord):
    """A row of a known kind that lacks a value, as exports have some: no sign of data of another kind."""


class NotToLearn(BadRecord):
    """A row that says of itself that it is not to be learned."""


class Kind(NamedTuple):
    """What the rows of a pass should be, in words for the user, and how many may be something else."""

    plural: str
    needs: str  # what each row needs
    left_out: str  # how messages call rows that are not
    bad_share: float  # more bad rows than this share of all: the data is not what it should be
    empty_share: float = 0.5  # the same of all that are left out, rows without a value among them


RECORDS = Kind(
    "records",
    'a "text", or "messages" as a list of {"role": "user|assistant|system", "content": "..."}, or '
    '"instruction" and "response", or "prompt" and "completion"',
    "rows skipped",
    0.05,
)


@dataclass
class FileReport:
    """What one file (of a hub set: one split) was taken for. Readers, schemas and encoders note in it."""

    split: str = ""
    number: int = 0  # among the split's files
    bytes: int = 0
    records: int = 0
    encoding: str = ""  # empty: UTF-8, or no text file
    documents: str = ""  # of plain text: how it is parted, in words
    formats: Counter[str] = field(default_factory=Counter)  # what its rows are, in words: rows of each
    read: Counter[str] = field(default_factory=Counter)  # columns: rows in which each holds something
    unread: Counter[str] = field(default_factory=Counter)  # the same of columns that are not read
    roles: Counter[str] = field(default_factory=Counter)  # turns of each
    notes: Counter[str] = field(default_factory=Counter)  # what else was decided, in words: how often
    left_out: Counter[str] = field(default_factory=Counter)  # rows by reason

    def add(self, other: FileReport) -> None:
        """Count what was found in another part of the same file."""
        for name, value in vars(other).items():
            mine = getattr(self, name)
            if isinstance(mine, Counter):
                mine.update(value)
            elif name == "records":
                self.records += value
            else:
                setattr(self, name, mine or value)

    def plain(self) -> dict:
        """All of it as JSON knows it (`asdict` would make another Counter of a Counter's pairs)."""
        return {name: dict(v) if isinstance(v, Counter) else v for name, v in vars(self).items()}

    @classmethod
    def of(cls, plain: dict) -> FileReport:
        """As `plain` wrote it."""
        found = cls(**plain)
        for name, value in vars(found).items():
            if isinstance(value, dict):
                setattr(found, name, Counter(value))
        return found

    def lines(self) -> Iterator[str]:
        """A few lines for the user."""
        kinds = " and ".join(_counted(self.formats)) or "plain text"
        yield ", ".join(
            part for part in (f"{self.records:,} records, {kinds}", self.encoding, self.documents) if part
        )
        if self.read:
            roles = f"; turns: {', '.join(_counted(self.roles))}" if self.roles else ""
            yield f"read: {', '.join(self.read)}{roles}"
        if self.unread:
            yield f"not read: {', '.join(self._columns(self.unread))}"
        yield from (note if count == 1 else f"{note} ({count:,} times)" for note, count in self.notes.items())
        if self.left_out:
            reasons = ", ".join(f"{n:,} x {reason}" for reason, n in self.left_out.most_common(SHOWN))
            yield f"left out: {reasons}"

    def _columns(self, counts: Counter[str]) -> Iterator[str]:
        for name, count in counts.most_common(SHOWN):
            yield name if count >= self.records else f"{name} (in {count:,} rows)"


def _counted(counts: Counter[str]) -> list[str]:
    """`1,000 x user, 20 x system`; without a number where there is one kind."""
    shown = counts.most_common(SHOWN)
    return (
        [name for name, _ in shown] if len(shown) == 1 else [f"{count:,} x {name}" for name, count in shown]
    )


@dataclass
class DataReport:
    """What a run's data were taken for: `data_report.json` in its folder."""

    source: str
    files: dict[str, FileReport] = field(default_factory=dict)  # by name
    unused: dict[str, str] = field(
        default_factory=dict
    )  # files with content that are not read: why, what to do
    held_out: dict[str, str] = field(default_factory=dict)  # validation and test: where each comes from

    FILE = "data_report.json"

    def plain(self) -> dict:
        return {**vars(self), "files": {name: part.plain() for name, part in self.files.items()}}

    def to_json(self) -> str:
        return json.dumps(self.plain(), indent=1, ensure_ascii=False) + "\n"

    def save(self, run: Run) -> None:
        """Write it into a run's folder; a full disk is no reason to end the run."""
        with may_wait(run.path / self.FILE):
            atomic_write_text(run.path / self.FILE, self.to_json())

    @classmethod
    def of(cls, plain: dict) -> DataReport:
        """As `plain` wrote it."""
        files = {name: FileReport.of(part) for name, part in plain.get("files", {}).items()}
        return cls(**{**plain, "files": files})

    def add(self, other: DataReport) -> None:
        """What was found when other splits of the same source were read."""
        self.files = {**other.files, **self.files}
        self.unused.update(other.unused)
        self.held_out.update(other.held_out)

    def lines(self) -> Iterator[str]:
        """What is said before training."""
        for name, part in self.files.items():
            first, *rest = part.lines()
            yield f"{name}: {first}"
            yield from (f"  {line}" for line in rest)
        if self.unused:
            yield "not used: " + "; ".join(f"{name} ({why})" for name, why in self.unused.items())
        for where in dict.fromkeys(self.held_out.values()):
            splits = " and ".join(split for split, known in self.held_out.items() if known == where)
            yield f"{splits}: {where}"

    def changes(self, older: DataReport) -> str:
        """What is otherwise than in an older report of the same data, in words; empty where nothing is."""
        found = [f"{name} is not there" for name in older.files if name not in self.files]
        for name, part in self.files.items():
            before = older.files.get(name)
            if before is None:
                found.append(f"{name} is new")
            elif before.bytes != part.bytes:
                how = "has grown" if part.bytes > before.bytes else "has shrunk"
                found.append(f"{name} {how} from {before.bytes:,} to {part.bytes:,} bytes")
            elif (before.documents, before.encoding) != (part.documents, part.encoding):
                was = ", ".join(filter(None, (before.encoding, before.documents)))
                found.append(f"{name} was read as {was or 'rows'}")
            elif before.plain() != part.plain():
                found.append(f"{name} holds something else")
        return "; ".join(found)


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
        self.empty = 0  # of the bad rows, those that lack a value
        self.unwanted: Counter[str] = Counter()  # rows that say that they are not to be learned
        self.first_at = self.first_reason = ""
        self.files: dict[str, FileReport] = {}
        self.file = FileReport()  # of what is being read: notes go here

    def begin(self, name: str, split: str, **about: Any) -> FileReport:
        """From now on this file is read (of a set without files: this split).

        Args:
            about: more of `FileReport` that is known already.
        """
        self.file = self.files[name] = FileReport(split, **about)
        return self.file

    def accept(self) -> None:
        """Count a record."""
        self.good += 1
        self.file.records += 1

    @property
    def bad(self) -> int:
        return sum(self.reasons.values())

    def leave_out(self, reason: BadRecord, where: str) -> None:
        """Count a row that became no record, by what kind of reason it is."""
        if isinstance(reason, NotToLearn):
            self.unwanted[str(reason)] += 1
            self.file.left_out[str(reason)] += 1
            return
        self.empty += isinstance(reason, EmptyRecord)
        self.reject(str(reason), where)

    def reject(self, reason: str, where: str = "", count: int = 1) -> None:
        """Count bad rows, the first of them found at `where` ("file, line 3")."""
        if count and not self.bad:
            self.first_at, self.first_reason = where, reason
        self.reasons[reason] += count
        if count:
            self.file.left_out[reason] += count
        if not self.good and self.bad >= self.hopeless:
            self.finish()

    def finish(self) -> None:
        """To be called at the end of a pass.

        Raises:
            NewLLMError: too many of the rows were bad (of records more than 5 %, or more than half with those
                where a value is missing).
        """
        rows = self.good + self.bad
        if self.bad - self.empty > self.kind.bad_share * rows or self.bad > self.kind.empty_share * rows:
            first = f"{self.first_at}: {self.first_reason}" if self.first_at else self.first_reason
            raise NewLLMError(
                f"{self.bad:,} of {rows:,} rows are no {self.kind.plural}; the first: {first}. Each row "
                f"needs {self.kind.needs}."
            )

    def counts(self) -> dict:
        """All of it as plain values, for `add`."""
        return {
            "good": self.good,
            "held_out": self.held_out,
            "empty": self.empty,
            "unwanted": dict(self.unwanted),
            "reasons": dict(self.reasons),
            "first_at": self.first_at,
            "first_reason": self.first_reason,
            "files": {name: part.plain() for name, part in self.files.items()},
        }

    def add(self, counts: dict) -> None:
        """Count what another pass found after this one."""
        if not self.bad:
            self.first_at, self.first_reason = counts["first_at"], counts["first_reason"]
        self.good += counts["good"]
        self.held_out += counts.get("held_out", 0)
        self.empty += counts.get("empty", 0)
        self.unwanted.update(counts.get("unwanted", {}))
        self.reasons.update(counts["reasons"])
        for name, part in counts.get("files", {}).items():
            self.files.setdefault(name, FileReport()).add(FileReport.of(part))

    def summary(self) -> str:
        """`3 rows skipped (2 × an empty message, …; the first at file, line 3)`, and how many were held out;
        or nothing when all were good."""
        said = []
        if self.bad:
            reasons = [f"{count:,} × {reason}" for reason, count in self.reasons.most_common(SHOWN) if count]
            first = f"; the first at {self.first_at}" if self.first_at else ""
            said.append(f"{self.bad:,} {self.kind.left_out} ({', '.join(reasons)}{first})")
        if self.unwanted:
            why = ", ".join(f"{count:,} × {reason}" for reason, count in self.unwanted.most_common(SHOWN))
            said.append(f"{self.unwanted.total():,} rows not trained on ({why})")
        if self.held_out:
            said.append(
                f"{self.held_out:,} records not trained on, because validation or test holds the same"
            )
        return "; ".join(said)
