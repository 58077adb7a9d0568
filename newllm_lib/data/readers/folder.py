"""Files of the user's: `--data_dir FOLDER` with train.*, validation.* and test.*."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

from newllm_lib.data.cache import key_hash
from newllm_lib.data.readers.base import (
    KINDS,
    SPLIT_NAMES,
    DataFile,
    FileReader,
    Segment,
    Source,
    in_segments,
    kind_of,
)
from newllm_lib.data.readers.jsonfiles import read_json_lines, read_json_values
from newllm_lib.data.readers.parquetfiles import (
    columns_beside,
    groups_in,
    open_parquet,
    read_group,
    read_parquet,
    uncompressed_size,
)
from newllm_lib.data.readers.textfiles import content_hash, open_data, read_documents, read_lines
from newllm_lib.data.records import Record, RowStats
from newllm_lib.data.schemas import COLUMNS, ends_utterance, parse_rows
from newllm_lib.errors import UsageError

# [prefix.]split[-00000-of-00002].kind, e.g. train.txt, wikitext-2.valid.txt, train-00000-of-00002.parquet
_FILE_NAME = re.compile(
    rf"(?:(?P<prefix>.*)[._-])?(?P<split>{'|'.join(SPLIT_NAMES)})(?P<shard>-\d+-of-\d+)?(?P<kind>\.[a-z]+(?:\.gz)?)",
    re.IGNORECASE,
)


def find_files(folder: Path) -> dict[str, list[Path]]:
    """The files of each split in a folder; several only where they are numbered shards of one.

    Raises:
        UsageError: no such folder, no data files in it, or two files that could both be one split.
    """
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise UsageError(
            f"--data_dir {folder} {what}: name a folder that holds train.txt (or .jsonl .json .parquet)."
        )
    found: dict[str, dict[tuple, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted(folder.iterdir()):
        match = _FILE_NAME.fullmatch(path.name)
        if match and match["kind"].lower() in KINDS and path.is_file():
            split = SPLIT_NAMES[match["split"].lower()]
            # shards of one file differ in nothing but their number
            series = (match["prefix"], match["split"], match["kind"], path.name if not match["shard"] else "")
            found[split][series].append(path)
    if not found:
        raise UsageError(
            f"No data files in {folder}: it should hold train.txt (or .jsonl .json .parquet), "
            "and may hold validation.* and test.* of the same kind."
        )
    for split, series in found.items():
        if len(series) > 1:
            names = ", ".join(paths[0].name for paths in series.values())
            raise UsageError(
                f"Several files in {folder} could be the {split} split: {names}. Leave one of them there."
            )
    return {split: next(iter(series.values())) for split, series in found.items()}


class FolderSource(Source):
    """A folder's files.

    Args:
        paths: the files of each split; default: as `find_files` finds them.
    Raises:
        UsageError: as `find_files`.
    """

    own = True

    def __init__(self, folder: Path, paths: dict[str, list[Path]] | None = None):
        self.title = folder.resolve().name or str(folder)
        self._paths = paths or find_files(folder)
        self.splits = self._paths.keys()
        self._hashes: dict[str, str] = {}

    def fingerprint(self, split: str) -> str:
        if split not in self._hashes:
            kinds = [kind_of(path) for path in self._paths[split]]
            self._hashes[split] = key_hash({"files": content_hash(self._paths[split]), "kinds": kinds})
        return self._hashes[split]

    def size(self, split: str) -> int | None:
        return sum(text_size(path) for path in self._paths[split])

    def rows(self, split: str, columns: frozenset[str] | None = None) -> Iterator[tuple[str, object]]:
        for path in self._paths[split]:
            yield from read_table(path, columns)

    def records(self, split: str, tally: RowStats) -> Iterator[Record]:
        for path in self._paths[split]:
            tally.begin(path.name, split, bytes=path.stat().st_size)
            yield from read_file(path, tally)
        tally.finish()

    def files(self, split: str) -> list[DataFile] | None:
        return in_segments([DataFile(str(path), path.stat().st_size) for path in self._paths[split]])

    def reader(self) -> FileReader:
        return LocalReader()


class LocalReader:
    """Reads pieces of this machine's files."""

    def read(self, place: str, begin: int, end: int) -> bytes:
        with open_data(Path(place)) as file:
            file.seek(begin)
            return file.read(end - begin)

    def row_groups(self, segment: Segment, columns: frozenset[str] | None) -> Iterator[list[dict]]:
        with open_parquet(Path(segment.place)) as file:
            yield from (read_group(file, group, columns) for group in groups_in(file, segment))


def read_file(path: Path, tally: RowStats) -> Iterator[Record]:
    """The records of one file; bad rows go to `tally`.

    Raises:
        NewLLMError: the file cannot be read at all.
    """
    if kind_of(path) != ".txt":
        if kind_of(path) == ".parquet":
            tally.file.unread.update(columns_beside(path, COLUMNS))
        yield from parse_rows(read_table(path, COLUMNS), tally)
    elif _holds_utterances(path):
        yield from parse_rows(_read_utterances(path), tally)
    else:
        for document in read_documents(path):
            tally.accept()
            yield Record(document)


def read_table(path: Path, columns: frozenset[str] | None = None) -> Iterator[tuple[str, object]]:
    """(where, row) of a file of rows; a row that cannot be read comes as a `ValueError`.

    Args:
        columns: those that are needed, where the file keeps its columns apart; default: all.
    Raises:
        NewLLMError: the file cannot be read, or is plain text.
    """
    kind = kind_of(path)
    if kind == ".parquet":
        return read_parquet(path, columns)
    if kind not in _ROWS:
        raise UsageError(f"{path} holds no rows: use {', '.join(KINDS[1:])}.")
    return _ROWS[kind](path)


_ROWS: dict[str, Callable[[Path], Iterator[tuple[str, object]]]] = {
    ".jsonl": read_json_lines,
    ".jsonl.gz": read_json_lines,
    ".json": read_json_values,
}


def text_size(path: Path) -> int:
    """About how many bytes of text a file holds (parquet is compressed)."""
    if kind_of(path) == ".parquet":
        return uncompressed_size(path, COLUMNS)
    return path.stat().st_size * (3 if kind_of(path) == ".jsonl.gz" else 1)


def _holds_utterances(path: Path) -> bool:
    """Whether a text file is DailyDialog's: a dialogue a line."""
    first = next((line for line in read_lines(path) if line.strip()), "")
    return ends_utterance(first)


def _read_utterances(path: Path) -> Iterator[tuple[str, object]]:
    for number, line in enumerate(read_lines(path), 1):
        if line.strip():
            known = ends_utterance(line)
            yield (
                f"{path}, line {number}",
                {"text": line} if known else ValueError("a line that does not end in __eou__"),
            )
