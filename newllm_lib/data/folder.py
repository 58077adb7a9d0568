"""Finding a user's files: `--data_dir FOLDER` with train.*, validation.* and test.*."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from newllm_lib.data.jsonfiles import read_json_lines, read_json_values
from newllm_lib.data.records import BadRecord, Record, Tally
from newllm_lib.data.schemas import COLUMNS, ends_utterance, parse_row
from newllm_lib.data.textfiles import PIECE, open_data, read_documents, read_lines
from newllm_lib.errors import NewLLMError, UsageError

KINDS = (".txt", ".jsonl", ".jsonl.gz", ".json", ".parquet")
SPLIT_NAMES = {"train": "train", "validation": "validation", "valid": "validation", "val": "validation",
               "dev": "validation", "test": "test"}  # fmt: skip

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
        raise UsageError(f"--data_dir {folder} {what}: name a folder that holds train.txt (or .jsonl .json .parquet).")
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
            raise UsageError(f"Several files in {folder} could be the {split} split: {names}. Leave one of them there.")
    return {split: next(iter(series.values())) for split, series in found.items()}


def content_hash(paths: list[Path]) -> str:
    """A hash of the files' bytes (not of their names or times)."""
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        with open_data(path) as file:
            while piece := file.read(PIECE):
                digest.update(piece)
        digest.update(path.stat().st_size.to_bytes(8, "little"))
    return digest.hexdigest()


def read_file(path: Path, tally: Tally) -> Iterator[Record]:
    """The records of one file; bad rows go to `tally`.

    Raises:
        NewLLMError: the file cannot be read at all.
    """
    kind = kind_of(path)
    if kind == ".txt" and not _holds_utterances(path):
        for document in read_documents(path):
            tally.good += 1
            yield Record(document)
        return
    yield from parse_rows(_READERS[kind](path), tally)


def read_table(path: Path) -> Iterator[tuple[str, object]]:
    """(where, row) of a file of rows, with all their columns; a row that cannot be read comes as a `ValueError`.

    Raises:
        NewLLMError: the file cannot be read, or is plain text.
    """
    kind = kind_of(path)
    if kind not in KINDS[1:]:
        raise UsageError(f"{path} holds no rows: use {', '.join(KINDS[1:])}.")
    yield from _read_parquet(path, None) if kind == ".parquet" else _READERS[kind](path)


def kind_of(path: Path) -> str:
    """The ending of a data file's name, one of `KINDS`."""
    return "".join(path.suffixes[-2:] if path.suffix.lower() == ".gz" else path.suffixes[-1:]).lower()


def _holds_utterances(path: Path) -> bool:
    """Whether a text file is DailyDialog's: a dialogue a line."""
    first = next((line for line in read_lines(path) if line.strip()), "")
    return ends_utterance(first)


def _read_utterances(path: Path) -> Iterator[tuple[str, object]]:
    for number, line in enumerate(read_lines(path), 1):
        if line.strip():
            known = ends_utterance(line)
            yield f"{path}, line {number}", {"text": line} if known else ValueError("a line that does not end in __eou__")


def parse_rows(rows: Iterator[tuple[str, object]], tally: Tally) -> Iterator[Record]:
    """Records of (where, row) pairs; bad rows go to `tally`, rows without text are passed over."""
    for where, row in rows:
        if isinstance(row, ValueError):
            tally.reject(str(row), where)
            continue
        try:
            record = parse_row(row)
        except BadRecord as reason:
            tally.reject(str(reason), where)
            continue
        if record is not None:
            tally.good += 1
            yield record


def text_size(path: Path) -> int:
    """About how many bytes of text a file holds (parquet is compressed)."""
    if kind_of(path) != ".parquet":
        return path.stat().st_size * (3 if kind_of(path) == ".jsonl.gz" else 1)
    with open_parquet(path) as file:
        groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
        columns = [group.column(i) for group in groups for i in range(group.num_columns)]
        return sum(c.total_uncompressed_size for c in columns if c.path_in_schema.split(".")[0] in COLUMNS)


@contextlib.contextmanager
def open_parquet(path: Path):
    """A `pyarrow.parquet.ParquetFile`; a failure is one line for the user."""
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            yield file
    except (pyarrow.ArrowException, OSError) as error:
        raise NewLLMError(f"{path} cannot be read as parquet ({str(error).splitlines()[0]}): is it whole?") from error


def _read_parquet(path: Path, columns: frozenset[str] | None = COLUMNS) -> Iterator[tuple[str, object]]:
    number = 0
    with open_parquet(path) as file:
        wanted = [name for name in file.schema_arrow.names if columns is None or name in columns]
        for batch in file.iter_batches(batch_size=1024, columns=wanted or None):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", row


_READERS = {
    ".txt": _read_utterances, ".jsonl": read_json_lines, ".jsonl.gz": read_json_lines, ".json": read_json_values,
    ".parquet": _read_parquet,
}  # fmt: skip
