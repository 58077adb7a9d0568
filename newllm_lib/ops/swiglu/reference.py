"""The gated products in plain torch: float32 inside (float64 for float64), rounded once at the end."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def _wide(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(x.to(torch.promote_types(x.dtype, torch.float32)) for x in tensors)


def swiglu(gate_up: Tensor) -> Tensor:
    """As `swiglu.swiglu`."""
    gate, up = _wide(*gate_up.chunk(2, -1))
    return (F.silu(gate) * up).to(gate_up.dtype)


def mix(a: Tensor, b: Tensor, gate: Tensor) -> Tensor:
    """As `swiglu.gated_mix`."""
    wide_a, wide_b, wide_gate = _wide(a, b, gate)
    return (wide_b + torch.sigmoid(wide_gate) * (wide_a - wide_b)).to(a.dtype)


def group_gate(x: Tensor, gate: Tensor) -> Tensor:
    """As `swiglu.group_gate`."""
    wide, opened = _wide(x, gate)
    opened = torch.sigmoid(opened)
    return (wide.unflatten(-1, (gate.shape[-1], -1)) * opened.unsqueeze(-1)).flatten(-2).to(x.dtype)
