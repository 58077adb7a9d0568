"""Attention by exact Poincaré distance as others would compute it: the peers of `ops`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def eager_distance(window: int | None, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
    """All scores in memory: x, y in the unit ball of curvature -1, v values; (batch, heads, time, dim)."""
    row, column = (z.float().square().sum(-1) for z in (x, y))
    apart = row[..., :, None] + column[..., None, :] - 2 * (x @ y.mT).float()
    argument = 1 + 2 * apart.clamp_min(1e-6) / ((1 - row)[..., :, None] * (1 - column)[..., None, :])
    places = torch.arange(x.shape[2], device=x.device)
    behind = places[:, None] - places
    hidden = behind < 0 if window is None else (behind < 0) | (behind >= window)
    return torch.acosh(argument).neg().masked_fill(hidden, float("-inf")).softmax(-1).to(v.dtype) @ v


def flex_distance(device: str, window: int | None, length: int) -> Callable[..., Tensor]:
    """FlexAttention with the distance as score_mod, compiled for this length."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def visible(batch, head, query, key):
        return (query >= key) if window is None else (query >= key) & (query - key < window)

    mask = create_block_mask(visible, None, None, length, length, device=device)

    @torch.compile(dynamic=False)
    def attend(x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        row, column = (z.float().square().sum(-1) for z in (x, y))

        def distance(product, batch, head, query, key):
            a, b = row[batch, head, query], column[batch, head, key]
            more = 2 * torch.clamp_min(a + b - 2 * product, 1e-6) / ((1 - a) * (1 - b))
            return -torch.log1p(more + torch.sqrt(more * (more + 2)))

        return flex_attention(x, y, v, score_mod=distance, block_mask=mask, scale=1.0)

    return attend
