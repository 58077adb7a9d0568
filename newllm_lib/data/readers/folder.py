"""Files of the user's: a file, or a folder with train.* and perhaps validation.* and test.*."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from newllm_lib.data.cache import key_hash
from newllm_lib.data.readers.base import (
    KINDS,
    PLAIN,
    ROWS,
    TEXT,
    DataFile,
    FileReader,
    Reading,
    Segment,
    Source,
    in_segments,
    kind_of,
    packing_of,
)
from newllm_lib.data.readers.conversions import NUL, ends_utterance
from newllm_lib.data.readers.encodings import checked_name, in_words
from newllm_lib.data.readers.file_names import Found, check_whole, look_into, why_not
from newllm_lib.data.readers.jsonfiles import is_a_row_a_line, read_json_lines, read_json_values
from newllm_lib.data.readers.parquetfiles import (
    columns_beside,
    groups_in,
    open_parquet,
    read_group,
    read_parquet,
    uncompressed_size,
)
from newllm_lib.data.readers.tables import read_csv
from newllm_lib.data.readers.textfiles import (
    Parting,
    check_encoding,
    content_hash,
    open_data,
    parting_of,
    read_lines,
    read_text,
)
from newllm_lib.data.records import FileReport, Record, RowStats
from newllm_lib.data.schemas import COLUMNS, parse_rows
from newllm_lib.errors import UsageError


class FolderSource(Source):
    """A folder's files.

    Args:
        paths: the files of each split; default: as `find_files` finds them.
        reading: how they are read.

    Raises:
        UsageError: as `find_files`; a part of several is missing; no such encoding.
    """

    own = True

    def __init__(self, folder: Path, paths: dict[str, list[Path]] | None = None, reading: Reading = PLAIN):
        self.title = folder.resolve().name or str(folder)
        for path in (paths or {}).get("train", ()):
            if kind_of(path) not in KINDS:
                raise UsageError(f"{path} is not read: {why_not(path)}.")
        found = Found(paths, {}) if paths else look_into(folder)
        self._paths, self._unused = found.splits, found.unused | check_whole(found.splits)
        self.splits = self._paths.keys()
        self._reading = reading._replace(encoding=checked_name(reading.encoding) if reading.encoding else "")
        self._hashes: dict[str, str] = {}
        self._partings: dict[Path, tuple[Reading, Parting | None]] = {}

    @property
    def unused(self) -> dict[str, str]:
        return self._unused

    def name_now(self, name: str, part: FileReport) -> str:
        paths = self._paths.get(part.split, [])
        return paths[part.number].name if part.number < len(paths) else name

    def fingerprint(self, split: str) -> str:
        if split not in self._hashes:
            paths = self._paths[split]
            how = [self._how(path) for path in paths]
            other = [
                [reading.encoding, parting.words if parting else ""]
                for reading, parting in how
                if reading.encoding or (parting and not parting.as_ever)
            ]
            kinds = [kind_of(path) + packing_of(path) for path in paths]
            parts = {"files": content_hash(paths), "kinds": kinds} | ({"read": other} if other else {})
            self._hashes[split] = key_hash(parts)
        return self._hashes[split]

    def size(self, split: str) -> int | None:
        return sum(text_size(path) for path in self._paths[split])

    def rows(self, split: str, columns: frozenset[str] | None = None) -> Iterator[tuple[str, object]]:
        for path in self._paths[split]:
            yield from read_table(path, columns, self._how(path)[0].encoding)

    def records(self, split: str, stats: RowStats) -> Iterator[Record]:
        for number, path in enumerate(self._paths[split]):
            reading, parting = self._how(path)
            stats.begin(
                path.name,
                split,
                number=number,
                bytes=path.stat().st_size,
                encoding=in_words(reading.encoding) if reading.encoding else "",
            )
            yield from read_file(path, stats, reading, parting)
        stats.finish()

    def files(self, split: str) -> list[DataFile] | None:
        for path in self._paths[split]:
            reading = self._how(path)[0]
            if reading.encoding or (kind_of(path) == ".jsonl" and not is_a_row_a_line(path)):
                return None
        return in_segments([DataFile(str(path), path.stat().st_size) for path in self._paths[split]])

    def reader(self) -> FileReader:
        return LocalReader()

    def _how(self, path: Path) -> tuple[Reading, Parting | None]:
        """How a file is read, and plain text parted.

        Raises:
            NewLLMError: it is in another encoding than UTF-8, and none was named.
        """
        if path not in self._partings:
            reading, parting = self._reading, None
            if kind_of(path) != ".parquet":
                reading = reading._replace(encoding=check_encoding(path, reading.encoding))
            if kind_of(path) in TEXT and not _holds_utterances(path, reading):
                parting = parting_of(path, reading)
            self._partings[path] = reading, parting
        return self._partings[path]


class LocalReader:
    """Reads pieces of this machine's files."""

    def read(self, place: str, begin: int, end: int) -> bytes:
        with open_data(Path(place)) as file:
            file.seek(begin)
            return file.read(end - begin)

    def row_groups(self, segment: Segment, columns: frozenset[str] | None) -> Iterator[list[dict]]:
        with open_parquet(Path(segment.place)) as file:
            yield from (read_group(file, group, columns) for group in groups_in(file, segment))

    def columns_beside(self, segment: Segment, columns: frozenset[str]) -> dict[str, int]:
        with open_parquet(Path(segment.place)) as file:
            return columns_beside(file, columns, groups_in(file, segment))


def read_file(
    path: Path, stats: RowStats, reading: Reading = PLAIN, parting: Parting | None = None
) -> Iterator[Record]:
    """The records of one file; bad rows go to `stats`.

    Args:
        parting: of plain text; default: as `parting_of` finds it.

    Raises:
        NewLLMError: the file cannot be read at all.
    """
    if kind_of(path) not in TEXT:
        rows = read_table(path, COLUMNS, reading.encoding, stats.file.notes)
        if kind_of(path) == ".parquet":
            with open_parquet(path) as file:
                stats.file.unread.update(columns_beside(file, COLUMNS))
        yield from parse_rows(rows, stats)
    elif parting is None and _holds_utterances(path, reading):
        yield from parse_rows(_read_utterances(path, reading.encoding), stats)
    else:
        parting = parting or parting_of(path, reading)
        stats.file.documents = parting.words
        documents = read_text(path, reading, parting)
        if parting.dialogues:
            yield from parse_rows(((str(path), {"text": document.text}) for document in documents), stats)
            return
        for document in documents:
            if not document.continues:
                stats.accept()
            if "\0" in (document.text or ""):
                stats.file.notes[NUL] += 1
            yield document


def read_table(
    path: Path,
    columns: frozenset[str] | None = None,
    encoding: str = "",
    notes: Counter[str] | None = None,
) -> Iterator[tuple[str, object]]:
    """(where, row) of a file of rows; a row that cannot be read comes as a `ValueError`.

    Args:
        columns: those that are needed, where the file keeps its columns apart; default: all.
        encoding: of the file; default: UTF-8.
        notes: where it is counted which keys of a .json file are not read.

    Raises:
        NewLLMError: the file cannot be read, or is plain text.
    """
    kind = kind_of(path)
    if kind not in ROWS:
        raise UsageError(f"{path} holds no rows: use {', '.join(ROWS)}.")
    if kind == ".parquet":
        rows = read_parquet(path, columns)
    elif kind == ".json" or (kind in (".jsonl", ".ndjson") and not is_a_row_a_line(path, encoding)):
        rows = read_json_values(path, encoding, notes)
    else:
        rows = _ROWS[kind](path, encoding)
    yield from rows


_ROWS: dict[str, Callable[[Path, str], Iterator[tuple[str, object]]]] = {
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".csv": read_csv,
    ".tsv": read_csv,
}


def text_size(path: Path) -> int:
    """About how many bytes of text a file holds (parquet is compressed)."""
    if kind_of(path) == ".parquet":
        return uncompressed_size(path, COLUMNS)
    return path.stat().st_size * (3 if packing_of(path) else 1)


def _holds_utterances(path: Path, reading: Reading) -> bool:
    """Whether a text file is DailyDialog's: a dialogue a line."""
    first = next((line for line in read_lines(path, reading.encoding) if line.strip()), "")
    return ends_utterance(first)


def _read_utterances(path: Path, encoding: str) -> Iterator[tuple[str, object]]:
    for number, line in enumerate(read_lines(path, encoding), 1):
        if line.strip():
            known = ends_utterance(line)
            yield (
                f"{path}, line {number}",
                {"text": line} if known else ValueError("a line that does not end in __eou__"),
            )
