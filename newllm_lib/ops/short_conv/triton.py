"""The short convolution on a GPU: a custom operator over `kernels`."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from newllm_lib.ops.common import triton_helpers as helpers
from newllm_lib.ops.common.dispatch import on_device_of_first_argument
from newllm_lib.ops.common.reductions import sum_rows
from newllm_lib.ops.short_conv import kernels

# As in `gated_scan.triton`.
_FORWARD = dict(BLOCK_DIM=64, UNROLL=8, num_warps=1)
_BACKWARD = dict(BLOCK_DIM=64, UNROLL=4, num_warps=1)
# programs a multiprocessor; time is cut until there are so many, into pieces of at least _MIN_CHUNK
_FULL = 16
_MIN_CHUNK = 32
_STEP_BLOCK = 256  # channels a program in a step of one token


def _plan(x: Tensor, tile: dict[str, int]) -> tuple[tuple[int, int], int]:
    """Grid and time steps a chunk."""
    batch, time, dim = x.shape
    blocks = batch * triton.cdiv(dim, tile["BLOCK_DIM"])
    wanted = triton.cdiv(_FULL * helpers.multiprocessors(x.device), blocks)
    length = triton.cdiv(time, max(1, min(wanted, time // _MIN_CHUNK)))
    return (blocks, triton.cdiv(time, length)), length


def _constants(weight: Tensor, doc_starts: Tensor | None, conv_state: Tensor | None) -> dict[str, int]:
    return dict(
        HAS_STARTS=doc_starts is not None,
        HAS_CONV_STATE=conv_state is not None and weight.shape[1] > 1,
        WIDTH=weight.shape[1],
    )


@torch.library.custom_op("newllm::short_conv", mutates_args=())
@on_device_of_first_argument
def _conv(x: Tensor, weight: Tensor, doc_starts: Tensor | None, conv_state: Tensor | None) -> Tensor:
    u = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    grid, length = _plan(x, _FORWARD)
    kernels.conv_forward[grid](
        x,
        weight.contiguous(),
        helpers.flag_bytes(doc_starts),
        conv_state,
        u,
        x.shape[1],
        x.shape[2],
        length,
        *x.stride()[:2],
        **_constants(weight, doc_starts, conv_state),
        **_FORWARD,
    )
    return u


@_conv.register_fake
def _(x, weight, doc_starts, conv_state):
    return x.new_empty(x.shape)


@torch.library.custom_op("newllm::short_conv_backward", mutates_args=())
@on_device_of_first_argument
def _conv_backward(
    x: Tensor, weight: Tensor, doc_starts: Tensor | None, conv_state: Tensor | None, du: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    dconv_state = x.new_empty(0) if conv_state is None else torch.empty_like(conv_state)
    grid, length = _plan(x, _BACKWARD)
    dweight = torch.empty(
        x.shape[0], grid[1], weight.shape[1], x.shape[2], dtype=torch.float32, device=x.device
    )
    kernels.conv_backward[grid](
        x,
        weight.contiguous(),
        helpers.flag_bytes(doc_starts),
        conv_state,
        du.contiguous(),
        dx,
        dconv_state,
        dweight,
        x.shape[1],
        x.shape[2],
        length,
        *x.stride()[:2],
        **_constants(weight, doc_starts, conv_state),
        **_BACKWARD,
    )
    return (
        dx,
        sum_rows(dweight.flatten(0, 1).flatten(1), weight).view(dweight.shape[2:]).t().contiguous(),
        dconv_state,
    )


@_conv_backward.register_fake
def _(x, weight, doc_starts, conv_state, du):
    dconv_state = x.new_empty(0) if conv_state is None else conv_state.new_empty(conv_state.shape)
    return x.new_empty(x.shape), weight.new_empty(weight.shape), dconv_state


def _keep_for_backward(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, du):
    x, weight, doc_starts, conv_state = ctx.saved_tensors
    dx, dweight, dconv_state = _conv_backward(x, weight, doc_starts, conv_state, du)
    return dx, dweight, None, None if conv_state is None else dconv_state


_conv.register_autograd(_backward, setup_context=_keep_for_backward)


def short_conv(
    x: Tensor, weight: Tensor, doc_starts: Tensor | None = None, conv_state: Tensor | None = None
) -> Tensor:
    """u = x + conv(x), sizes as in `short_conv.short_conv`, for float32, bfloat16 and float16."""
    return _conv(
        helpers.rows_together(x), weight, doc_starts, None if conv_state is None else conv_state.contiguous()
    )


@on_device_of_first_argument
def short_conv_step(x, weight, start, conv_state, new_conv_state):
    """As `short_conv.short_conv_step`."""
    batch, dim = x.shape
    u = torch.empty(batch, dim, device=x.device, dtype=x.dtype)
    grid = batch, triton.cdiv(dim, _STEP_BLOCK)
    kernels.conv_step[grid](
        x,
        weight,
        start,
        conv_state,
        new_conv_state,
        u,
        dim,
        x.stride(0),
        conv_state.stride(0),
        new_conv_state.stride(0),
        WIDTH=weight.shape[1],
        STARTS=start is not None,
        BLOCK=_STEP_BLOCK,
    )
    return u
