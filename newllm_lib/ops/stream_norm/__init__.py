"""Where the residual stream is added to and read: r = x + branch, then RMSNorm(r), and with a short convolution over it.

    add_norm        r = x + branch; n = RMSNorm(r)                     before the token MLP and the head; in Phase 7, everywhere
    add_norm_conv   r = x + branch; n = RMSNorm(r); u = n + conv(n)    before the context vector

All of it is memory traffic, so each is one pass over the stream forward and one backward: the gradients that reach r from the
stream and from what is read leave as one tensor, and n itself is never stored where the convolution follows.
"""

from __future__ import annotations

from torch import Tensor

from newllm_lib.ops.backend import on_the_processor, runs_triton
from newllm_lib.ops.short_conv import new_tail
from newllm_lib.ops.stream_norm import processor, reference

MAX_DIM = 8192  # channels of which a program holds a row and the sum for its weight
MAX_CONV_DIM = 2048  # channels of which a program also holds what the taps reach


def add_norm(x: Tensor, branch: Tensor | None, weight: Tensor, eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    """The stream with `branch` added to it, and its RMSNorm.

    Args:
        x, branch: (..., dim); without a branch r is x. weight: (dim,).
    Returns:
        r and n (..., dim), in x's dtype.
    """
    if runs_triton(x) and x.shape[-1] <= MAX_DIM:
        from newllm_lib.ops.stream_norm import triton

        return triton.add_norm(x, branch, weight, eps)
    if on_the_processor(x, branch, weight):
        return processor.add_norm(x, branch, weight, eps)
    return reference.add_norm(x, branch, weight, eps)


def add_norm_conv(
    x: Tensor,
    branch: Tensor | None,
    weight: Tensor,
    taps: Tensor,
    starts: Tensor | None = None,
    tail: Tensor | None = None,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `add_norm`, then `short_conv` of what is normalised (without padding, which only that one passes over).

    Args:
        x, branch: (batch, time, dim). taps: (dim, width). starts: (batch, time) bool. tail: (batch, width - 1, dim), what was
            normalised before x; zeros by default.
    Returns:
        r and u (batch, time, dim) in x's dtype, and the new tail (batch, width - 1, dim) float32.
    """
    r, u = _stream_and_conv(x, branch, weight, taps, starts, tail, eps)
    return r, u, _tail_of(r, weight, taps.shape[1], starts, tail, eps)


def _tail_of(r, weight, width, starts, tail, eps):
    """The rows of the new tail, a few: normalised once more."""
    if runs_triton(r) and r.shape[-1] <= MAX_CONV_DIM and r.shape[1] >= width > 1:
        from newllm_lib.ops.stream_norm import triton

        return triton.last_rows(r, weight, width - 1, starts, eps)
    first = max(0, r.shape[1] - width + 1)
    last = reference.norm(r[:, first:].float(), weight, eps)
    return new_tail(last, width, None if starts is None else starts[:, first:], tail)


def _stream_and_conv(x, branch, weight, taps, starts, tail, eps):
    if runs_triton(x) and x.shape[-1] <= MAX_CONV_DIM:
        from newllm_lib.ops.stream_norm import triton

        return triton.add_norm_conv(x, branch, weight, taps, starts, tail, eps)
    if on_the_processor(x, branch, weight, taps, tail):
        return processor.add_norm_conv(x, branch, weight, taps, starts, tail, eps)
    return reference.add_norm_conv(x, branch, weight, taps, starts, tail, eps)
