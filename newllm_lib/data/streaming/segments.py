"""Large data sets in segments: pieces of files that can be read and packed alone and in any order.

A segment is a range of bytes of one .jsonl or .parquet file; the records that begin in it are its records.
All segments of a split are put in one order, shuffled by a fixed seed, so that the first few are a fair
sample of all files. `LargeSource` is a source of which only this sample is read: the tokenizer is trained on
it, and validation and test are made from it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from newllm_lib.data.readers.base import LARGEST, DataFile, FileReader, Segment, Source, parse_json
from newllm_lib.data.records import FileReport, Record, RowStats
from newllm_lib.data.schemas import COLUMNS, parse_rows

VERSION = 1  # of how files are cut and put in order
SEGMENT_BYTES = 4 << 20
ORDER_SEED = 0
HEAD = 8  # segments of the training split that are the sample: about 32 MiB
HELD_OUT_HEAD = 1  # segments of a validation or test split that the source has itself


def cut(files: list[DataFile]) -> list[Segment]:
    """All segments of these files, in the order in which they are used."""
    segments = [
        Segment(file.place, begin, min(begin + SEGMENT_BYTES, file.bytes))
        for file in files
        for begin in range(0, file.bytes, SEGMENT_BYTES)
    ]
    return [segments[i] for i in np.random.default_rng(ORDER_SEED).permutation(len(segments))]


def read_rows(
    segment: Segment,
    reader: FileReader,
    fetched: bytes | None = None,
    columns: frozenset[str] | None = COLUMNS,
    file: FileReport | None = None,
) -> Iterator[tuple[str, object]]:
    """(where, row) of every record of the segment; a row that cannot be parsed is a `ValueError` instead.

    Args:
        fetched: what `fetch` gave for it, where that was called before.
        columns: those that are needed, where the file keeps its columns apart; None: all.
        file: where it is noted which columns are not read.
    """
    if segment.place.endswith(".parquet"):
        number = 0
        if file is not None and columns is not None:
            file.unread.update(reader.columns_beside(segment, columns))
        for rows in reader.row_groups(segment, columns):
            for row in rows:
                number += 1
                yield f"{segment.place}, row {number} after byte {segment.begin:,}", row
        return
    data = fetch(segment, reader) if fetched is None else fetched
    position = max(0, segment.begin - 1)
    if segment.begin:  # the line that begins before the segment belongs to the one before
        skipped = data.find(b"\n") + 1
        if not skipped:
            return
        data, position = data[skipped:], position + skipped
    for line in data.split(b"\n"):
        if position < segment.end and line.strip():
            yield f"{segment.place}, byte {position:,}", _row(line.removeprefix(b"\xef\xbb\xbf"))
        position += len(line) + 1


def _row(line: bytes) -> object:
    try:
        return parse_json(line.decode("utf-8"))
    except UnicodeDecodeError:
        return ValueError("not UTF-8")


def fetch(segment: Segment, reader: FileReader) -> bytes:
    """The bytes of a segment's lines with the byte before (nothing for parquet)."""
    if segment.place.endswith(".parquet"):
        return b""
    data = reader.read(segment.place, max(0, segment.begin - 1), segment.end)
    size = 1 << 16
    while not data.endswith(b"\n") and len(data) < LARGEST:
        more = reader.read(
            segment.place, max(0, segment.begin - 1) + len(data), max(0, segment.begin - 1) + len(data) + size
        )
        line, newline, _ = more.partition(b"\n")
        data += line + newline
        if len(more) < size and not newline:
            break  # the file ends without a line break
        size *= 2
    return data


class LargeSource(Source):
    """A source whose training split is too large to read first; it answers for a sample of it.

    `max_samples` are the first records in order (`in_order`): to find those with the smallest hashes all
    would have to be read.
    """

    in_segments = in_order = True

    def __init__(self, source: Source):
        self.source, self.title, self.splits = source, source.title, source.splits
        self.commit, self.parse, self.own = source.commit, source.parse, source.own
        self._segments: dict[str, list[Segment]] = {}

    @property
    def unused(self) -> dict[str, str]:
        return self.source.unused

    def segments(self, split: str) -> list[Segment]:
        """All segments of a split in order; none where its files cannot be read in segments."""
        if split not in self._segments:
            self._segments[split] = cut(self.source.files(split) or [])
        return self._segments[split]

    def sample(self, split: str) -> list[Segment]:
        """The first segments: what is read before training."""
        return self.segments(split)[: HEAD if split == "train" else HELD_OUT_HEAD]

    def fingerprint(self, split: str) -> str:
        how = f"{VERSION}/{SEGMENT_BYTES}/{ORDER_SEED}/{len(self.sample(split))}"
        return f"{self.source.fingerprint(split)}/segments {how}"

    def size(self, split: str) -> int | None:
        if not self.sample(split):
            return self.source.size(split)
        return sum(segment.end - segment.begin for segment in self.sample(split))

    def rows(self, split: str, columns: frozenset[str] | None = None) -> Iterator[tuple[str, object]]:
        reader = self.reader()
        for segment in self.sample(split):
            yield from read_rows(segment, reader, columns=columns)

    def records(self, split: str, stats: RowStats) -> Iterator[Record]:
        """As `Source.records`; what is noted stands under the sample's name, not its files'."""
        if not self.sample(split):
            yield from self.source.records(split, stats)
            return
        stats.begin(f"{self.title} {split}", split)
        reader, file = self.reader(), stats.file
        rows = (row for segment in self.sample(split) for row in read_rows(segment, reader, file=file))
        yield from parse_rows(rows, stats, self.parse)
        stats.finish()

    def reader(self) -> FileReader:
        return self.source.reader()
