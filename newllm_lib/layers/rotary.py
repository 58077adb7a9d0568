"""Rotary position embedding (Su et al., 2021, arXiv 2104.09864): pairs of channels turned by position."""

from __future__ import annotations

import torch


def rotation(positions: int, dim: int, device, base: float = 10_000.0) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin (positions, dim / 2), float32, for `rotated`."""
    frequencies = base ** (-torch.arange(0, dim, 2, device=device, dtype=torch.float32) / dim)
    angles = torch.arange(positions, device=device, dtype=torch.float32)[:, None] * frequencies
    return angles.cos(), angles.sin()


def rotated(x: torch.Tensor, rotation, scale: float = 1.0) -> torch.Tensor:
    """x (batch, heads, time, dim) at the last `time` of the rotation's positions, times `scale`: each pair
    (i, i + dim/2) is turned by its angle."""
    cos, sin = (scale * t[-x.shape[2] :] for t in rotation)
    one, two = x.float().chunk(2, -1) if x.dtype != torch.float64 else x.chunk(2, -1)
    return torch.cat([one * cos - two * sin, two * cos + one * sin], -1).to(x.dtype)
