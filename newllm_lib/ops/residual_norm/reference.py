"""The residual sum and its norm in plain torch: float32 inside (float64 for float64), rounded once at the end."""

from __future__ import annotations

import torch
from torch import Tensor


def residual_norm(x: Tensor, y: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """As `residual_norm.residual_norm`."""
    total = x if y is None else x + y
    wide = total.to(torch.promote_types(total.dtype, torch.float32))
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight.to(wide.dtype)
    return total, normed.to(total.dtype)
