"""Gates, scan and read-out in plain torch: what the kernels compute, and what runs where there are none.

Computes in float32 (float64 for float64 inputs) and rounds once at the end of each half, as the kernels do.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from newllm_lib.ops.common.linear_scan import linear_scan


def gates(
    forget: torch.Tensor,
    forget_bias: torch.Tensor | None,
    doc_starts: torch.Tensor | None,
    mask: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """a and 1 - a, of forget's size: how much context is kept and written (padding: all, none)."""
    x = forget.to(torch.promote_types(forget.dtype, torch.float32))
    if forget_bias is not None:
        x = x + forget_bias.to(x.dtype)
    keep, share = torch.sigmoid(x), torch.sigmoid(-x)  # 1 - keep would lose the digits of a gate near 1
    if doc_starts is not None:
        keep, share = (
            keep.masked_fill(doc_starts.unsqueeze(-1), 0.0),
            share.masked_fill(doc_starts.unsqueeze(-1), 1.0),
        )
    if mask is not None:
        padding = ~mask.unsqueeze(-1)
        keep, share = keep.masked_fill(padding, 1.0), share.masked_fill(padding, 0.0)
    return keep, share


def readout(c: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMSNorm(c; weight, eps) * silu(gate): c, gate (..., dim), weight (dim,) -> their size, gate's dtype."""
    compute = torch.promote_types(gate.dtype, torch.float32)
    x = c.to(compute)
    normal = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return (normal * weight.to(compute) * F.silu(gate.to(compute))).to(gate.dtype)


def gated_scan(
    projection, forget_bias, norm_weight, doc_starts=None, mask=None, initial_state=None, eps=1e-6
):
    """As `gated_scan.gated_scan`."""
    input, forget, gate = projection.chunk(3, -1)
    keep, share = gates(forget, forget_bias, doc_starts, mask)
    c, final = linear_scan(keep, share * F.silu(input.to(keep.dtype)), initial_state)
    c = c.to(projection.dtype)
    return readout(c, gate, norm_weight, eps), c, final


def gated_scan_step(projection, forget_bias, norm_weight, start, state, new_state, eps=1e-6):
    """As `gated_scan.gated_scan_step`."""
    input, forget, gate = projection.chunk(3, -1)
    keep, share = gates(forget, forget_bias, start, None)
    new_state.copy_(keep * state.to(keep.dtype) + share * F.silu(input.to(keep.dtype)))
    return readout(new_state.to(projection.dtype), gate, norm_weight, eps)
