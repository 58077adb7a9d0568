"""What counting alone predicts: the training split's unigrams and bigrams, on the models' tokens.

Both are Witten-Bell interpolated (Witten & Bell 1991; Chen & Goodman 1998, section 2.4): a context h that was
seen with T(h) different followers gives them the weight c(h) / (c(h) + T(h)) and the next simpler model the
rest,

    bigram   P(w | h) = (c(h, w) + T(h) P(w)) / (c(h) + T(h)),      P(w | h) = P(w) for a context never seen
    unigram  P(w)     = (c(w) + T / V) / (N + T)

with V the size of the vocabulary (the uniform floor), N the counted tokens of the training split, T how many
different ones. Where a split has a loss mask, only the targets that it marks are counted, as in the models'
loss. Documents start with <|endoftext|>, so no pair spans two of them. Everything is numpy over bounded
pieces of the memory-mapped stream.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from newllm_lib.console import Progress
from newllm_lib.evaluation.metrics import counted_targets, figures, unknown_id

_CHUNK = 2_000_000  # tokens of a stream in memory at once
_PAIRS = 16_000_000  # different pairs counted at once; more means more passes over the training split


def unigram(train, split, tokenizer) -> dict:
    """Figures (as `metrics.evaluate`) of the smoothed unigram of `train` on `split`."""
    vocabulary = len(tokenizer)
    probability = _unigram(_target_counts(train, vocabulary))
    wanted = _target_counts(split, vocabulary)
    seen = wanted > 0
    nll = -float(wanted[seen] @ np.log(probability[seen]))
    return _figures(split, tokenizer, wanted, nll, int(wanted[probability.argmax()]))


def bigram(train, split, tokenizer) -> dict:
    """Figures (as `metrics.evaluate`) of the Witten-Bell interpolated bigram of `train` on `split`."""
    vocabulary = len(tokenizer)
    probability = _unigram(_target_counts(train, vocabulary))
    wanted, times = _pairs(split, vocabulary, 0, vocabulary)
    nll, correct = 0.0, 0
    for low, high in _context_ranges(train, vocabulary):
        first, last = np.searchsorted(wanted, [low * vocabulary, high * vocabulary])
        keys, counts = _pairs(train, vocabulary, low, high)
        part = _score(keys, counts, wanted[first:last], times[first:last], probability)
        nll, correct = nll + part[0], correct + part[1]
    return _figures(split, tokenizer, _target_counts(split, vocabulary), nll, correct)


def _figures(split, tokenizer, wanted: np.ndarray, nll: float, correct: int) -> dict:
    unk = unknown_id(tokenizer)
    unknown = int(wanted[unk]) if unk >= 0 else 0
    return figures(split, tokenizer, nll=nll, correct=correct, tokens=int(wanted.sum()), unknown=unknown)


def _unigram(counts: np.ndarray) -> np.ndarray:
    """P(w) (vocab,) from the counts (vocab,) of the training targets."""
    total, types = counts.sum(), np.count_nonzero(counts)
    if total == 0:
        return np.full(len(counts), 1 / len(counts))
    return (counts + types / len(counts)) / (total + types)


def _score(keys, counts, wanted, times, unigram) -> tuple[float, int]:
    """Summed -log P (nats) and right guesses for the sorted keys `wanted` (h * V + w), `times` times each."""
    if not len(wanted):
        return 0.0, 0
    vocabulary = len(unigram)
    edges = np.flatnonzero(np.diff(keys // vocabulary, prepend=-1))  # where each context's pairs begin
    contexts = keys[edges] // vocabulary
    total = np.add.reduceat(counts, edges) if len(keys) else counts
    types = np.diff(np.append(edges, len(keys)))
    best = _best_followers(keys, counts, edges, types, unigram)

    context, follower = np.divmod(wanted, vocabulary)
    pair, paired = _find(keys, wanted)
    row, known = _find(contexts, context)
    count = np.where(paired, _at(counts, pair), 0)
    c, t = np.where(known, _at(total, row), 0), np.where(known, _at(types, row), 1)
    probability = (count + t * unigram[follower]) / (c + t)
    guess = np.where(known, _at(best, row), unigram.argmax())
    return -float(times @ np.log(probability)), int(times[guess == follower].sum())


def _best_followers(keys, counts, edges, types, unigram) -> np.ndarray:
    """The most probable follower of each context; where it was never seen, the most frequent token."""
    if not len(keys):
        return np.zeros(0, np.int64)
    vocabulary, top = len(unigram), int(unigram.argmax())
    weight = counts + np.repeat(types, types) * unigram[keys % vocabulary]
    highest = np.maximum.reduceat(weight, edges)
    is_best = weight == np.repeat(highest, types)
    first = np.minimum.reduceat(np.where(is_best, keys % vocabulary, vocabulary), edges)
    return np.where(types * unigram[top] > highest, top, first)


def _find(sorted_keys: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index of each wanted key, and whether it is there."""
    index = np.searchsorted(sorted_keys, wanted)
    index = np.minimum(index, max(0, len(sorted_keys) - 1))
    return index, _at(sorted_keys, index) == wanted if len(sorted_keys) else np.zeros(len(wanted), bool)


def _at(values: np.ndarray, index: np.ndarray) -> np.ndarray:
    return values[index] if len(values) else np.zeros(len(index), np.int64)


def _target_counts(split, vocabulary: int) -> np.ndarray:
    """How often each token (vocab,) is a counted target."""
    counts = np.zeros(vocabulary, np.int64)
    for offsets in _chunks(split):
        counts += np.bincount(counted_targets(split, offsets)[1], minlength=vocabulary)
    return counts


def _pairs(split, vocabulary: int, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
    """Different pairs as keys h * V + w (sorted, int64) with low <= h < high, and how often each is seen.

    Chunks are merged as equals (sizes double, as in merge sort), so that each pair is moved only log(chunks)
    times.
    """
    runs: list[tuple[int, np.ndarray, np.ndarray]] = []  # (level, keys, counts)
    progress = Progress("counting pairs", total=len(split.ids), unit="tokens")
    for offsets in _chunks(split):
        place, targets = counted_targets(split, offsets)
        contexts = split.ids[offsets[place]].astype(np.int64)
        inside = (contexts >= low) & (contexts < high)
        keys, counts = np.unique(contexts[inside] * vocabulary + targets[inside], return_counts=True)
        level = 0
        while runs and runs[-1][0] == level:
            keys, counts = _merge(keys, counts, *runs.pop()[1:])
            level += 1
        runs.append((level, keys, counts))
        progress.update(int(offsets[-1]))
    while len(runs) > 1:
        newest, older = runs.pop(), runs.pop()
        runs.append((older[0], *_merge(*newest[1:], *older[1:])))
    return runs[0][1:] if runs else (np.zeros(0, np.int64), np.zeros(0, np.int64))


def _merge(keys, counts, more_keys, more_counts) -> tuple[np.ndarray, np.ndarray]:
    keys, counts = np.concatenate([keys, more_keys]), np.concatenate([counts, more_counts])
    order = np.argsort(keys, kind="stable")
    keys, counts = keys[order], counts[order]
    edges = np.flatnonzero(np.diff(keys, prepend=-1))
    return keys[edges], np.add.reduceat(counts, edges) if len(keys) else counts


def _context_ranges(split, vocabulary: int) -> Iterator[tuple[int, int]]:
    """Ranges low..high of contexts that cover the vocabulary, each of about `_PAIRS` distinct pairs."""
    seen = np.zeros(vocabulary, np.int64)
    for offsets in _chunks(split):
        seen += np.bincount(split.ids[offsets], minlength=vocabulary)
    most = np.cumsum(np.minimum(seen, vocabulary))
    low = 0
    while low < vocabulary:
        below = most[low - 1] if low else 0
        high = max(low + 1, int(np.searchsorted(most, below + _PAIRS, side="right")))
        yield low, high
        low = high


def _chunks(split) -> Iterator[np.ndarray]:
    """Offsets of all inputs of the stream, a bounded number at a time."""
    last = len(split.ids) - 1
    for begin in range(0, last, _CHUNK):
        yield np.arange(begin, min(begin + _CHUNK, last), dtype=np.int64)
