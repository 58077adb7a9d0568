"""Is the context vector alive? It must differ from token to token, or it says nothing about the text.

The original of this project watched only how close its vectors came to a fixed point, and so did not see that
they had all become the same one. Here the context vectors after many tokens of many places of the text are
compared with each other.
"""

from __future__ import annotations

import numpy as np
import torch

from newllm_lib.generation.stateful import autocast, eval_mode, model_device

_COLLAPSED_SPREAD = 0.01  # less than this share of what is carried differs between tokens
_COLLAPSED_RANK = 2.0  # what differs lies on about one line
_DEAD = 0.01  # a dimension that moves by less than this share of its layer's size


def context_health(model, split, tokenizer, *, places: int = 64, tokens: int = 64, dtype=None) -> dict:
    """Read `tokens` tokens from `places` evenly spaced places of the split; compare context vectors.

    The vectors right after <|endoftext|> are left out: they are the same by design.

    Returns:
        the keys of `vector_health`, for the worst layer.
    """
    device = model_device(model)
    length = min(tokens, len(split.ids))
    starts = np.unique(np.linspace(0, len(split.ids) - length, places).astype(np.int64))
    ids = split.ids[starts[:, None] + np.arange(length)].astype(np.int64)
    inputs = torch.from_numpy(ids).to(device)
    state, seen = None, []
    with eval_mode(model), autocast(device, dtype):
        for t in range(length):
            state = model(input_ids=inputs[:, t : t + 1], state=state, use_cache=True).state
            kept = inputs[:, t] != tokenizer.bos_token_id
            seen.append(state[kept, :, : model.config.context_dim].float().cpu())
    return vector_health(torch.cat(seen))


def vector_health(vectors: torch.Tensor) -> dict:
    """How much context vectors (samples, layers, dim) differ from each other.

    Returns:
        context_variance: mean over the dimensions of the variance across samples.
        context_spread: that variance as a share of the mean square (0: all vectors are one point).
        context_effective_rank: dimensions in use, exp of the entropy of the covariance's eigenvalues (Roy &
            Vetterli 2007).
        context_dead_share: share of the dimensions that hardly move. context_dim, and context_warning: one
        sentence if the vectors have collapsed, else None. Each is of the layer where it is worst; all are NaN
        with fewer than two samples or vectors that are no numbers.
    """
    samples, _, dim = vectors.shape
    if samples < 2 or not bool(torch.isfinite(vectors).all()):
        names = ("variance", "spread", "effective_rank", "dead_share")
        return {f"context_{n}": float("nan") for n in names} | {"context_dim": dim, "context_warning": None}
    layers = [_layer_health(v.double()) for v in vectors.unbind(1)]
    result = {
        "context_variance": min(h["variance"] for h in layers),
        "context_spread": min(h["spread"] for h in layers),
        "context_effective_rank": min(h["effective_rank"] for h in layers),
        "context_dead_share": max(h["dead_share"] for h in layers),
        "context_dim": dim,
    }
    return result | {"context_warning": _warning(result, samples)}


def _layer_health(vectors: torch.Tensor) -> dict:
    """The figures of one layer; vectors (samples, dim), float64."""
    variance = vectors.var(0, correction=0)
    square = float(vectors.square().mean())
    eigenvalues = torch.linalg.eigvalsh(
        torch.cov(vectors.T, correction=0).reshape(len(variance), -1)
    ).clamp_min(0)
    share = eigenvalues / eigenvalues.sum().clamp_min(1e-300)
    return {
        "variance": float(variance.mean()),
        "spread": float(variance.mean()) / square if square else 0.0,
        "effective_rank": float(torch.special.entr(share).sum().exp()) if eigenvalues.sum() > 0 else 0.0,
        "dead_share": float((variance.sqrt() <= _DEAD * square**0.5).double().mean()),
    }


def _warning(health: dict, samples: int) -> str | None:
    can_have_rank = min(samples, health["context_dim"]) >= 8
    if health["context_spread"] < _COLLAPSED_SPREAD:
        what = f"only {health['context_spread']:.2%} of it differs between tokens"
    elif can_have_rank and health["context_effective_rank"] < _COLLAPSED_RANK:
        what = f"it moves along {health['context_effective_rank']:.1f} of {health['context_dim']} dimensions"
    elif health["context_dead_share"] > 0.5:
        what = f"{health['context_dead_share']:.0%} of its dimensions never move"
    else:
        return None
    return (
        f"The context vector has collapsed: {what}. Lower --learning_rate, or start again with another "
        "--seed."
    )
