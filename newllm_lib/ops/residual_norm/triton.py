"""The residual sum and its norm on a GPU: one kernel each way, float32 inside. No tensor-core dot, so from sm70 on.

A program takes ROWS whole rows at a time. The backward pass keeps few programs, each of which walks over many blocks of rows, so
that the sum that makes the weight's gradient stays in registers until the end.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from newllm_lib.ops.context_scan.launch import multiprocessors
from newllm_lib.ops.partial_sums import sum_rows

_FORWARD_TILE, _BACKWARD_TILE = 2048, 2048  # elements a program holds at a time
_PROGRAMS = 4  # programs a multiprocessor in the backward pass


@triton.jit(do_not_specialize=["rows"])
def norm_forward(
    x, y, weight, total, normed, rows, dim, eps, HAS_Y: tl.constexpr, ROWS: tl.constexpr, BLOCK_DIM: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    dims = tl.arange(0, BLOCK_DIM)[None, :]
    mask, place = (row < rows) & (dims < dim), row * dim + dims
    s = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    if HAS_Y:
        s = (s + tl.load(y + place, mask=mask, other=0.0).to(tl.float32)).to(total.dtype.element_ty)
        tl.store(total + place, s, mask=mask)
        s = s.to(tl.float32)  # the norm is of the sum as it is stored
    scale = tl.load(weight + dims, mask=dims < dim, other=0.0).to(tl.float32)
    inverse = tl.rsqrt(tl.sum(s * s, axis=1, keep_dims=True) / dim + eps)
    tl.store(normed + place, (s * inverse * scale).to(normed.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows"])
def norm_backward(
    total, weight, dtotal, dnormed, dx, dweight, rows, dim, eps,
    HAS_DTOTAL: tl.constexpr, ROWS: tl.constexpr, BLOCK_DIM: tl.constexpr,
):  # fmt: skip
    """dx = dtotal + the norm's gradient; dweight (programs, dim) float32: each program's share."""
    program = tl.program_id(0)
    dims = tl.arange(0, BLOCK_DIM)[None, :]
    scale = tl.load(weight + dims, mask=dims < dim, other=0.0).to(tl.float32)
    weight_sum = tl.zeros((ROWS, BLOCK_DIM), tl.float32)
    for block in range(program, tl.cdiv(rows, ROWS), tl.num_programs(0)):
        row = tl.full((ROWS, 1), block, tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
        mask, place = (row < rows) & (dims < dim), row * dim + dims
        s = tl.load(total + place, mask=mask, other=0.0).to(tl.float32)
        grad = tl.load(dnormed + place, mask=mask, other=0.0).to(tl.float32)
        inverse = tl.rsqrt(tl.sum(s * s, axis=1, keep_dims=True) / dim + eps)
        unit = s * inverse
        weight_sum += grad * unit
        grad = grad * scale
        out = inverse * (grad - unit * (tl.sum(grad * unit, axis=1, keep_dims=True) / dim))
        if HAS_DTOTAL:
            out += tl.load(dtotal + place, mask=mask, other=0.0).to(tl.float32)
        tl.store(dx + place, out.to(dx.dtype.element_ty), mask=mask)
    dims = tl.arange(0, BLOCK_DIM)
    tl.store(dweight + program * dim + dims, tl.sum(weight_sum, axis=0), mask=dims < dim)


def _tile(dim: int, elements: int) -> dict[str, int]:
    block = triton.next_power_of_2(dim)
    return dict(ROWS=max(1, elements // block), BLOCK_DIM=block, num_warps=4 if block <= 4096 else 8)


class _ResidualNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, y: Tensor | None, weight: Tensor, eps: float):
        dim = x.shape[-1]
        x = x.contiguous()
        total = x if y is None else torch.empty_like(x)
        normed, tile = torch.empty_like(x), _tile(dim, _FORWARD_TILE)
        rows = x.numel() // dim
        with torch.cuda.device_of(x):
            norm_forward[(triton.cdiv(rows, tile["ROWS"]),)](
                x, x if y is None else y.contiguous(), weight, total, normed, rows, dim, eps, HAS_Y=y is not None, **tile
            )
        ctx.save_for_backward(total, weight)
        ctx.eps, ctx.summed = eps, y is not None
        ctx.set_materialize_grads(False)
        return total, normed

    @staticmethod
    def backward(ctx, dtotal: Tensor | None, dnormed: Tensor | None):
        if dnormed is None:
            return dtotal, dtotal if ctx.summed else None, None, None
        total, weight = ctx.saved_tensors
        dim = total.shape[-1]
        rows, tile = total.numel() // dim, _tile(dim, _BACKWARD_TILE)
        programs = min(triton.cdiv(rows, tile["ROWS"]), _PROGRAMS * multiprocessors(total.device))
        dx = torch.empty_like(total)
        dweight = torch.empty(programs, dim, dtype=torch.float32, device=total.device)
        with torch.cuda.device_of(total):
            norm_backward[(programs,)](
                total, weight, total if dtotal is None else dtotal.contiguous(), dnormed.contiguous(), dx, dweight, rows, dim,
                ctx.eps, HAS_DTOTAL=dtotal is not None, **tile,
            )  # fmt: skip
        return dx, dx if ctx.summed else None, sum_rows(dweight, weight), None


def residual_norm(x: Tensor, y: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """As `residual_norm.residual_norm`, for float32, bfloat16 and float16."""
    return _ResidualNorm.apply(x, y, weight, eps)
