"""The short convolution in plain torch: one shifted, masked product for each tap."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def short_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    doc_starts: torch.Tensor | None = None,
    conv_state: torch.Tensor | None = None,
) -> torch.Tensor:
    """u = x + conv(x), sizes as in `short_conv.short_conv`; computed in float32 (float64 for
    float64 inputs).
    """
    compute = torch.promote_types(x.dtype, torch.float32)
    batch, time, dim = x.shape
    behind = weight.shape[1] - 1
    before = x.new_zeros(batch, behind, dim) if conv_state is None else conv_state
    history = torch.cat([before.to(compute), x.to(compute)], 1)
    weight = weight.to(compute)
    u = history[:, behind:] * (1 + weight[:, 0])
    # the document of each place of the history; the state's is the one before the first start
    if doc_starts is not None:
        document = F.pad(doc_starts.cumsum(1), (behind, 0))
    for k in range(1, weight.shape[1]):
        past = history[:, behind - k : behind - k + time]
        if doc_starts is not None:
            past = past * (document[:, behind - k : behind - k + time] == document[:, behind:]).unsqueeze(-1)
        u = u + past * weight[:, k]
    return u.to(x.dtype)


def short_conv_step(x, weight, start, conv_state, new_conv_state):
    """As `short_conv.short_conv_step`."""
    compute = torch.promote_types(x.dtype, torch.float32)
    now, conv_weight = x.to(compute), weight.to(compute)
    behind = conv_state.reshape(x.shape[0], weight.shape[1] - 1, x.shape[1]).to(compute)
    if start is not None:
        behind = behind.masked_fill(start[:, None, None], 0.0)
    new_conv_state.copy_(torch.cat([behind[:, 1:], now.unsqueeze(1)], 1)[:, : behind.shape[1]].flatten(1))
    past = torch.einsum("bkd,dk->bd", behind, conv_weight[:, 1:].flip(1))
    return (now * (1 + conv_weight[:, 0]) + past).to(x.dtype)
