"""Dialogues as rows of a batch: token ids, and labels where the assistant speaks."""

from __future__ import annotations

import bisect
from collections.abc import Sequence

import numpy as np

from newllm_lib.data.packing import PackedSplit
from newllm_lib.errors import NewLLMError
from newllm_lib.ops.linear_cross_entropy.reference import IGNORE


class DialogueRows(Sequence):
    """The dialogues of a split, cut when they are read; each at most so long.

    A row is a dict of `input_ids` and `labels` (IGNORE where nothing is learned), and where several dialogues
    are in it `seq_lengths`, as TRL's collator takes them.

    Args:
        split: packed; its loss mask says where the assistant speaks.
        length: tokens in a row at most. A dialogue that is longer is cut at its end.
        packed: fill each row with as many dialogues as fit.

    Raises:
        NewLLMError: no dialogue has an answer within that length.
    """

    def __init__(self, split: PackedSplit, length: int, packed: bool = False):
        self.split = split
        starts = np.asarray(split.document_starts, dtype=np.int64)
        whole = np.diff(np.append(starts, len(split.ids) - 1))  # the stream's last token ends it
        self.lengths = np.minimum(whole, length)
        kept = np.flatnonzero(_answer_tokens(split, starts, self.lengths) > 0)
        self.starts = starts
        self.without_answer = len(starts) - len(kept)
        self.cut = int(np.count_nonzero(whole[kept] > length))
        self.tokens = int(self.lengths[kept].sum())
        if not len(kept):
            raise NewLLMError(
                f"No dialogue has an answer within {length} tokens: raise --max_seq_length, or give others."
            )
        self.groups = _filled(kept, self.lengths, length) if packed else [[int(i)] for i in kept]
        self.packed = packed

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        ids: list[int] = []
        labels: list[int] = []
        for document in self.groups[index]:
            own, answers = self._document(document)
            ids += own
            labels += answers
        row = {"input_ids": ids, "labels": labels}
        if self.packed:
            row["seq_lengths"] = [int(self.lengths[document]) for document in self.groups[index]]
        return row

    def _document(self, number: int) -> tuple[list[int], list[int]]:
        begin = self.starts[number]
        ids = self.split.ids[begin : begin + self.lengths[number]].astype(np.int64)
        labels = ids.copy()
        if self.split.loss_mask is not None:
            labels[self.split.loss_mask[begin : begin + self.lengths[number]] == 0] = IGNORE
        labels[0] = IGNORE  # what was before it is another dialogue
        return ids.tolist(), labels.tolist()

    def summary(self) -> str:
        """What did not fit, or nothing."""
        found = (
            (self.without_answer, "dialogues left out, whose first answer is beyond the limit"),
            (self.cut, "cut at their end"),
        )
        return ", ".join(f"{count:,} {what}" for count, what in found if count)


def _answer_tokens(split: PackedSplit, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """How many tokens each dialogue learns: the first of it is never predicted."""
    if split.loss_mask is None:
        return lengths - 1
    bounds = np.stack([starts + 1, starts + lengths], 1).ravel()
    # sums between one bound and the next; every second is between two dialogues
    return np.add.reduceat(split.loss_mask, np.minimum(bounds, len(split.loss_mask) - 1), dtype=np.int64)[
        ::2
    ] * (lengths > 1)


def _filled(documents: np.ndarray, lengths: np.ndarray, room: int) -> list[list[int]]:
    """Documents dealt out to as few rows as best-fit-decreasing needs."""
    rows: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (room left, row), sorted
    for document in sorted(map(int, documents), key=lambda i: (-lengths[i], i)):
        size = int(lengths[document])
        place = bisect.bisect_left(free, (size, -1))
        if place == len(free):
            rows.append([])
            left, row = room, len(rows) - 1
        else:
            left, row = free.pop(place)
        rows[row].append(document)
        if left > size:
            bisect.insort(free, (left - size, row))
    return rows
