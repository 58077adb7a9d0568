"""Gates, scan and read-out in plain torch: what the kernels compute, and what runs where there are none.

Computes in float32 (float64 for float64 inputs) and rounds once at the end of each half, as the kernels do.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from newllm_lib.ops.context_scan import chunked
from newllm_lib.ops.context_scan import reference as loop


def _compute_dtype(x: torch.Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def gates(forget, forget_bias, starts, valid) -> tuple[torch.Tensor, torch.Tensor]:
    """a and 1 - a, (batch, time, dim): how much of the context is kept and how much written (padding: all, none)."""
    x = forget.to(_compute_dtype(forget))
    if forget_bias is not None:
        x = x + forget_bias.to(x.dtype)
    keep, share = torch.sigmoid(x), torch.sigmoid(-x)  # 1 - keep would lose the digits of a gate near 1
    if starts is not None:
        keep, share = keep.masked_fill(starts.unsqueeze(-1), 0.0), share.masked_fill(starts.unsqueeze(-1), 1.0)
    if valid is not None:
        padding = ~valid.unsqueeze(-1)
        keep, share = keep.masked_fill(padding, 1.0), share.masked_fill(padding, 0.0)
    return keep, share


def gated_scan(input, forget, forget_bias=None, starts=None, valid=None, initial_state=None):
    """As `gated_scan.gated_scan`."""
    keep, share = gates(forget, forget_bias, starts, valid)
    written = share * F.silu(input.to(keep.dtype))
    scan = loop.context_scan if input.shape[1] == 1 else chunked.context_scan
    c, final = scan(keep, written, initial_state)
    return c.to(input.dtype), final


def gated_readout(c, gate, weight, eps=1e-6):
    """As `gated_scan.gated_readout`."""
    compute = _compute_dtype(gate)
    x = c.to(compute)
    normal = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return (normal * weight.to(compute) * F.silu(gate.to(compute))).to(gate.dtype)


def gated_context(projection, forget_bias, norm_weight, starts=None, valid=None, initial_state=None, eps=1e-6):
    """As `gated_scan.gated_context`."""
    input, forget, gate = projection.chunk(3, -1)
    c, final = gated_scan(input, forget, forget_bias, starts, valid, initial_state)
    return gated_readout(c, gate, norm_weight, eps), c, final
