"""One token of New-LLM's token mixer, for decoding: the state of a text goes in and comes out, nothing else is kept.

The same arithmetic as `short_conv` and `gated_scan` at length 1. There it takes a score of small operations, and a decoding
step is bound by how many there are; here it is two kernels (`triton.py`), elsewhere plain torch (`reference.py`). No gradients.
"""

from __future__ import annotations

import torch

from newllm_lib.ops.backend import runs_triton
from newllm_lib.ops.context_step import reference


def _implementation(x: torch.Tensor):
    if not runs_triton(x):
        return reference
    from newllm_lib.ops.context_step import triton

    return triton


def conv_step(
    x: torch.Tensor, weight: torch.Tensor, start: torch.Tensor | None, tail: torch.Tensor, new_tail: torch.Tensor
) -> torch.Tensor:
    """u = x + sum_k w_k x_{-k}, with the last tokens from `tail`.

    Args:
        x: (batch, dim). weight: (dim, width). start: (batch,) bool, the token begins a document: nothing before it counts.
        tail: (batch, (width - 1) * dim) float32, the tokens before, oldest first; may be a view of a state, rows apart.
        new_tail: the same size, overwritten by what the next token needs; not the memory of `tail`.
    Returns:
        u (batch, dim) in x's dtype.
    """
    return _implementation(x).conv_step(x, weight, start, tail, new_tail)


def gate_step(
    projection: torch.Tensor,
    forget_bias: torch.Tensor,
    norm_weight: torch.Tensor,
    start: torch.Tensor | None,
    context: torch.Tensor,
    new_context: torch.Tensor,
    eps: float = 1e-6,
) -> torch.Tensor:
    """The context's update and what the token reads from it, as `gated_scan.gated_context`.

    Args:
        projection: (batch, 3 * dim) = [input, forget, output gate]. context: (batch, dim) float32, rows may lie apart.
        new_context: the same size, overwritten; not the memory of `context`.
    Returns:
        y (batch, dim) in the projection's dtype.
    """
    return _implementation(projection).gate_step(projection, forget_bias, norm_weight, start, context, new_context, eps)
