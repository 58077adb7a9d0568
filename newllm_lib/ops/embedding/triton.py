"""`token_embedding` on a GPU: a custom operator over two kernels."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from newllm_lib.ops.common.dispatch import on_device_of_first_argument

_TILE = 2048  # elements a program


@triton.jit
def gather_rows(ids, weight, out, count, dim, BLOCK_ROWS: tl.constexpr, BLOCK_DIM: tl.constexpr):
    """out (count, dim) = weight[ids]."""
    o_r = (tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)).to(tl.int64)
    o_d = tl.arange(0, BLOCK_DIM)
    b_ids = tl.load(ids + o_r, mask=o_r < count, other=0)
    m_x = (o_r < count)[:, None] & (o_d < dim)[None, :]
    b_x = tl.load(weight + b_ids[:, None] * dim + o_d[None, :], mask=m_x, other=0.0)
    tl.store(out + o_r[:, None] * dim + o_d[None, :], b_x.to(out.dtype.element_ty), mask=m_x)


@triton.jit
def add_rows(ids, rows, total, count, dim, BLOCK_ROWS: tl.constexpr, BLOCK_DIM: tl.constexpr):
    """total[ids] += rows (count, dim), in float32, in whatever order they come."""
    o_r = (tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)).to(tl.int64)
    o_d = tl.arange(0, BLOCK_DIM)
    b_ids = tl.load(ids + o_r, mask=o_r < count, other=0)
    m_x = (o_r < count)[:, None] & (o_d < dim)[None, :]
    b_x = tl.load(rows + o_r[:, None] * dim + o_d[None, :], mask=m_x, other=0.0).to(tl.float32)
    tl.atomic_add(total + b_ids[:, None] * dim + o_d[None, :], b_x, mask=m_x, sem="relaxed")


def _tile(count: int, dim: int) -> tuple[tuple[int], dict[str, int]]:
    block = triton.next_power_of_2(dim)
    rows = max(1, _TILE // block)
    return (triton.cdiv(count, rows),), dict(BLOCK_ROWS=rows, BLOCK_DIM=block, num_warps=4)


@torch.library.custom_op("newllm::token_embedding", mutates_args=())
@on_device_of_first_argument
def _embedding(weight: Tensor, ids: Tensor, dtype: torch.dtype) -> Tensor:
    """ids (count,) without gaps."""
    out = weight.new_empty(len(ids), weight.shape[1], dtype=dtype)
    grid, tile = _tile(*out.shape)
    gather_rows[grid](ids, weight.contiguous(), out, *out.shape, **tile)
    return out


@_embedding.register_fake
def _(weight, ids, dtype):
    return weight.new_empty(ids.shape[0], weight.shape[1], dtype=dtype)


@torch.library.custom_op("newllm::token_embedding_backward", mutates_args=())
@on_device_of_first_argument
def _gradient(drows: Tensor, ids: Tensor, words: int) -> Tensor:
    """The gradient of the weight (words, dim), float32."""
    total = drows.new_zeros(words, drows.shape[1], dtype=torch.float32)
    grid, tile = _tile(*drows.shape)
    add_rows[grid](ids, drows.contiguous(), total, *drows.shape, **tile)
    return total


@_gradient.register_fake
def _(drows, ids, words):
    return drows.new_empty(words, drows.shape[1], dtype=torch.float32)


def _keep(ctx, inputs, output):
    weight, ids, _ = inputs
    ctx.words, ctx.dtype = len(weight), weight.dtype
    ctx.save_for_backward(ids)


def _backward(ctx, drows):
    return _gradient(drows, ctx.saved_tensors[0], ctx.words).to(ctx.dtype), None, None


_embedding.register_autograd(_backward, setup_context=_keep)


def token_embedding(ids: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Sizes as in `embedding.token_embedding`."""
    return _embedding(weight, ids.reshape(-1).contiguous(), dtype).view(*ids.shape, weight.shape[1])
