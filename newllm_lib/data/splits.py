"""Which record belongs to which split, decided by the record's content alone.

A split that the source lacks is made from its training split: 5 % of the records by hash for validation,
another 5 % for test. Equal records go to the same split, so nothing leaks, and neither order nor number of
the records plays a part. Of a user's files a record stands in a held-out split once; and only where they are
few (`FEW`) and dealt out badly by their hash, those with the smallest hashes are held out, or of a text that
is hardly more than one document its end (`Plan`). Where the source has held-out splits itself, training
records that one of them holds too are left out (DailyDialog's splits share dialogues). `max_samples` keeps
the records with the smallest hashes in the same sense; of a set too large to be read for that (`segments`),
the first records in its fixed random order.
"""

from __future__ import annotations

import heapq
import re
import weakref
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from newllm_lib.data.readers.base import Source
from newllm_lib.data.records import Record, RowStats
from newllm_lib.errors import UsageError

SPLITS = ("train", "validation", "test")
HELD_OUT = {"validation": (0.00, 0.05), "test": (0.05, 0.10)}  # shares of the hash's range
FEW = 200  # of so few different records of a user it is looked whether the hash deals them out well
_FAIR = (0.02, 0.3)  # shares of the text that a held-out split may have then
_MOST_OF_ONE = 0.2  # of the text in one record: more is cut
_LEAST_TEXT = 100  # characters: of less nothing is held out
_LEAST = 2000  # characters that a held-out split should have, as far as a fifth of the text goes


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
    how = plan_of(source).how
    return ({"held_out": [source.fingerprint(split) for split in own]} if own else {}) | (
        {} if how == "hash" else {"dealt out by": how}
    )


def where_held_out(source: Source) -> dict[str, str]:
    """Where the text of validation and test comes from, in words."""
    made, plan = derived_splits(source), plan_of(source)
    share = f"{100 * plan.share:.0f} %"
    words = {
        "hash": f"{share} of the training records, by a hash of their content, equal ones once",
        "rank": f"{share} of the few training records (at least one), by a hash of their content",
        "position": f"{share} of the text, at its end",
    }
    return {split: words[plan.how] if split in made else "the data's own" for split in HELD_OUT}


class Plan(NamedTuple):
    """How the records of a training split are dealt out to the splits that are made from it."""

    how: str = "hash"  # "hash", "rank" (the smallest hashes), or "position" (the end of the text)
    share: float = 0.05
    ranked: dict[bytes, str] = {}  # rank: the split of a record, by its digest; others are to train on
    begins: tuple[tuple[str, int], ...] = ()  # position: at which character each split begins


def plan_of(source: Source) -> Plan:
    """The plan of a source; of all but a user's few records, by hash."""
    made = sorted(derived_splits(source), key=list(HELD_OUT).index)
    if not (source.own and made and "train" in source.splits) or source.in_order:
        return Plan()
    if source not in _PLANS:
        _PLANS[source] = _planned(source, made)
    return _PLANS[source]


def _planned(source: Source, made: list[str]) -> Plan:
    sizes: dict[bytes, int] = {}  # characters, of all that are equal
    held, are_texts, digest = source_held_out(source), True, b""
    for record in source.records("train", RowStats()):
        if not record.continues:
            digest = record.digest()
            if len(sizes) > FEW:
                return Plan()
        if digest not in held:
            sizes[digest] = sizes.get(digest, 0) + sum(map(len, record.texts()))
            are_texts &= record.text is not None
    total = sum(sizes.values())
    shares = {split: 0.0 for split in made}
    for digest, size in sizes.items():
        split = split_of(digest, made)
        if split in shares:
            shares[split] += size / total
    if all(_FAIR[0] <= share <= _FAIR[1] for share in shares.values()) or total < _LEAST_TEXT:
        return Plan()
    even = len(sizes) >= 10 and max(sizes.values()) <= _MOST_OF_ONE * total
    if even or not are_texts and len(sizes) > len(made):
        count, ranked = max(1, round(0.05 * len(sizes))), {}
        for place, digest in enumerate(sorted(sizes)[: count * len(made)]):
            ranked[digest] = made[place // count]
        return Plan("rank", ranked=ranked)
    if not are_texts:
        return Plan()
    share = min(0.2, max(0.05, _LEAST / total))
    begins = [(split, round(total * (1 - share * (len(made) - i)))) for i, split in enumerate(made)]
    return Plan("position", share, begins=(("train", 0), *begins))


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
    source: Source, wanted: set[str], max_samples: int | None, stats: RowStats
) -> Iterator[tuple[str, Record]]:
    """(split, record) of the wanted splits. The source's training split is read once, whatever is made from
    it; the first time with `max_samples` it is read once more before, for the hashes.

    Raises:
        UsageError: see `check_train`.
    """
    check_train(source, wanted)
    made = derived_splits(source)
    if wanted & (made | {"train"}):
        chosen, takes = None, True
        if max_samples and "train" in wanted:
            chosen = _First(max_samples) if source.in_order else _smallest(max_samples, source)
        for split, record, digest in _dealt_out(source, stats, bool(chosen)):
            if split in wanted:
                if split == "train" and chosen is not None and not record.continues:
                    takes = chosen.takes(digest)
                if split != "train" or takes:
                    yield split, record
            if isinstance(chosen, _First) and not chosen.room and wanted == {"train"}:
                return
    for split in sorted(wanted & source.splits - {"train"}):
        for record in source.records(split, stats):
            yield split, record


def _dealt_out(
    source: Source, stats: RowStats, with_digests: bool = False
) -> Iterator[tuple[str, Record, bytes]]:
    """(split, record, its digest) of the training split's records; of a document in pieces, all in one split.
    Without what the source holds out itself; of a user's files, without repetitions in what is made."""
    made, held, plan = derived_splits(source), source_held_out(source), plan_of(source)
    seen: set[bytes] = set()
    split, digest, at = "", b"", 0
    for record in source.records("train", stats):
        if not record.continues:
            digest = record.digest() if made or with_digests or held else b""
            split = "" if digest in held else plan.ranked.get(digest, "train")
            stats.held_out += not split
            if split and plan.how == "hash":
                split = split_of(digest, made)
            if source.own and split in made:
                repeated = digest in seen
                seen.add(digest)
                if repeated:
                    stats.file.notes["a repetition in validation or test, where equal ones count once"] += 1
                    split = ""
        if split and plan.how == "position":
            for name, piece in _cut(plan, at, record):
                yield name, piece, digest
            at += len(record.text or "")
        elif split:
            yield split, record, digest


def _cut(plan: Plan, at: int, record: Record) -> Iterator[tuple[str, Record]]:
    """A record whose text begins at character `at`, cut where a split begins."""
    text, begin = record.text or "", 0
    ends = [*(place for _, place in plan.begins[1:]), at + len(text)]
    for (split, place), end in zip(plan.begins, ends, strict=True):
        if begin < len(text) and end > at:
            cut = len(text) if end >= at + len(text) else _good_place(text, end - at)
            piece = text[begin:cut]
            if piece.strip():
                yield split, Record(piece, continues=record.continues and not begin and at > place)
            begin = max(begin, cut)


def _good_place(text: str, place: int) -> int:
    """Where to cut near `place`: after a line, a sentence or a word, if one ends soon."""
    for pattern in (r"\n\s*", r"[.!?。！？]+\s*", r"\s+"):
        match = re.compile(pattern).search(text, place, place + 500)
        if match:
            return match.end()
    return place


def _smallest(count: int, source: Source) -> _Smallest:
    """Samples `count` records of the training split in one pass; `count` numbers are held."""
    known = _BORDERS.setdefault(source, {})
    if count not in known:
        heap: list[int] = []  # negated: the largest of the smallest is on top
        for split, record, digest in _dealt_out(source, RowStats(), True):
            if split != "train" or record.continues:
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
_HELD: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # source: what `source_held_out` found
_PLANS: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # source: its plan


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
