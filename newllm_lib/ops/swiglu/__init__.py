"""Gated products, each one pass over memory both ways in Triton: SwiGLU's, a mix of two, one gate a group.

They are what stands between a block's matrix products. torch.compile fuses the plain forms by itself.
"""

from __future__ import annotations

import torch

from newllm_lib.ops.common.dispatch import Operation, runs_triton
from newllm_lib.ops.swiglu import reference

_implementation = Operation(reference)


@_implementation.register(lambda x: runs_triton(x) and not torch.compiler.is_compiling())
def _triton():
    from newllm_lib.ops.swiglu import triton

    return triton


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up of gate_up (..., 2 dim) = [gate, up]: (..., dim)."""
    return _implementation(gate_up).swiglu(gate_up)


def gated_mix(a: torch.Tensor, b: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """b + sigmoid(gate) (a - b), all of one shape: a where the gate is open, b where it is shut."""
    return _implementation(a).mix(a, b, gate)


def group_gate(x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """x (..., dim) times sigmoid(gate) (..., groups): each gate opens dim / groups neighbouring channels."""
    return _implementation(x).group_gate(x, gate)
