"""How far a model prefers the better answers: log-probabilities of both sides of held-out pairs.

    margin     log p(chosen) - log p(rejected), in nats: the model's own preference
    accuracy   share of the pairs whose margin is above 0 (at 0: half)
    reward     beta times what training has added to a log-probability; the DPO loss is
               -log sigmoid(reward margin)

Accuracy and margin mean the same before and after. (TRL's reward accuracy does not: before training all
rewards are 0.) Intervals are of 95 %, by resampling groups of pairs (all pairs about one fact together):
pairs about one fact err together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from newllm_lib.data.preferences import Pair
from newllm_lib.generation.stateful import autocast, eval_mode, model_device, unwrapped

_RESAMPLES = 1000
_TOKENS = 8192  # read at once, at most
_LOGITS = 16_000_000  # made at once, at most: 64 MB in float32


def pair_log_probs(model, rows: Sequence[dict], pad_id: int, dtype=None) -> torch.Tensor:
    """Summed log-probabilities (pairs, 2) in nats of chosen and rejected answers, in float64.

    Args:
        rows: prompt_ids, chosen_ids, rejected_ids of each pair.
        dtype: of matrix products; default: as the weights are.
    """
    sequences = [(row["prompt_ids"], row[side]) for row in rows for side in ("chosen_ids", "rejected_ids")]
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
    return result.reshape(-1, 2)


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
    per_kind: bool = True,
) -> dict:
    """Figures of log-probabilities (pairs, 2) beside the base model's.

    Returns:
        pairs, accuracy, margin, reward_accuracy, reward_margin, loss (of plain DPO), chosen and rejected
        (mean log-probabilities), each with `_low` and `_high`; and `kinds`: pairs, accuracy and margin with
        their intervals for each kind.
    """
    margins = (log_probs[:, 0] - log_probs[:, 1]).numpy()
    rewards = beta * (log_probs - reference)
    reward_margins = rewards[:, 0] - rewards[:, 1]
    groups = [pair.group or str(i) for i, pair in enumerate(pairs)]
    result: dict[str, Any] = {"pairs": len(pairs), **_intervals(margins, groups)}
    for name, values in (
        ("reward_accuracy", _right(reward_margins.numpy())),
        ("reward_margin", reward_margins.numpy()),
        ("loss", -torch.nn.functional.logsigmoid(reward_margins).numpy()),
        ("chosen", log_probs[:, 0].numpy()),
        ("rejected", log_probs[:, 1].numpy()),
    ):
        result |= _with_interval(name, values, groups)
    kinds = sorted({pair.kind for pair in pairs} - {""}) if per_kind else []
    if kinds:
        result["kinds"] = {}
    for kind in kinds:
        here = [i for i, pair in enumerate(pairs) if pair.kind == kind]
        result["kinds"][kind] = {"pairs": len(here), **_intervals(margins[here], [groups[i] for i in here])}
    return result


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


def in_words(found: dict) -> str:
    """`accuracy 61.2 % (57.0–65.1), margin +1.32 nats (+0.90–+1.71)`."""
    low, high = 100 * found["accuracy_low"], 100 * found["accuracy_high"]
    return (
        f"accuracy {100 * found['accuracy']:.1f} % ({low:.1f}–{high:.1f}), "
        f"margin {found['margin']:+.2f} nats ({found['margin_low']:+.2f} to {found['margin_high']:+.2f})"
    )


def clearly_better(before: dict, after: dict) -> bool:
    """Whether accuracy and margin rose so far that their intervals do not touch."""
    return all(after[f"{name}_low"] > before[f"{name}_high"] for name in ("accuracy", "margin"))
