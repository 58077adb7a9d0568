"""Which record belongs to which split, decided by the record's content alone.

A split that the source lacks is made from its training split: 5 % of the records by hash for validation,
another 5 % for test. Equal records go to the same split, so nothing leaks, and neither order nor number of
the records plays a part. Where the source has held-out splits itself, training records that one of them holds
too are left out (DailyDialog's splits share dialogues). `max_samples` keeps the records with the smallest
hashes in the same sense; of a set too large to be read for that (`segments`), the first records in its fixed
random order.
"""

from __future__ import annotations

import heapq
import weakref
from collections.abc import Iterable, Iterator

from newllm_lib.data.readers.base import Source
from newllm_lib.data.records import Record, RowStats
from newllm_lib.errors import UsageError

SPLITS = ("train", "validation", "test")
HELD_OUT = {"validation": (0.00, 0.05), "test": (0.05, 0.10)}  # shares of the hash's range


def derived_splits(source: Source) -> set[str]:
    """The splits that are made from the training split because the source has none."""
    return set(HELD_OUT) - source.splits


def source_held_out(source: Source) -> frozenset[bytes]:
    """Digests of what the source holds out itself, as far as it is read (of a large source, its sample)."""
    if source not in _HELD:
        own = sorted(source.splits - {"train"})
        _HELD[source] = frozenset(
            record.digest() for split in own for record in source.records(split, RowStats())
        )
    return _HELD[source]


def held_out_key(source: Source) -> dict:
    """What the training records depend on beside the training split, for a cache's key."""
    own = sorted(source.splits - {"train"})
    return {"held_out": [source.fingerprint(split) for split in own]} if own else {}


def where_held_out(source: Source) -> dict[str, str]:
    """Where the text of validation and test comes from, in words."""
    made = derived_splits(source)
    return {
        split: "5 % of the training records, by a hash of their content"
        if split in made
        else "the data's own"
        for split in HELD_OUT
    }


def check_train(source: Source, wanted: set[str]) -> None:
    """Raise UsageError where the source has no training split, and a wanted split needs it."""
    needed = wanted & (derived_splits(source) | {"train"})
    if needed and "train" not in source.splits:
        raise UsageError(
            f"{source.title} has no train split, only {', '.join(sorted(source.splits))}: "
            f"add train.txt (or .jsonl .json .parquet); it is needed for {', '.join(sorted(needed))}."
        )


def split_of(digest: bytes, made: Iterable[str]) -> str:
    """The split a record of the source's training split goes to, by its digest."""
    position = int.from_bytes(digest[:8], "big") / 2**64
    for split in made:
        low, high = HELD_OUT[split]
        if low <= position < high:
            return split
    return "train"


def read_splits(
    source: Source, wanted: set[str], max_samples: int | None, tally: RowStats
) -> Iterator[tuple[str, Record]]:
    """(split, record) of the wanted splits. The source's training split is read once, whatever is made from
    it; the first time with `max_samples` it is read once more before, for the hashes.

    Raises:
        UsageError: see `check_train`.
    """
    check_train(source, wanted)
    made = derived_splits(source)
    if wanted & (made | {"train"}):
        held, chosen = source_held_out(source), None
        if max_samples and "train" in wanted:
            chosen = _First(max_samples) if source.in_order else _smallest(max_samples, source, made)
        for record in source.records("train", tally):
            digest = record.digest() if made or chosen or held else b""
            if digest in held:
                tally.held_out += 1
                continue
            split = split_of(digest, made)
            if split in wanted and (split != "train" or chosen is None or chosen.takes(digest)):
                yield split, record
            if isinstance(chosen, _First) and not chosen.room and wanted == {"train"}:
                return
    for split in sorted(wanted & source.splits - {"train"}):
        for record in source.records(split, tally):
            yield split, record


def _smallest(count: int, source: Source, made: set[str]) -> _Smallest:
    """Samples `count` records of the training split in one pass; `count` numbers are held."""
    known, held = _BORDERS.setdefault(source, {}), source_held_out(source)
    if count not in known:
        heap: list[int] = []  # negated: the largest of the smallest is on top
        for record in source.records("train", RowStats()):
            digest = record.digest()
            if digest in held or split_of(digest, made) != "train":
                continue
            order = -_order(digest)
            if len(heap) < count:
                heapq.heappush(heap, order)
            elif order > heap[0]:
                heapq.heapreplace(heap, order)
        largest = -heap[0] if heap else -1
        known[count] = largest, sum(1 for order in heap if -order == largest)
    return _Smallest(*known[count])


_BORDERS: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # source: {count: (largest, room)}
_HELD: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # source: own_held_out


class _First:
    """Takes the first records that there are."""

    def __init__(self, count: int):
        self.room = count

    def takes(self, digest: bytes) -> bool:
        taken = self.room > 0
        self.room -= taken
        return taken


class _Smallest:
    """Takes every record whose hash is below `largest`, and as many that have it as there is `room` for.

    Only records of equal content share a hash, so it does not matter which of them are taken.
    """

    def __init__(self, largest: int, room: int):
        self.largest, self.room = largest, room

    def takes(self, digest: bytes) -> bool:
        order = _order(digest)
        if order == self.largest and self.room:
            self.room -= 1
            return True
        return order < self.largest


def _order(digest: bytes) -> int:
    # another part of the digest than the splits': the sample must not depend on their borders
    return int.from_bytes(digest[8:], "big")
