"""What every data source answers: its splits, what identifies their content, their size, their rows.

A new kind of source is a class beside this one; a new data set of a kind that is known is a line in
`datasets`.
"""

from __future__ import annotations

import abc
import json
import re
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from newllm_lib.data import readers
from newllm_lib.data.records import FileReport, Record, RowStats
from newllm_lib.data.schemas import COLUMNS, Schema, parse_row, parse_rows

# what files and data sets call their splits
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "eval": "validation",
    "evaluation": "validation",
    "test": "test",
    "testing": "test",
}
TEXT = (".txt", ".text")
KINDS = (*TEXT, ".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")  # files that are read
ROWS = KINDS[len(TEXT) :]
PACKINGS = (".gz", ".bz2", ".xz", ".zst")  # of any of them but parquet


LARGEST = 64 << 20  # characters in one value: more is no record, and must not fill the memory


class Reading(NamedTuple):
    """How a user's files are read, as far as they do not say it themselves."""

    encoding: str = ""  # Python's name; empty: UTF-8
    documents: str = "auto"  # of plain text: auto, lines, paragraphs, file or separator


PLAIN = Reading()


def packing_of(path: Path) -> str:
    """`.gz`, say; empty where the file is not packed."""
    return path.suffix.lower() if path.suffix.lower() in PACKINGS else ""


def kind_of(path: Path) -> str:
    """The ending of a data file's name, one of `KINDS`, whether it is packed or not."""
    return (Path(path.stem) if packing_of(path) else path).suffix.lower()


# what the hub's sets call their splits: also the supervised halves of ultrachat_200k and its like
HUB_SPLIT_NAMES = {**SPLIT_NAMES, "train_sft": "train", "test_sft": "test"}


class HubName(NamedTuple):
    """A data set on the hub, written `owner/name`, `owner/name:config` or `owner/name:config@revision`."""

    repository: str
    config: str | None = None
    revision: str = "main"

    @classmethod
    def parse(cls, text: str) -> HubName | None:
        """None where `text` cannot be a hub id."""
        match = re.fullmatch(r"([\w.-]+/[\w.-]+)(?::([\w.-]+))?(?:@([\w./-]+))?", text)
        return cls(match[1], match[2], match[3] or "main") if match else None

    def __str__(self) -> str:
        return self.repository + (f":{self.config}" if self.config else "")


def parse_json(text: str) -> object:
    """The value of a line, or a `ValueError` that says it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return ValueError("not valid JSON")


class DataFile(NamedTuple):
    """A file by its path or URL."""

    place: str
    bytes: int


class Segment(NamedTuple):
    """What begins in the bytes from `begin` to before `end` of a file."""

    place: str
    begin: int
    end: int

    def __str__(self) -> str:
        return f"{self.place.rsplit('/', 1)[-1]}, bytes {self.begin:,} to {self.end:,}"


def in_segments(files: list[DataFile]) -> list[DataFile] | None:
    """The files themselves if each can be read in segments."""
    return files if files and all(file.place.endswith((".jsonl", ".parquet")) for file in files) else None


class FileReader(Protocol):
    """Reads bytes of a source's files; goes to other processes."""

    def read(self, place: str, begin: int, end: int) -> bytes:
        """The bytes from `begin` to before `end`, or fewer at the file's end."""

    def row_groups(self, segment: Segment, columns: frozenset[str] | None) -> Iterator[list[dict]]:
        """The rows of each row group of a parquet file that begins in the segment."""

    def columns_beside(self, segment: Segment, columns: frozenset[str]) -> dict[str, int]:
        """Of these row groups the columns that are none of `columns`: rows that hold something in them."""


@dataclass(frozen=True)
class DatasetInfo:
    """A data set that is known by name; see `datasets.REGISTRY`."""

    title: str
    home: str  # a PyPI package, or a hub id as `HubName` writes it
    revision: str  # the version, commit or branch that it was written for
    licence: str
    reader: str  # the class in `readers` that reads it
    schema: Schema | None = None  # what its rows look like; None: the reader knows

    def open(self, cache: Path, commit: str = "") -> Source:
        """The data set, as its reader reads it.

        Args:
            cache: where prepared data is kept.
            commit: of the hub, to use instead of `revision`.

        Raises:
            NewLLMError: it cannot be reached, or is not installed.
        """
        return getattr(readers, self.reader).of(self, cache, commit)


class Source(abc.ABC):
    """Data to train on. `title` is its name in messages."""

    title: str
    splits: Set[str]  # which of train, validation and test it has itself
    commit = ""  # of the hub
    in_segments = False  # its training split is too large to be packed before training
    own = False  # files of the user's
    in_order = False  # `max_samples` are the first records, not those with the smallest hashes
    parse: Callable[[object], Record | None] = staticmethod(parse_row)  # a row as a record

    @property
    def unused(self) -> dict[str, str]:
        """Files beside the source's that hold something and are not read: why, and what to do."""
        return {}

    def name_now(self, name: str, part: FileReport) -> str:
        """What the file is called now that a report calls `name`, which may be older."""
        return name

    @classmethod
    def of(cls, info: DatasetInfo, cache: Path, commit: str) -> Source:
        """The source that a data set known by name is read from."""
        raise NotImplementedError(f"{cls.__name__} reads no data set by name")

    @abc.abstractmethod
    def fingerprint(self, split: str) -> str:
        """Changes with the content of `split`; part of the key that finds prepared data in the cache."""

    @abc.abstractmethod
    def rows(self, split: str, columns: frozenset[str] | None = None) -> Iterator[tuple[str, object]]:
        """(where, row) of the split in order; a row that cannot be read comes as a `ValueError`.

        Args:
            columns: those that are needed, where a file keeps its columns apart; default: all.
        """

    def records(self, split: str, stats: RowStats) -> Iterator[Record]:
        """The split's records in order; bad rows count in `stats`, which raises if there are too many."""
        stats.begin(f"{self.title} {split}", split)
        yield from parse_rows(self.rows(split, COLUMNS), stats, self.parse)
        stats.finish()

    def size(self, split: str) -> int | None:
        """About how many bytes of text the split holds, for progress; None if unknown."""
        return None

    def files(self, split: str) -> list[DataFile] | None:
        """The split's files, if `reader` can read all in segments (see `streaming.segments`)."""
        return None

    def reader(self) -> FileReader:
        """Reads the files that `files` names."""
        raise NotImplementedError(f"{self.title} is not read in segments")
