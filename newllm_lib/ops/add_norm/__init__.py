"""Where the residual stream is added to and read.

    add_norm        r = x + residual; n = RMSNorm(r)                    before the token MLP and the head; in
                                                                        Phase 7 everywhere
    add_norm_conv   r = x + residual; n = RMSNorm(r); u = n + conv(n)   before the context vector

All of it is memory traffic, so each is one pass over the stream forward and one backward: the gradients that
reach r from the stream and from what is read leave as one tensor, and n itself is never stored where the
convolution follows.
"""

from __future__ import annotations

from torch import Tensor

from newllm_lib.ops.add_norm import cpu, reference
from newllm_lib.ops.common.dispatch import Operation, runs_cpu_kernel, runs_triton

MAX_DIM = 8192  # channels of which a program holds a row and the sum for its weight
MAX_CONV_DIM = 2048  # channels of which a program also holds the tokens that the convolution reads

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
def _cpu():
    return cpu


def add_norm(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    """The stream with `residual` added to it, and its RMSNorm.

    Args:
        x: (..., dim), the stream.
        residual: (..., dim), what is added to it; None: r is x.
        weight: (dim,), of the norm.
        eps: of the norm.

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
    """As `add_norm`, then `short_conv` of its result (without padding, which only that skips).

    Args:
        x: (batch, time, dim), the stream.
        residual: (batch, time, dim), what is added to it; None: r is x.
        weight: (dim,), of the norm.
        conv_weight: (dim, width), conv_weight[:, k] for the token k steps back.
        doc_starts: (batch, time) bool: a document starts there.
        conv_state: (batch, width - 1, dim), what was normalised before x, oldest first; None: zeros.
        eps: of the norm.

    Returns:
        r and u (batch, time, dim) in x's dtype, and the new conv_state (batch, width - 1, dim) float32.
    """
    r, u = _norm_conv(x, residual, weight, conv_weight, conv_state).add_norm_conv(
        x, residual, weight, conv_weight, doc_starts, conv_state, eps
    )
    width = conv_weight.shape[1]  # the state's few rows are normalised once more
    last = _last_rows(r, conv_weight).last_rows(r, weight, width, doc_starts, conv_state, eps)
    return r, u, last
