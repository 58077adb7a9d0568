"""New-LLM's recurrence, between the token mixer's two matrix products: gates, scan, read-out."""

from __future__ import annotations

import torch

from newllm_lib.ops.common.dispatch import Operation, runs_cpu_kernel, runs_triton
from newllm_lib.ops.gated_scan import cpu, reference

_implementation = Operation(reference)


@_implementation.register(runs_triton)
def _triton():
    from newllm_lib.ops.gated_scan import triton

    return triton


@_implementation.register(lambda x, *others: x.ndim == 3 and x.shape[1] > 1 and runs_cpu_kernel(x, *others))
def _cpu():
    return cpu


def gated_scan(
    projection: torch.Tensor,
    forget_bias: torch.Tensor | None,
    norm_weight: torch.Tensor,
    doc_starts: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    initial_state: torch.Tensor | None = None,
    eps: float = 1e-6,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """c_t = a_t c_{t-1} + (1 - a_t) silu(i_t) with a_t = sigmoid(f_t + forget_bias), and y_t = RMSNorm(c_t)
    silu(z_t).

    Args:
        projection: (batch, time, 3 * dim) = [i, f, z]: input, forget gate, read-out gate of each token.
        forget_bias: (dim,) or None for zeros.
        norm_weight: (dim,), of the read-out's norm.
        doc_starts: (batch, time) bool, True where a document starts: a_t is 0 there.
        mask: (batch, time) bool, False at padding: there c_t = c_{t-1}, whatever `doc_starts` says.
        initial_state: (batch, dim), the context before the first token; zeros by default.
        eps: of the norm.

    Returns:
        y (batch, time, dim), what the tokens read, and c (batch, time, dim), both in the projection's dtype;
        the final state (batch, dim) in float32 (float64 for float64). The gradient of the projection comes
        back as one tensor of its shape.
    """
    return _implementation(projection, forget_bias, norm_weight, initial_state).gated_scan(
        projection, forget_bias, norm_weight, doc_starts, mask, initial_state, eps
    )


def gated_scan_step(
    projection: torch.Tensor,
    forget_bias: torch.Tensor,
    norm_weight: torch.Tensor,
    start: torch.Tensor | None,
    state: torch.Tensor,
    new_state: torch.Tensor,
    eps: float = 1e-6,
) -> torch.Tensor:
    """`gated_scan` of one token, for decoding, in one small operation. No gradients.

    Args:
        projection: (batch, 3 * dim).
        forget_bias: (dim,).
        norm_weight: (dim,).
        start: (batch,) bool, the token begins a document; None: none does.
        state: (batch, dim) float32, rows may lie apart.
        new_state: the same size, overwritten; not the memory of `state`.
        eps: of the norm.

    Returns:
        y (batch, dim) in the projection's dtype.
    """
    return _implementation(projection, forget_bias, norm_weight).gated_scan_step(
        projection, forget_bias, norm_weight, start, state, new_state, eps
    )
