"""The residual stream's sum, norm and short convolution in plain torch: float32 inside (float64 for float64),
then rounded.
"""

from __future__ import annotations

import torch
from torch import Tensor

from newllm_lib.ops.short_conv import new_conv_state, reference as conv


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm of x (..., dim), in x's dtype."""
    compute = torch.promote_types(x.dtype, torch.float32)
    return torch.nn.functional.rms_norm(x.to(compute), x.shape[-1:], weight.to(compute), eps).to(x.dtype)


def add_norm(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """As `ops.add_norm.add_norm`."""
    r = x if residual is None else x + residual.to(x.dtype)
    return r, norm(r, weight, eps)


def add_norm_conv(x, residual, weight, conv_weight, doc_starts, conv_state, eps) -> tuple[Tensor, Tensor]:
    """As `ops.add_norm.add_norm_conv`, but for the new state."""
    r = x if residual is None else x + residual.to(x.dtype)
    compute = torch.promote_types(r.dtype, torch.float32)
    return r, conv.short_conv(norm(r.to(compute), weight, eps), conv_weight, doc_starts, conv_state).to(
        r.dtype
    )


def last_rows(
    r: Tensor, weight: Tensor, width: int, doc_starts: Tensor | None, conv_state: Tensor | None, eps: float
) -> Tensor:
    """The new state of `ops.add_norm.add_norm_conv`: the last rows of r and of the state, normalised."""
    first = max(0, r.shape[1] - width + 1)
    last = norm(r[:, first:].float(), weight, eps)
    return new_conv_state(last, width, None if doc_starts is None else doc_starts[:, first:], conv_state)
