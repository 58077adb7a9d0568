"""Training on a large set while it is prepared: windows of segments in an order that is deterministic.

One pass after the other goes over all segments: the first in their fixed order (a window of `FIRST` segments,
so that training begins soon, then windows of `WINDOW`), each later one in an order of its own. A window's
segments are one stream of tokens; its blocks are cut at an offset, and taken in an order, from (seed, pass,
window) alone. So what a step learns from is settled before anything is prepared; where it is not ready yet,
training waits for it.

How many tokens a pass has is known only when all is packed. An epoch, and the schedule with it, is therefore
declared: estimated from the first window, which is the same on every machine. The passes go on regardless of
where an epoch ends.
"""

from __future__ import annotations

import itertools
import json
import mmap
import shutil
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from newllm_lib import console
from newllm_lib.data.cache import META, key_hash, plain_write_errors
from newllm_lib.data.encoder import Encoder
from newllm_lib.data.packing import VERSION, PackedSplit, open_packed
from newllm_lib.data.records import DataReport, RowStats
from newllm_lib.data.splits import derived_splits, held_out_key, source_held_out
from newllm_lib.data.streaming.segment_pool import SegmentPool
from newllm_lib.data.streaming.segment_worker import Job
from newllm_lib.data.streaming.segments import LargeSource
from newllm_lib.data.templates import TEMPLATE_VERSION
from newllm_lib.data.tokenizer import tokenizer_hash
from newllm_lib.errors import NewLLMError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from newllm_lib.recipe import Recipe

FIRST = 4  # segments in the first window
WINDOW = 16  # in every other: about 64 MiB of text, shuffled together


def _begin(number: int) -> int:
    """The first segment of window `number` of the first pass."""
    return FIRST + (number - 1) * WINDOW if number else 0


class Window(NamedTuple):
    """Some segments as one stream of tokens."""

    path: Path
    ids: np.ndarray  # (tokens,) uint16 or uint32
    loss_mask: np.ndarray | None  # (tokens,) uint8

    @property
    def tokens(self) -> int:
        return len(self.ids)


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    """The parts as one array in memory of its own, which the system has back when the array is gone: malloc
    would keep some of it, and more with every window."""
    count, dtype = sum(map(len, parts)), parts[0].dtype
    memory = mmap.mmap(-1, count * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.concatenate(parts, out=np.frombuffer(memory, dtype=dtype))


class Counts(NamedTuple):
    """Of a segment's training records: what places in the stream depend on."""

    tokens: int  # without the <|endoftext|> at its end, which the next segment begins with
    documents: int


class StreamedSplit:
    """The training split of a large source. `start` begins its preparation, `close` ends it.

    Args:
        recipe: `max_samples`: only the first so many records, in the order of the segments; `loss_on`;
            `seed`: of the order in which blocks are taken.
        known: what `state` gave when a run was saved. What that run had seen need not be prepared again to go
            on.
        leads: see `SegmentPool`.
    """

    def __init__(
        self,
        source: LargeSource,
        tokenizer: PreTrainedTokenizerBase,
        cache: Path,
        recipe: Recipe,
        known: dict | None = None,
        leads: bool = True,
    ):
        answers_only = recipe.loss_on == "answers"
        made = tuple(sorted(derived_splits(source)))
        key = {
            "packing": VERSION,
            "template": TEMPLATE_VERSION,
            "tokenizer": tokenizer_hash(tokenizer),
            "made": made,
            "content": source.fingerprint("train"),
            "answers_only": answers_only,
            **held_out_key(source),
        }
        self.path = cache / "streams" / f"train-{key_hash(key)}"
        self.job = Job(
            folder=self.path,
            key=key,
            segments=source.segments("train"),
            reader=source.reader(),
            parse=source.parse,
            encoder=Encoder(tokenizer, answers_only),
            made=made,
            held_out=source_held_out(source),
        )
        self.title, self.max_samples, self.seed = source.title, recipe.max_samples, recipe.seed
        self.pool = SegmentPool(self.job, leads=leads)
        self.stats = RowStats()
        known = known or {"declared": 0, "segments": [], "last": None}
        self.tokens: int = known["declared"]  # declared: of one pass
        self.counts = [Counts(*pair) for pair in known["segments"]]  # of the first segments
        # how many segments a pass has: fewer than there are, with max_samples
        self.last: int | None = known["last"]
        self._windows: OrderedDict[tuple[int, int], Window] = OrderedDict()

    def start(self) -> None:
        """Begin to prepare, in the background: from the first window, or from the last one that is known."""
        self.pool.plan(
            self._wanted(
                _begin((len(self.counts) - FIRST - 1) // WINDOW + 1 if len(self.counts) > FIRST else 0)
            )
        )

    def declare(self) -> None:
        """Estimate how many tokens a pass has.

        Raises:
            NewLLMError: there is no text (or no answer, where only answers count), or it cannot be read.
        """
        if self.tokens:
            return
        first = min(FIRST, len(self.job.segments))
        while len(self.counts) < first and self.last is None:
            self._count_next()
        tokens, documents = (sum(values) for values in zip(*self.counts, strict=True))
        if not documents:
            raise NewLLMError(
                f"{self.title}: the train split holds no text. Give it some, or name other data."
            )
        if self.last is None:
            segments = self.job.segments
            share = sum(s.end - s.begin for s in segments) / sum(s.end - s.begin for s in segments[:first])
            whole = tokens * share
            tokens = int(min(whole, self.max_samples * tokens / documents) if self.max_samples else whole)
        self.tokens = tokens + 1

    def check_disk(self) -> None:
        """Say early where the disk will be too small for what is not packed yet."""
        size = self.job.encoder.dtype.itemsize + bool(self.job.encoder.answers_only)  # bytes of a token
        there = sum(counts.tokens for counts in self.counts)
        with plain_write_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        need, free = (self.tokens - there) * size, shutil.disk_usage(self.path).free
        if need > free:
            console.say(
                f"  All of it packed takes about {need / 1e9:.1f} GB, and {self.path.parent} has "
                f"{free / 1e9:.1f} GB left: free some space, set NEWLLM_CACHE to a folder on another disk, "
                "or take fewer with --max_samples."
            )

    @property
    def documents(self) -> int:
        """Of one pass, estimated like the tokens."""
        tokens, documents = (sum(values) for values in zip(*self.counts, strict=True))
        return min(round(documents * self.tokens / tokens), self.max_samples or documents * self.tokens)

    @property
    def report(self) -> DataReport:
        """What the segments that were counted so far were taken for."""
        return DataReport(self.title, self.stats.files)

    def state(self) -> dict:
        """All that is needed to go on, on another machine too."""
        return {"declared": self.tokens, "segments": [list(pair) for pair in self.counts], "last": self.last}

    def close(self) -> None:
        """End the preparation; what is packed is kept."""
        self.pool.close()

    # --- windows
    # ----------------------------------------------------------------------------------------------------

    def members(self, epoch: int, number: int) -> list[int]:
        """The segments of window `number` of pass `epoch`; none where the pass is over."""
        if epoch == 0:
            begin, end = _begin(number), _begin(number + 1)
            while len(self.counts) < end and self.last is None:
                self._count_next()
            return list(range(begin, min(end, self.last or end)))
        return self._order(epoch)[number * WINDOW : (number + 1) * WINDOW]

    def blocks(self, epoch: int, number: int, length: int) -> tuple[int, int]:
        """(offset, blocks) of a window cut into blocks of `length`: the first begins `offset` before the
        window's first token, the last may reach past its end; so every token but the first is predicted once.
        """
        predicted = sum(self.counts[member].tokens for member in self.members(epoch, number))
        offset = int(np.random.default_rng([self.seed, epoch, number]).integers(length))
        return offset, -(-(predicted + offset) // length) if predicted else 0

    def window(self, epoch: int, number: int) -> Window:
        """The tokens of a window; the last two asked for are kept.

        Raises:
            NewLLMError: they cannot be read, or too many rows are bad.
        """
        if (epoch, number) not in self._windows:
            while len(self._windows) > 1:  # before the next is made: never three at a time
                self._windows.popitem(last=False)
            parts = [self._open(member) for member in self.members(epoch, number)]
            ids = _joined([ids[:-1] for ids, _ in parts] + [parts[-1][0][-1:]])
            mask = None
            if parts[0][1] is not None:
                masks = [mask[:-1] for _, mask in parts if mask is not None]
                mask = _joined([*masks, np.zeros(1, dtype=np.uint8)])
            self._windows[epoch, number] = Window(self.path, ids, mask)
        return self._windows[epoch, number]

    def starts(self, position: int, length: int) -> Iterator[tuple[int, int, int]]:
        """Block starts as (pass, window, token), from block `position` of the endless passes on."""
        planned = -1  # the pass whose segments are being prepared in its order
        for epoch in itertools.count():
            for number in itertools.count():
                if not self.members(epoch, number):
                    break
                offset, blocks = self.blocks(epoch, number, length)
                if position >= blocks:
                    position -= blocks
                    continue
                if planned != epoch:
                    self.pool.plan(
                        self._wanted(_begin(number)) if epoch == 0 else self._order(epoch)[number * WINDOW :]
                    )
                    planned = epoch
                order = np.random.default_rng([self.seed, epoch, number, 1]).permutation(blocks)[position:]
                for part in np.array_split(order, max(1, len(order) // 65536)):
                    yield from ((epoch, number, start) for start in (part * length - offset).tolist())
                position = 0

    def _order(self, epoch: int) -> list[int]:
        """The segments of a later pass."""
        return np.random.default_rng([self.seed, epoch]).permutation(self.last or 0).tolist()

    # --- segments
    # ---------------------------------------------------------------------------------------------------

    def _wanted(self, begin: int) -> Iterator[int]:
        """The segments that the first pass needs from `begin` on, then those before."""
        for number in itertools.chain(range(begin, len(self.job.segments)), range(begin)):
            if self.last is None and self._enough_before(number):
                return
            if self.last is None or number < self.last:
                yield number

    def _enough_before(self, number: int) -> bool:
        """Whether the segments before this one, as far as they are packed, hold `max_samples` records."""
        if not self.max_samples:
            return False
        found = sum(counts.documents for counts in self.counts)
        found += sum(self.pool.documents.get(n, 0) for n in range(len(self.counts), number))
        return found >= self.max_samples

    def _count_next(self) -> None:
        """Learn the size of the next segment of the first pass, and where the pass ends.

        Raises:
            NewLLMError: more than 5 % of the rows so far were bad.
        """
        number = len(self.counts)
        packed = self._packed(number)
        documents, before = packed.documents, sum(counts.documents for counts in self.counts)
        if self.max_samples and before + documents >= self.max_samples:
            documents = self.max_samples - before
            self.last = number + 1
        if number + 1 == len(self.job.segments):
            self.last = number + 1
        starts = np.append(packed.document_starts, packed.tokens - 1)
        self.counts.append(Counts(int(starts[documents]), documents))
        self.stats.add(json.loads((packed.path / META).read_text(encoding="utf-8"))["tally"])
        window_ends = number + 1 == FIRST or (number + 1 - FIRST) % WINDOW == 0
        if window_ends or self.last:
            self.stats.finish()
        if self.stats.summary() and (number + 1 == FIRST or self.last):
            console.say(f"  {self.stats.summary()}")

    def _open(self, number: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Tokens and mask of a segment's part in a pass, with the closing <|endoftext|>."""
        packed, counts = self._packed(number), self.counts[number]
        end = counts.tokens
        whole = packed.tokens - 1 == end
        if end > packed.tokens - 1 or (not whole and end not in packed.document_starts):
            raise NewLLMError(
                f"{self.title}: {self.job.segments[number]} is not what this run was started with: bring "
                "that data back, or start a new run with another --output_dir."
            )
        return packed.ids[: end + 1], None if packed.loss_mask is None else packed.loss_mask[: end + 1]

    def _packed(self, number: int) -> PackedSplit:
        for last_try in (False, True):
            self.pool.wait(number)
            packed = open_packed(self.job.entry(number))
            if packed is not None:
                return packed
            if not last_try:
                self.pool.forget(number)
        raise NewLLMError(
            f"{self.job.entry(number)} is damaged, also when made anew: set NEWLLM_CACHE to another disk."
        )
