"""The context vector's token mixer between its two matrix products: gates, scan and read-out.

`gated_context` is the whole of it, from one packed projection; `gated_scan` and `gated_readout` are its halves. Each
runs Triton's kernels where there are any (`triton.py`), else plain torch (`reference.py`).
"""

from __future__ import annotations

import torch

from newllm_lib.ops.backend import on_the_processor, runs_triton
from newllm_lib.ops.gated_scan import processor, reference


def _implementation(x: torch.Tensor):
    if not runs_triton(x):
        return reference
    from newllm_lib.ops.gated_scan import triton

    return triton


def gated_scan(
    input: torch.Tensor,
    forget: torch.Tensor,
    forget_bias: torch.Tensor | None = None,
    starts: torch.Tensor | None = None,
    valid: torch.Tensor | None = None,
    initial_state: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """c_t = a_t c_{t-1} + (1 - a_t) silu(input_t) with a_t = sigmoid(forget_t + forget_bias).

    Args:
        input, forget: (batch, time, dim), any strides (views into one projection are read in place).
        forget_bias: (dim,). starts: (batch, time) bool, a_t = 0 there. valid: (batch, time) bool, False is padding:
            there c_t = c_{t-1}, whatever `starts` says. initial_state: (batch, dim), zeros by default.
    Returns:
        c (batch, time, dim) in the input's dtype and the final state (batch, dim) in float32.
    """
    return _implementation(input).gated_scan(input, forget, forget_bias, starts, valid, initial_state)


def gated_readout(c: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    """RMSNorm(c; weight, eps) * silu(gate): c, gate (batch, time, dim), weight (dim,) -> their size, gate's dtype."""
    return _implementation(c).gated_readout(c, gate, weight, eps)


def gated_context(
    projection: torch.Tensor,
    forget_bias: torch.Tensor | None,
    norm_weight: torch.Tensor,
    starts: torch.Tensor | None = None,
    valid: torch.Tensor | None = None,
    initial_state: torch.Tensor | None = None,
    eps: float = 1e-6,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`gated_scan`, then `gated_readout`, from projection (batch, time, 3 * dim) = [input, forget, output gate].

    Returns:
        y (batch, time, dim), what the tokens read; c (batch, time, dim), the context vectors; final state (batch, dim)
        float32. The gradient of the projection comes back as one tensor of its shape.
    """
    if projection.shape[1] > 1 and on_the_processor(projection, forget_bias, norm_weight, initial_state):
        return processor.gated_context(projection, forget_bias, norm_weight, starts, valid, initial_state, eps)
    return _implementation(projection).gated_context(
        projection, forget_bias, norm_weight, starts, valid, initial_state, eps
    )
