"""How well a model predicts a split: bits per byte of the text, perplexity, word perplexity, accuracy.

Every token but the first of the stream is predicted exactly once, weighted equally, each document from its
own start. Batch and block sizes change nothing but rounding. Bits per byte counts what the tokenizer lost as
8 bits a byte, so that models with different vocabularies can be compared; perplexity cannot be, and so is
never shown without vocabulary and <unk> share.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from newllm_lib.console import Progress
from newllm_lib.device import probe
from newllm_lib.evaluation import batching as plan
from newllm_lib.generation.stateful import (
    autocast,
    eval_mode,
    is_recurrent,
    model_device,
    resets_at_documents,
    unwrapped,
    window,
)
from newllm_lib.ops.common.dispatch import autocast_dtype, runs_triton
from newllm_lib.ops.linear_cross_entropy.chunked import logits_of, row_scores, whole_eights

# UTF-8 bytes a word, above which spaces do not part words (English: 6, Finnish 8, Japanese lines 50 and more)
_LONGEST_WORDS = 24
LOGIT_BYTES = 256 * 2**20  # most bytes of float32 logits that exist at once, where a model gives all of them
# the same where the head reads some hidden states at a time: what fits a CPU's cache, or keeps a GPU busy
_SCORE_BYTES = {"cpu": 4 * 2**20, "cuda": 256 * 2**20}
_BLOCK = 128  # tokens of a row in one forward pass, at least
_TOKENS = {"cpu": 16 * _BLOCK, "cuda": 512 * _BLOCK}  # in one forward pass, at most
# and of a GPU's passes: tokens times hidden channels, so that training needs more memory
_CHANNELS = {"new_llm": 2**25}
_CHANNELS_OF_OTHERS = 2**24


@dataclass(frozen=True)
class Share:
    """The part of the documents that one of several processes predicts.

    Attributes:
        part: which one, from 0 on.
        parts: of how many.
        total: sums the counts of all parts, on every process.
    """

    part: int = 0
    parts: int = 1
    total: Callable[[dict], dict] = dict


def evaluate(
    model,
    split,
    tokenizer,
    *,
    batch_size: int | None = None,
    block_length: int | None = None,
    dtype: str | torch.dtype | None = None,
    health: bool = True,
    share: Share = Share(),
) -> dict:
    """Predict the whole of `split` with `model`.

    Args:
        split: a `PackedSplit`; where it has a loss mask, only the tokens it marks are counted.
        batch_size: rows in one forward pass (default: what suits the device).
        block_length: tokens of a row in one forward pass. No model of ours ever has whole logits; with
            another's both are lowered where they would need more than 256 MiB.
        dtype: of matrix products (see `generation.stateful.autocast`); default: as the weights are.
        share: what this process predicts of it (default: all).
        health: for a model with a state, also report how alive its context vectors are (`context_*`, see
            health.py).

    Returns:
        loss (nats a token), bits_per_byte, perplexity, word_perplexity (but where spaces part no words, as
        in Japanese), accuracy, vocab_size, unk_share,
        tokens (counted), bytes, lost_bytes, words, documents, lower_cased, and the `context_*` keys.

    Raises:
        NewLLMError: the split has no token to predict.
    """
    result, context_health = measure(
        model,
        split,
        tokenizer,
        batch_size=batch_size,
        block_length=block_length,
        dtype=dtype,
        share=share,
    )
    return result | context_health() if health else result


def measure(model, split, tokenizer, *, share: Share = Share(), **how) -> tuple[dict, Callable[[], dict]]:
    """As `evaluate`: its figures, and a function that waits for those of the context vectors.

    Args:
        how: `batch_size`, `block_length` and `dtype` of `evaluate`.
    """
    device, dtype = model_device(model), how.get("dtype")
    passes = _Passes(model, split, how.get("batch_size"), how.get("block_length"), share)
    counts = _Counts(split, tokenizer, model, passes.head)
    progress = Progress("evaluating", total=len(split.ids) - 1, unit="tokens")
    with eval_mode(model), autocast(device, dtype), _watch(model, split, tokenizer) as seen:
        done = 0
        for offsets, output in passes.run(seen):
            counts.add(output, offsets)
            done += int((offsets >= 0).sum())
            progress.update(done * share.parts)
    result = figures(split, tokenizer, **share.total(counts.totals()))
    return result, seen.begin()


def _watch(model, split, tokenizer):
    from newllm_lib.evaluation.health import ContextWatch

    return ContextWatch(model, tokenizer.bos_token_id, len(split.ids) - 1)


class _Passes:
    """The forward passes in which a model reads its share of a split.

    Attributes:
        head: what turns hidden states into logits, of a model of ours; None: the passes give logits.
    """

    def __init__(self, model, split, batch_size: int | None, block_length: int | None, share: Share):
        self.model, self.split, self.device = model, split, model_device(model)
        self.has_state, self.head = is_recurrent(model), _own_head(model)
        starts, lengths = plan.document_pieces(split)
        size = window(model)
        if size is not None:
            starts, lengths = plan.cut_to_windows(starts, lengths, size)
        if share.parts > 1:
            starts, lengths = plan.dealt_out(starts, lengths, share.part, share.parts)
        self.starts, self.lengths = starts, lengths
        self.rows, self.time = self._sizes(batch_size, block_length, size) if len(starts) else (1, 1)

    def _sizes(self, batch_size: int | None, block_length: int | None, size: int | None) -> tuple[int, int]:
        """Rows and tokens of a row in one pass: as much as the device likes, whatever the vocabulary."""
        positions = _TOKENS.get(self.device.type, _TOKENS["cpu"])
        if self.device.type != "cpu":
            most = _CHANNELS.get(getattr(self.model.config, "model_type", ""), _CHANNELS_OF_OTHERS)
            positions = min(positions, max(8 * _BLOCK, most // _channels(self.model)))
        if self.head is None:
            positions = min(positions, max(1, LOGIT_BYTES // (4 * self.model.config.vocab_size)))
        longest, total = int(self.lengths.max()), int(self.lengths.sum())
        least = min(block_length or size or _BLOCK, total if self.has_state else longest, positions)
        rows = max(1, min(batch_size or positions, positions // least, len(self.starts)))
        if block_length or not self.has_state:
            return rows, least
        # No more rows than are as long as the longest document: the last passes would be of that one alone.
        rows = min(rows, max(1, total // longest))
        most = positions if _takes_long_blocks(self.model) else 4 * _BLOCK
        return rows, max(least, min(most, positions // rows, -(-total // rows)))

    def run(self, seen) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        """Pass after pass: the inputs' offsets (rows, time), and the hidden states (or logits) there."""
        if not len(self.starts):
            return
        groups: Iterable[list[plan.Row]]
        if self.has_state and resets_at_documents(self.model):
            groups = [plan.balanced_rows(self.starts, self.lengths, self.rows)]
        else:
            groups = plan.grouped_by_length(self.starts, self.lengths, self.rows)
        name = "state" if self.has_state else "past_key_values"
        for rows in groups:
            carried = None
            one_block = rows[0].length <= self.time
            for offsets in plan.blocks(rows, self.time, shrink=self.has_state):
                if self.has_state and carried is not None:
                    carried = carried[: len(offsets)]
                ids = _tokens(self.split, offsets)
                seen.expect(ids, offsets)
                with _headless(self.head):
                    output = self.model(
                        input_ids=torch.from_numpy(ids).to(self.device),
                        use_cache=not one_block,
                        **{name: carried},
                    )
                carried = None if one_block else getattr(output, name)
                yield offsets, output.logits


def _own_head(model):
    """The head of a model of ours, whose logits are its product with the hidden states and nothing more."""
    own = unwrapped(model)
    return own.lm_head if getattr(own.config, "model_type", "") in _OURS else None


_OURS = ("new_llm", "phase7", "tiny_gpt2")


def _takes_long_blocks(model) -> bool:
    """Whether nothing in it grows with the square of a block's length here."""
    if model.config.model_type == "new_llm":
        return True
    flash = getattr(model.config, "flash_attention", False) and probe().tensor_core_dot
    return bool(flash and runs_triton(next(model.parameters())))


def _channels(model) -> int:
    return getattr(model.config, "hidden_size", 1024)


@contextlib.contextmanager
def _headless(head) -> Iterator[None]:
    """Within it the model gives the hidden states that its head would read as its logits."""
    if head is None:
        yield
        return
    head.forward = lambda hidden: hidden
    try:
        yield
    finally:
        del head.forward


def _tokens(split, offsets: np.ndarray) -> np.ndarray:
    """Token ids (rows, time) at `offsets`; after a row's end padding, whose predictions do not count."""
    return np.where(offsets >= 0, split.ids[np.maximum(offsets, 0)], split.ids[0]).astype(np.int64)


class _Counts:
    """Sums over the counted predictions, on the device until the end so that nothing synchronises."""

    def __init__(self, split, tokenizer, model, head):
        self.split, self.head, self.unk = split, head, unknown_id(tokenizer)
        self.device = device = model_device(model)
        self.vocabulary = model.config.vocab_size
        self.words: torch.Tensor | None = None  # the head's rows (vocabulary, dim), formed once
        self.nll = torch.zeros((), dtype=torch.float64, device=device)
        self.correct = torch.zeros((), dtype=torch.long, device=device)
        self.tokens = self.unknown = 0

    def add(self, output: torch.Tensor, offsets: np.ndarray) -> None:
        """Hidden states, or logits, (rows, time, …) of the inputs at `offsets`."""
        place, targets = counted_targets(self.split, offsets.ravel())
        self.tokens += len(targets)
        self.unknown += int((targets == self.unk).sum())
        places = torch.from_numpy(place).to(self.device)
        following = torch.from_numpy(targets).to(self.device)
        output = output.reshape(-1, output.shape[-1])
        rows = max(1, _SCORE_BYTES.get(self.device.type, _SCORE_BYTES["cpu"]) // (4 * self.vocabulary))
        for some, wanted in zip(places.split(rows), following.split(rows), strict=True):
            logits = output[some] if self.head is None else self._logits(output[some])
            losses, hits = row_scores(logits, wanted)
            self.correct += hits.sum()
            self.nll += losses.sum(dtype=torch.float64)

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """What the head would say, in autocast's dtype; its matrix is made or cast once for all chunks."""
        if self.words is None:
            words = self.head.weight.to(autocast_dtype(hidden))
            self.words = whole_eights(words) if words.is_cuda else words
        return logits_of(hidden.to(self.words.dtype), self.words)[:, : self.vocabulary]

    def totals(self) -> dict:
        return {
            "nll": float(self.nll),
            "correct": int(self.correct),
            "tokens": self.tokens,
            "unknown": self.unknown,
        }


def counted_targets(split, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which of the inputs at `offsets` (-1: none) predict a token that counts, and those tokens (int64)."""
    place = np.flatnonzero(offsets >= 0)
    following = offsets[place] + 1
    if split.loss_mask is not None:
        kept = split.loss_mask[following] != 0
        place, following = place[kept], following[kept]
    return place, split.ids[following].astype(np.int64)


def unknown_id(tokenizer) -> int:
    """Id of <unk>, or -1 where text never gives it (as with GPT-2, whose unknown token is <|endoftext|>)."""
    unk = tokenizer.unk_token_id
    return -1 if unk is None or unk in (tokenizer.bos_token_id, tokenizer.eos_token_id) else unk


def figures(split, tokenizer, *, nll: float, correct: int, tokens: int, unknown: int) -> dict:
    """The reported figures from sums over the counted tokens (`nll` in nats).

    bits_per_byte = (nll / ln 2 + 8 lost_bytes) / bytes; word_perplexity = exp((nll + 8 ln 2 lost_bytes) /
    words).
    """
    nll_with_spelling = nll + 8 * math.log(2) * split.lost_bytes
    return {
        "loss": _ratio(nll, tokens),
        "bits_per_byte": _ratio(nll_with_spelling / math.log(2), split.bytes),
        "perplexity": _exp(_ratio(nll, tokens)),
        **_word_perplexity(nll_with_spelling, split),
        "accuracy": _ratio(correct, tokens),
        "vocab_size": len(tokenizer),
        "unk_share": _ratio(unknown, tokens),
        "tokens": tokens,
        "bytes": int(split.bytes),
        "lost_bytes": int(split.lost_bytes),
        "words": int(split.words),
        "documents": int(split.documents),
        "lower_cased": bool(split.lower_cased),
    }


def _word_perplexity(nll: float, split) -> dict[str, float]:
    """None where the text has hardly any spaces: there it would be a figure of hundreds of digits."""
    if split.bytes > _LONGEST_WORDS * split.words:
        return {}
    return {"word_perplexity": _exp(_ratio(nll, split.words))}


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def _exp(nats: float) -> float:
    return math.exp(nats) if nats < 700 else math.inf


def describe(metrics: dict) -> str:
    """One line for people. Bits per byte always; perplexity only with its vocabulary size and <unk> share."""
    text = "lower-cased text" if metrics["lower_cased"] else "text"
    parts = [
        f"{metrics['bits_per_byte']:.4f} bits per byte of the {text}",
        f"perplexity {metrics['perplexity']:.2f} (vocabulary {metrics['vocab_size']:,}, "
        f"<unk> {metrics['unk_share']:.1%} of the tokens)",
        *([f"word perplexity {metrics['word_perplexity']:.1f}"] if "word_perplexity" in metrics else []),
        f"accuracy {metrics['accuracy']:.1%}",
        f"{metrics['tokens']:,} tokens, {metrics['bytes']:,} bytes",
    ]
    if metrics.get("protocol") == "seed":
        parts[1] += ", which is the seed's metric: a right guess of <unk> counts as right"
    return " | ".join(parts)
