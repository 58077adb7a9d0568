"""One token of the token mixer as two Triton kernels: a program for a piece of a row, and a program for a row.

No tensor-core dot. Nothing is tuned: each kernel is a few hundred bytes of work, its cost is that of being launched.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from newllm_lib.ops.backend import on_its_device
from newllm_lib.ops.context_scan.kernels import sigmoid

_BLOCK = 256


@triton.jit
def _conv_step(
    x, weight, start, tail, new_tail, u, dim, x_row, tail_row, new_row,
    WIDTH: tl.constexpr, STARTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    dims = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = dims < dim
    now = tl.load(x + row * x_row + dims, mask=inside, other=0.0).to(tl.float32)
    total = now * (1.0 + tl.load(weight + dims * WIDTH, mask=inside, other=0.0).to(tl.float32))
    for k in tl.static_range(1, WIDTH):
        place = WIDTH - 1 - k
        past = tl.load(tail + row * tail_row + place * dim + dims, mask=inside, other=0.0)
        if STARTS:
            past = tl.where(tl.load(start + row).to(tl.int32) == 0, past, 0.0)
        total += past * tl.load(weight + dims * WIDTH + k, mask=inside, other=0.0).to(tl.float32)
        if place > 0:
            tl.store(new_tail + row * new_row + (place - 1) * dim + dims, past, mask=inside)
    if WIDTH > 1:
        tl.store(new_tail + row * new_row + (WIDTH - 2) * dim + dims, now, mask=inside)
    tl.store(u + row * dim + dims, total.to(u.dtype.element_ty), mask=inside)


@triton.jit
def _gate_step(
    projection, bias, weight, start, context, new_context, y, dim, eps, p_row, c_row, new_row,
    STARTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    dims = tl.arange(0, BLOCK)
    inside = dims < dim
    here = projection + row * p_row + dims
    value = tl.load(here, mask=inside, other=0.0).to(tl.float32)
    forget = tl.load(here + dim, mask=inside, other=0.0).to(tl.float32)
    forget += tl.load(bias + dims, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(here + 2 * dim, mask=inside, other=0.0).to(tl.float32)
    keep, share = sigmoid(forget), sigmoid(-forget)
    if STARTS:
        begins = tl.load(start + row).to(tl.int32) != 0
        keep, share = tl.where(begins, 0.0, keep), tl.where(begins, 1.0, share)
    c = keep * tl.load(context + row * c_row + dims, mask=inside, other=0.0) + share * value * sigmoid(value)
    tl.store(new_context + row * new_row + dims, c, mask=inside)
    read = c.to(y.dtype.element_ty).to(tl.float32)
    inverse = tl.rsqrt(tl.sum(read * read, 0) / dim + eps)
    scale = tl.load(weight + dims, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + row * dim + dims, (read * inverse * scale * gate * sigmoid(gate)).to(y.dtype.element_ty), mask=inside)


@on_its_device
def conv_step(x, weight, start, tail, new_tail):
    """As `context_step.conv_step`."""
    batch, dim = x.shape
    u = torch.empty(batch, dim, device=x.device, dtype=x.dtype)
    grid = batch, triton.cdiv(dim, _BLOCK)
    _conv_step[grid](
        x, weight, start, tail, new_tail, u, dim, x.stride(0), tail.stride(0), new_tail.stride(0),
        WIDTH=weight.shape[1], STARTS=start is not None, BLOCK=_BLOCK,
    )  # fmt: skip
    return u


@on_its_device
def gate_step(projection, forget_bias, norm_weight, start, context, new_context, eps=1e-6):
    """As `context_step.gate_step`."""
    batch, dim = context.shape
    y = torch.empty(batch, dim, device=projection.device, dtype=projection.dtype)
    block = triton.next_power_of_2(dim)
    _gate_step[(batch,)](
        projection, forget_bias, norm_weight, start, context, new_context, y, dim, eps, projection.stride(0), context.stride(0),
        new_context.stride(0), STARTS=start is not None, BLOCK=block, num_warps=min(16, max(1, block // 128)),
    )  # fmt: skip
    return y
