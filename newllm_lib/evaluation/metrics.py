"""How well a model predicts a split: bits per byte of the text, perplexity, word perplexity, accuracy.

Every token but the first of the stream is predicted exactly once, weighted equally, each document from its
own start. Batch and block sizes change nothing but rounding. Bits per byte counts what the tokenizer lost as
8 bits a byte, so that models with different vocabularies can be compared; perplexity cannot be, and so is
never shown without vocabulary and <unk> share.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from newllm_lib.console import Progress
from newllm_lib.evaluation import batching as plan
from newllm_lib.generation.stateful import (
    autocast,
    eval_mode,
    is_recurrent,
    model_device,
    resets_at_documents,
    window,
)

LOGIT_BYTES = 256 * 2**20  # most bytes of float32 logits that exist at once
# UTF-8 bytes a word, above which spaces do not part words (English: 6, Finnish 8, Japanese lines 50 and more)
_LONGEST_WORDS = 24
# of them, how many are turned into probabilities at once: what fits a CPU's cache, or keeps a GPU busy
_SCORE_BYTES = {"cpu": 4 * 2**20, "cuda": 64 * 2**20}


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
        block_length: tokens a row in one forward pass; both are lowered where the logits would need more than
            256 MiB.
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
    device = model_device(model)
    batch_size = batch_size or (16 if device.type == "cpu" else 128)
    counts = _Counts(split, tokenizer, device)
    progress = Progress("evaluating", total=len(split.ids) - 1, unit="tokens")
    with eval_mode(model), autocast(device, dtype):
        done = 0
        for logits, offsets in _predictions(model, split, batch_size, block_length, device, share):
            counts.add(logits, offsets)
            done += int((offsets >= 0).sum())
            progress.update(done * share.parts)
    result = figures(split, tokenizer, **share.total(counts.totals()))
    if health and getattr(model.config, "context_dim", None):
        from newllm_lib.evaluation.health import context_health

        result |= context_health(model, split, tokenizer, dtype=dtype)
    return result


def _predictions(
    model, split, batch_size, block_length, device, share: Share
) -> Iterator[tuple[torch.Tensor, np.ndarray]]:
    """Logits (rows, time, vocab) and the offsets (rows, time) of their inputs, block after block."""
    starts, lengths = plan.document_pieces(split)
    size, has_state = window(model), is_recurrent(model)
    if size is not None:
        starts, lengths = plan.cut_to_windows(starts, lengths, size)
    if share.parts > 1:
        starts, lengths = plan.dealt_out(starts, lengths, share.part, share.parts)
        if not len(starts):
            return
    longest = int(lengths.max()) if not has_state else int(lengths.sum())
    positions = max(1, LOGIT_BYTES // (4 * model.config.vocab_size))
    time = min(block_length or size or 128, longest, positions)
    rows = max(1, min(batch_size, positions // time))
    groups: Iterable[list[plan.Row]]
    if has_state and resets_at_documents(model):
        groups = [plan.balanced_rows(starts, lengths, rows)]
    else:
        groups = plan.grouped_by_length(starts, lengths, rows)
    name = "state" if has_state else "past_key_values"
    for lanes in groups:
        carried = None
        one_block = lanes[0].length <= time
        for offsets in plan.blocks(lanes, time, shrink=has_state):
            if has_state and carried is not None:
                carried = carried[: len(offsets)]
            output = model(
                input_ids=_tokens(split, offsets, device), use_cache=not one_block, **{name: carried}
            )
            carried = None if one_block else getattr(output, name)
            yield output.logits, offsets


def _tokens(split, offsets: np.ndarray, device) -> torch.Tensor:
    """Token ids (rows, time) at `offsets`; after a row's end padding, whose predictions do not count."""
    ids = np.where(offsets >= 0, split.ids[np.maximum(offsets, 0)], split.ids[0])
    return torch.from_numpy(ids.astype(np.int64)).to(device)


class _Counts:
    """Sums over the counted predictions, on the device until the end so that nothing synchronises."""

    def __init__(self, split, tokenizer, device):
        self.split, self.device, self.unk = split, device, unknown_id(tokenizer)
        self.nll = torch.zeros((), dtype=torch.float64, device=device)
        self.correct = torch.zeros((), dtype=torch.long, device=device)
        self.tokens = self.unknown = 0

    def add(self, logits: torch.Tensor, offsets: np.ndarray) -> None:
        place, targets = counted_targets(self.split, offsets.ravel())
        self.tokens += len(targets)
        self.unknown += int((targets == self.unk).sum())
        places = torch.from_numpy(place).to(self.device)
        wanted_ids = torch.from_numpy(targets).to(self.device)
        logits = logits.reshape(-1, logits.shape[-1])
        rows = max(1, _SCORE_BYTES.get(self.device.type, 4 * 2**20) // (4 * logits.shape[-1]))
        for some, wanted in zip(places.split(rows), wanted_ids.split(rows), strict=True):
            scores = logits[some].float()
            log_probability = scores.gather(1, wanted[:, None]).squeeze(1) - scores.logsumexp(1)
            self.nll -= log_probability.sum(dtype=torch.float64)
            self.correct += (scores.argmax(1) == wanted).sum()

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
