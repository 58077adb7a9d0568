"""How a split's documents go through a model, so that every token but the first is predicted once.

A model that clears its state at <|endoftext|> reads many documents one after the other in each row of the
batch, with its state carried from block to block: no padding but at the rows' ends. Any other model reads one
document, or one window of a document, in a row. Rows are padded at the right, where nothing that counts can
see it.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import replace
from hashlib import blake2b

import numpy as np

from newllm_lib.errors import NewLLMError

_WIDTH = 16


class Row:
    """Pieces of the stream, read in turn: piece i has `lengths[i]` inputs from offset `starts[i]` on."""

    def __init__(self, starts: np.ndarray, lengths: np.ndarray):
        self.starts = np.asarray(starts, dtype=np.int64)
        self.ends = np.cumsum(lengths, dtype=np.int64)  # in positions of the row
        self.length = int(self.ends[-1])

    def offsets(self, begin: int, end: int) -> np.ndarray:
        """Offsets in the stream of the row's positions begin..end (end excluded, cut at its length)."""
        position = np.arange(begin, min(end, self.length), dtype=np.int64)
        piece = np.searchsorted(self.ends, position, side="right")
        before = np.concatenate([[0], self.ends[:-1]])
        return self.starts[piece] + position - before[piece]


def document_pieces(split) -> tuple[np.ndarray, np.ndarray]:
    """Offset and number of inputs of each document: it predicts up to the next <|endoftext|>, included.

    Raises:
        NewLLMError: the split has no token to predict.
    """
    last = len(split.ids) - 1  # the stream's last token is a target only
    if last < 1:
        raise NewLLMError(
            "This split has no text to evaluate: choose another split or check the data folder."
        )
    starts = np.asarray(split.document_starts, dtype=np.int64)
    starts = starts[starts < last]
    if not len(starts) or starts[0] != 0:
        starts = np.concatenate([np.zeros(1, np.int64), starts])
    return starts, np.diff(np.append(starts, last))


def subset(split, tokens: int):
    """Some documents of a split, the same ones for the same text, that predict `tokens` tokens in all.

    They are chosen by hash; the last one is cut. Bytes and words are not counted again: a token that counts
    is taken to stand for as many as it does in the whole text.

    Returns:
        the `PackedSplit`; `split` itself where it has no more than that.
    """
    starts, lengths = document_pieces(split)
    if lengths.sum() <= tokens:
        return split
    keys = [blake2b(split.ids[s : s + n].tobytes()).digest() for s, n in zip(starts, lengths, strict=True)]
    order = np.array(sorted(range(len(keys)), key=keys.__getitem__))
    count = int(np.searchsorted(np.cumsum(lengths[order]), tokens)) + 1
    starts, lengths = starts[order[:count]], lengths[order[:count]].copy()
    lengths[-1] -= lengths.sum() - tokens
    taken = np.concatenate([np.arange(s, s + n) for s, n in zip(starts, lengths, strict=True)])
    taken = np.append(taken, starts[-1] + lengths[-1])  # what the last one predicts
    mask = None if split.loss_mask is None else split.loss_mask[taken]
    share = tokens / (split.tokens - 1)
    if mask is not None:
        share = float(mask[1:].sum()) / max(1, int((split.loss_mask[1:] != 0).sum()))
    counts = {name: round(share * getattr(split, name)) for name in ("bytes", "lost_bytes", "words")}
    return replace(
        split,
        ids=split.ids[taken],
        document_starts=np.concatenate([[0], np.cumsum(lengths)[:-1]]),
        loss_mask=mask,
        documents=count,
        **counts,
    )


def cut_to_windows(starts: np.ndarray, lengths: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The same pieces in non-overlapping windows of at most `size` inputs from each document's start."""
    windows = -(-lengths // size)
    piece = np.repeat(np.arange(len(starts)), windows)
    within = np.arange(len(piece)) - np.repeat(np.cumsum(windows) - windows, windows)
    return starts[piece] + within * size, np.minimum(size, lengths[piece] - within * size)


def dealt_out(
    starts: np.ndarray, lengths: np.ndarray, part: int, parts: int
) -> tuple[np.ndarray, np.ndarray]:
    """Part `part` of `parts` of the pieces, dealt out by length, so that the parts take about as long."""
    mine = np.sort(np.argsort(-lengths, kind="stable")[part::parts])
    return starts[mine], lengths[mine]


def balanced_rows(starts: np.ndarray, lengths: np.ndarray, count: int) -> list[Row]:
    """All documents over `count` rows of nearly equal length, the longest row first."""
    count = min(count, len(starts))
    # the longest document goes to the row that is shortest so far
    heap = [(0, row) for row in range(count)]
    members: list[list[int]] = [[] for _ in range(count)]
    for document in np.argsort(-lengths, kind="stable"):
        length, row = heapq.heappop(heap)
        members[row].append(document)
        heapq.heappush(heap, (length + int(lengths[document]), row))
    rows = [Row(starts[m], lengths[m]) for m in members]
    return sorted(rows, key=lambda row: -row.length)


def grouped_by_length(starts: np.ndarray, lengths: np.ndarray, batch_size: int) -> Iterator[list[Row]]:
    """Batches of one piece a row, of similar lengths, the longest first."""
    order = np.argsort(-lengths, kind="stable")
    for begin in range(0, len(order), batch_size):
        yield [Row(starts[[i]], lengths[[i]]) for i in order[begin : begin + batch_size]]


def blocks(rows: list[Row], block_length: int, shrink: bool) -> Iterator[np.ndarray]:
    """Offsets (rows, time) of the inputs of one block after the other, -1 where a row has ended.

    Args:
        rows: the batch's rows, sorted, the longest first.
        shrink: leave out rows that have ended (the rest stay the first rows, so a carried state is cut to
            them).
    """
    for begin in range(0, rows[0].length, block_length):
        going_on = [row for row in rows if row.length > begin] if shrink else rows
        left = rows[0].length - begin
        if shrink:  # no window ends there, and kernels are compiled for few widths
            left = -(-left // _WIDTH) * _WIDTH
        width = min(block_length, left)
        offsets = np.full((len(going_on), width), -1, dtype=np.int64)
        for place, row in zip(offsets, going_on, strict=True):
            found = row.offsets(begin, begin + width)
            place[: len(found)] = found
        yield offsets
