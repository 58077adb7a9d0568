"""Where the residual stream is added to and read: r = x + branch, then RMSNorm(r), and with a short
convolution over it.

    add_norm        r = x + branch; n = RMSNorm(r)                     before the token MLP and the head; in
    Phase 7, everywhere add_norm_conv   r = x + branch; n = RMSNorm(r); u = n + conv(n)    before the context
    vector

All of it is memory traffic, so each is one pass over the stream forward and one backward: the gradients that
reach r from the stream and from what is read leave as one tensor, and n itself is never stored where the
convolution follows.
"""

from __future__ import annotations

from torch import Tensor

from newllm_lib.ops.add_norm import cpu, reference
from newllm_lib.ops.common.dispatch import Operation, runs_cpu_kernel, runs_triton

MAX_DIM = 8192  # channels of which a program holds a row and the sum for its weight
MAX_CONV_DIM = 2048  # channels of which a program also holds what the conv_weight reach

_norm, _norm_conv, _last_rows = Operation(reference), Operation(reference), Operation(reference)


@_norm.register(lambda x, *_: runs_triton(x) and x.shape[-1] <= MAX_DIM)
@_norm_conv.register(lambda x, *_: runs_triton(x) and x.shape[-1] <= MAX_CONV_DIM)
@_last_rows.register(
    lambda r, conv_weight: (
        runs_triton(r) and r.shape[-1] <= MAX_CONV_DIM and r.shape[1] >= conv_weight.shape[1] > 1
    )
)
def _triton():
    from newllm_lib.ops.add_norm import triton

    return triton


@_norm.register(runs_cpu_kernel)
@_norm_conv.register(runs_cpu_kernel)
def _processor():
    return cpu


def add_norm(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    """The stream with `residual` added to it, and its RMSNorm.

    Args:
        x, residual: (..., dim); without a branch r is x. weight: (dim,).
    Returns:
        r and n (..., dim), in x's dtype.
    """
    return _norm(x, residual, weight).add_norm(x, residual, weight, eps)


def add_norm_conv(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    conv_weight: Tensor,
    doc_starts: Tensor | None = None,
    conv_state: Tensor | None = None,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `add_norm`, then `short_conv` of what is normalised (without padding, which only that one passes
    over).

    Args: x, residual: (batch, time, dim). conv_weight: (dim, width). doc_starts: (batch, time) bool.
        conv_state: (batch, width - 1, dim), what was
            normalised before x; zeros by default.
    Returns:
        r and u (batch, time, dim) in x's dtype, and the new conv_state (batch, width - 1, dim) float32.
    """
    r, u = _norm_conv(x, residual, weight, conv_weight, conv_state).add_norm_conv(
        x, residual, weight, conv_weight, doc_starts, conv_state, eps
    )
    return (
        r,
        u,
        _last_rows(r, conv_weight).last_rows(r, weight, conv_weight.shape[1], doc_starts, conv_state, eps),
    )  # a few rows, normalised once more
