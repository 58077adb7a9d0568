"""A process that packs segments, started by `segment_pool`.

On standard input it gets a pickled `Job`, then the number of a segment a line; the end of the input (also
where whoever started it was killed) ends it. For each segment it writes an answer, a line of JSON after
`MARK`, to standard output; other lines there are for the user. While one segment is tokenized the bytes of
the next are read already.
"""

from __future__ import annotations

import json
import os
import pickle
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from newllm_lib.data.cache import locked, read_meta, sweep
from newllm_lib.data.encoder import Encoder
from newllm_lib.data.packing import Writer
from newllm_lib.data.readers.base import FileReader, Segment
from newllm_lib.data.records import Record, RowStats
from newllm_lib.data.schemas import parse_rows
from newllm_lib.data.splits import split_of
from newllm_lib.data.streaming.segments import fetch, read_rows
from newllm_lib.errors import NewLLMError

MARK = "\x1e"
_END = -1


class Job(NamedTuple):
    """What all segments of a set have in common, and the segments."""

    folder: Path  # of the packed segments
    key: dict  # everything that they are made from
    segments: list[Segment]
    reader: FileReader
    parse: Callable[[object], Record | None]  # a row as a record
    encoder: Encoder
    made: tuple[str, ...]  # splits whose records are not packed here: they are held out by their hash
    held_out: frozenset[bytes] = frozenset()  # digests of more that is not

    def entry(self, number: int) -> Path:
        """The cache entry of a packed segment: a packed split of the training records that begin in it."""
        return self.folder / f"{number:06d}"


def make(job: Job, number: int, fetched: bytes | None = None) -> dict:
    """Pack one segment, unless it is there already; gives its meta.

    Raises:
        NewLLMError: its file cannot be read, or the disk is full.
    """
    entry = job.entry(number)
    with locked(entry, silent=True) as alone:
        meta = read_meta(entry)
        if meta is None:
            if alone:
                sweep(entry)
            _pack(job, number, fetched)
            meta = read_meta(entry)
    assert meta is not None  # `_pack` wrote it, or raised
    return meta


def _pack(job: Job, number: int, fetched: bytes | None) -> None:
    stats = RowStats(hopeless=sys.maxsize)  # how many are too many is decided for all segments together
    stats.begin(job.segments[number].place.rsplit("/", 1)[-1], "train")
    writer = Writer(job.entry(number), job.encoder)
    try:
        rows = read_rows(job.segments[number], job.reader, fetched, file=stats.file)
        for record in parse_rows(rows, stats, job.parse):
            digest = record.digest() if job.made or job.held_out else b""
            if digest in job.held_out:
                stats.held_out += 1
            elif split_of(digest, job.made) == "train":
                writer.add(record)
        writer.finish(key=job.key, skipped=stats.summary(), tally=stats.counts())
    finally:
        writer.close()


def main() -> None:
    """Pack what is asked for until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started this process ends it
    if hasattr(os, "nice"):
        os.nice(5)  # training comes first
    job: Job = pickle.load(sys.stdin.buffer)
    ahead: queue.Queue = queue.Queue(maxsize=1)
    threading.Thread(target=_read_ahead, args=(job, ahead), daemon=True).start()
    while True:
        number, fetched, error = ahead.get()
        if number == _END:
            return
        try:
            if error is not None:
                raise error
            meta = make(job, number, fetched)
            answer = {"documents": meta["counts"]["documents"]}
        except NewLLMError as problem:
            answer = {"error": str(problem), "usage": problem.exit_code == 2}
        except Exception as problem:
            traceback.print_exc()
            said = f"{job.segments[number]} cannot be packed ({type(problem).__name__}: {problem})."
            answer = {"error": said, "usage": False}
        print(MARK + json.dumps({"segment": number, **answer}), flush=True)


def _read_ahead(job: Job, ahead: queue.Queue) -> None:
    for line in sys.stdin.buffer:
        number = int(line)
        try:
            there = (job.entry(number) / "meta.json").exists()
            ahead.put((number, None if there else fetch(job.segments[number], job.reader), None))
        except Exception as error:
            ahead.put((number, None, error))
    ahead.put((_END, None, None))
