"""One token of the short convolution and of the gated context in plain torch; float32 inside (float64 for float64 inputs)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from newllm_lib.ops.gated_scan.reference import gated_readout


def conv_step(x, weight, start, tail, new_tail):
    """As `context_step.conv_step`."""
    compute = torch.promote_types(x.dtype, torch.float32)
    now, taps = x.to(compute), weight.to(compute)
    behind = tail.reshape(x.shape[0], weight.shape[1] - 1, x.shape[1]).to(compute)
    if start is not None:
        behind = behind.masked_fill(start[:, None, None], 0.0)
    new_tail.copy_(torch.cat([behind[:, 1:], now.unsqueeze(1)], 1)[:, : behind.shape[1]].flatten(1))
    past = torch.einsum("bkd,dk->bd", behind, taps[:, 1:].flip(1))
    return (now * (1 + taps[:, 0]) + past).to(x.dtype)


def gate_step(projection, forget_bias, norm_weight, start, context, new_context, eps=1e-6):
    """As `context_step.gate_step`."""
    compute = torch.promote_types(projection.dtype, torch.float32)
    input, forget, gate = projection.chunk(3, -1)
    x = forget.to(compute) + forget_bias.to(compute)
    keep, share = torch.sigmoid(x), torch.sigmoid(-x)
    if start is not None:
        keep, share = keep.masked_fill(start.unsqueeze(-1), 0.0), share.masked_fill(start.unsqueeze(-1), 1.0)
    new_context.copy_(keep * context.to(compute) + share * F.silu(input.to(compute)))
    return gated_readout(new_context.to(projection.dtype), gate, norm_weight, eps)
