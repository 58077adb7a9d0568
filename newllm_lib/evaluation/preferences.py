"""How far a model prefers the better answers: log-probabilities of both sides of held-out pairs.

    margin     log p(chosen) - log p(rejected), in nats: the model's own preference
    accuracy   share of the pairs whose margin is above 0 (at 0: half)
    reward     beta times what training has added to a log-probability; the DPO loss is
               -log sigmoid(reward margin); KTO's and ORPO's are below

Accuracy and margin mean the same before and after. (TRL's reward accuracy does not: before training all
rewards are 0.) Intervals are of 95 %, by resampling groups of pairs (all pairs about one fact together):
pairs about one fact err together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from newllm_lib.data.preferences import Pair
from newllm_lib.generation.stateful import autocast, eval_mode, model_device, unwrapped

SIDES = ("chosen_ids", "rejected_ids")
_RESAMPLES = 1000
_TOKENS = 8192  # read at once, at most
_LOGITS = 16_000_000  # made at once, at most: 64 MB in float32


def pair_log_probs(model, rows: Sequence[dict], pad_id: int, dtype=None) -> torch.Tensor:
    """Summed log-probabilities (pairs, 2) in nats of chosen and rejected answers, in float64.

    Args:
        rows: prompt_ids, chosen_ids, rejected_ids of each pair (and rejected_prompt_ids, where the rejected
            answer belongs to another prompt).
        dtype: of matrix products; default: as the weights are.
    """
    sequences = [(prompt_of(row, side), row[side]) for row in rows for side in SIDES]
    return answer_log_probs(model, sequences, pad_id, dtype).reshape(-1, 2)


def prompt_of(row: dict, side: str) -> list[int]:
    """Token ids of what one side of a pair answers."""
    return row.get("rejected_prompt_ids", row["prompt_ids"]) if side == "rejected_ids" else row["prompt_ids"]


def answer_log_probs(
    model, sequences: Sequence[tuple[list[int], list[int]]], pad_id: int, dtype=None
) -> torch.Tensor:
    """Summed log-probabilities (sequences,) in nats of answers, each after its prompt, in float64.

    Args:
        sequences: token ids of prompt and answer.
        dtype: of matrix products; default: as the weights are.
    """
    result = torch.empty(len(sequences), dtype=torch.float64)
    by_length = sorted(range(len(sequences)), key=lambda i: -len(sequences[i][0]) - len(sequences[i][1]))
    with eval_mode(model), autocast(model_device(model), dtype):
        body, head = _body_and_head(model)
        tokens = _TOKENS if head is not None else _LOGITS // model.config.vocab_size
        while by_length:
            longest = sequences[by_length[0]]
            at_once = max(1, tokens // (len(longest[0]) + len(longest[1])))
            part, by_length = by_length[:at_once], by_length[at_once:]
            found = _answer_log_probs(body, head, [sequences[i] for i in part], pad_id, model_device(model))
            result[part] = found.double().cpu()
    return result


def pair_rewards(model, rows: Sequence[dict], pad_id: int, dtype=None) -> torch.Tensor:
    """What a reward model gives (pairs, 2) chosen and rejected answers, in float64; arguments as
    `pair_log_probs`."""
    texts = [prompt_of(row, side) + row[side] for row in rows for side in SIDES]
    return text_rewards(model, texts, pad_id, dtype).reshape(-1, 2)


def text_rewards(model, texts: Sequence[list[int]], pad_id: int, dtype=None) -> torch.Tensor:
    """What a reward model gives texts (texts,) of token ids, in float64."""
    result = torch.empty(len(texts), dtype=torch.float64)
    by_length = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    with eval_mode(model), autocast(model_device(model), dtype):
        while by_length:
            at_once = max(1, _TOKENS // len(texts[by_length[0]]))
            part, by_length = by_length[:at_once], by_length[at_once:]
            width = len(texts[part[0]])
            ids = torch.tensor([texts[i] + [pad_id] * (width - len(texts[i])) for i in part])
            mask = torch.tensor([[1] * len(texts[i]) + [0] * (width - len(texts[i])) for i in part])
            device = model_device(model)
            found = model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False)
            result[part] = found.logits[:, 0].double().cpu()
    return result


def _body_and_head(model):
    """The backbone and the head of a model, so that only answers need logits; the whole model and None where
    these are not the head's as they are, but scaled or capped after it (tried on two tokens), or there are no
    such parts."""
    whole = unwrapped(model)
    body, head = whole.base_model, whole.get_output_embeddings()
    if body is whole or not isinstance(head, torch.nn.Linear):
        return whole, None
    ids = torch.tensor([[0, 1]], device=model_device(model))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
    apart = head(body(**inputs).last_hidden_state)
    return (body, head) if torch.equal(apart.float(), whole(**inputs).logits.float()) else (whole, None)


def _answer_log_probs(
    body, head, sequences: list[tuple[list[int], list[int]]], pad_id: int, device
) -> torch.Tensor:
    """(sequences,): log p(answer | prompt), padding on the right. Without a head, `body` gives logits."""
    width = max(len(prompt) + len(answer) for prompt, answer in sequences)
    ids = torch.full((len(sequences), width), pad_id)
    is_answer = torch.zeros(len(sequences), width, dtype=torch.bool)
    mask = torch.zeros(len(sequences), width, dtype=torch.long)
    for i, (prompt, answer) in enumerate(sequences):
        end = len(prompt) + len(answer)
        ids[i, :end] = torch.tensor(prompt + answer)
        mask[i, :end] = 1
        is_answer[i, len(prompt) : end] = True
    ids, mask, is_answer = ids.to(device), mask.to(device), is_answer[:, 1:].to(device)
    output = body(input_ids=ids, attention_mask=mask, use_cache=False)
    read = output.logits if head is None else output.last_hidden_state
    said = torch.zeros(is_answer.shape, device=device)
    said[is_answer] = _token_log_probs(head, read[:, :-1][is_answer], ids[:, 1:][is_answer])
    return said.sum(-1)


def _token_log_probs(head, read: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """(tokens,) in float32: log p of each, from the head's logits in pieces (no head: from `read`)."""
    at_once = max(1, _LOGITS // (read.shape[-1] if head is None else head.weight.shape[0]))
    found = []
    for piece, wanted in zip(read.split(at_once), tokens.split(at_once), strict=True):
        logits = (piece if head is None else head(piece)).float()
        found.append(logits.gather(-1, wanted[:, None]).squeeze(-1) - logits.logsumexp(-1))
    return torch.cat(found)


def preference_metrics(
    log_probs: torch.Tensor,
    reference: torch.Tensor,
    pairs: Sequence[Pair],
    beta: float,
    losses: torch.Tensor | None = None,
) -> dict:
    """Figures of log-probabilities (pairs, 2) beside the base model's.

    Args:
        losses: (pairs,) of the task; default: of plain DPO.

    Returns:
        pairs, accuracy, margin, reward_accuracy, reward_margin, loss, chosen and rejected (mean
        log-probabilities), each with `_low` and `_high`; and `kinds`: pairs, accuracy and margin with their
        intervals for each kind. Of answers to two prompts the margin is what training has added to it:
        their probabilities cannot be compared.
    """
    gained = log_probs - reference
    apart = torch.tensor([bool(pair.rejected_prompt) for pair in pairs])
    compared = torch.where(apart[:, None], gained, log_probs)
    margins = (compared[:, 0] - compared[:, 1]).numpy()
    reward_margins = beta * (gained[:, 0] - gained[:, 1])
    if losses is None:
        losses = dpo_losses(log_probs, reference, beta)
    groups = [pair.group or str(i) for i, pair in enumerate(pairs)]
    result: dict[str, Any] = {"pairs": len(pairs), **_intervals(margins, groups)}
    for name, values in (
        ("reward_accuracy", _right(reward_margins.numpy())),
        ("reward_margin", reward_margins.numpy()),
        ("loss", losses.numpy()),
        ("chosen", log_probs[:, 0].numpy()),
        ("rejected", log_probs[:, 1].numpy()),
    ):
        result |= _with_interval(name, values, groups)
    kinds = sorted({pair.kind for pair in pairs} - {""})
    if kinds:
        result["kinds"] = {}
    for kind in kinds:
        here = [i for i, pair in enumerate(pairs) if pair.kind == kind]
        result["kinds"][kind] = {"pairs": len(here), **_intervals(margins[here], [groups[i] for i in here])}
    return result


def dpo_losses(log_probs: torch.Tensor, reference: torch.Tensor, beta: float) -> torch.Tensor:
    """(pairs,): plain DPO's loss."""
    gained = log_probs - reference
    return -functional.logsigmoid(beta * (gained[:, 0] - gained[:, 1]))


def kto_losses(log_probs: torch.Tensor, reference: torch.Tensor, beta: float) -> torch.Tensor:
    """(pairs,): KTO's loss, the mean of both answers' (Ethayarajh et al., 2024, arXiv 2402.01306), with the
    base as its reference point: without the estimate of the KL that training takes from each batch."""
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64)
    return (1 - torch.sigmoid(beta * (log_probs - reference) * signs)).mean(-1)


def orpo_losses(log_probs: torch.Tensor, rows: Sequence[dict], beta: float) -> torch.Tensor:
    """(pairs,): ORPO's loss (Hong et al., 2024, arXiv 2403.07691), of the answers alone: TRL's also learns
    the prompt's tokens."""
    lengths = torch.tensor([[len(row[side]) for side in SIDES] for row in rows], dtype=torch.float64)
    mean = log_probs / lengths
    odds = mean - torch.log(-torch.expm1(mean.clamp(max=-1e-12)))
    return -mean[:, 0] - beta * functional.logsigmoid(odds[:, 0] - odds[:, 1])


def _right(margins: np.ndarray) -> np.ndarray:
    return (margins > 0) + 0.5 * (margins == 0)


def _intervals(margins: np.ndarray, groups: Sequence[str]) -> dict[str, float]:
    return _with_interval("accuracy", _right(margins), groups) | _with_interval("margin", margins, groups)


def _with_interval(name: str, values: np.ndarray, groups: Sequence[str]) -> dict[str, float]:
    low, high = interval(values, groups)
    return {name: float(values.mean()), f"{name}_low": low, f"{name}_high": high}


def interval(values: np.ndarray, groups: Sequence[str]) -> tuple[float, float]:
    """95 % interval of the mean of `values`, by resampling whole groups (Efron's bootstrap, seeded)."""
    names = {name: i for i, name in enumerate(dict.fromkeys(groups))}
    member = np.array([names[g] for g in groups])
    sums, sizes = np.bincount(member, values, len(names)), np.bincount(member, minlength=len(names))
    drawn = np.random.default_rng(0).integers(len(names), size=(_RESAMPLES, len(names)))
    means = sums[drawn].sum(1) / sizes[drawn].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def in_words(found: dict, unit: str = "nats") -> str:
    """`accuracy 61.2 % (57.0–65.1), margin +1.32 nats (+0.90–+1.71)`."""
    low, high = 100 * found["accuracy_low"], 100 * found["accuracy_high"]
    return (
        f"accuracy {100 * found['accuracy']:.1f} % ({low:.1f}–{high:.1f}), "
        f"margin {found['margin']:+.2f} {unit} ({found['margin_low']:+.2f} to {found['margin_high']:+.2f})"
    )


def clearly_better(before: dict, after: dict) -> bool:
    """Whether accuracy and margin rose so far that their intervals do not touch."""
    return all(after[f"{name}_low"] > before[f"{name}_high"] for name in ("accuracy", "margin"))
