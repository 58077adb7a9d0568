"""Triton kernels of r = x + branch and n = RMSNorm(r; weight), forward and backward; float32 inside, one rounding at the end.

x, branch, r, n and their gradients are matrices (rows, dim) without gaps. A program takes ROWS whole rows at a time; in the
backward pass it walks over many blocks of them, so that the sum that makes the weight's gradient stays in registers.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["rows"])
def norm_forward(
    x, branch, weight, r, n, rows, dim, eps, HAS_BRANCH: tl.constexpr, ROWS: tl.constexpr, BLOCK_DIM: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    dims = tl.arange(0, BLOCK_DIM)[None, :]
    mask = (row < rows) & (dims < dim)
    place = row * dim + dims
    value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    if HAS_BRANCH:
        value += tl.load(branch + place, mask=mask, other=0.0).to(tl.float32)
        rounded = value.to(r.dtype.element_ty)
        tl.store(r + place, rounded, mask=mask)
        value = rounded.to(tl.float32)
    scale = tl.load(weight + dims, mask=dims < dim, other=0.0).to(tl.float32)
    inverse = tl.rsqrt(tl.sum(value * value, axis=1, keep_dims=True) / dim + eps)
    tl.store(n + place, (value * inverse * scale).to(n.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows"])
def norm_backward(
    r, weight, dn, dr, dx, dweight, rows, dim, eps, HAS_DR: tl.constexpr, ROWS: tl.constexpr, BLOCK_DIM: tl.constexpr
):  # fmt: skip
    """dx, the gradient of x and of the branch, from those of n and (HAS_DR) of r; dweight (programs, dim) float32, in shares."""
    program = tl.program_id(0)
    dims = tl.arange(0, BLOCK_DIM)[None, :]
    scale = tl.load(weight + dims, mask=dims < dim, other=0.0).to(tl.float32)
    weight_sum = tl.zeros((ROWS, BLOCK_DIM), tl.float32)
    for block in range(program, tl.cdiv(rows, ROWS), tl.num_programs(0)):
        row = tl.full((ROWS, 1), block, tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
        mask = (row < rows) & (dims < dim)
        place = row * dim + dims
        value = tl.load(r + place, mask=mask, other=0.0).to(tl.float32)
        grad = tl.load(dn + place, mask=mask, other=0.0).to(tl.float32)
        if HAS_DR:
            from_stream = tl.load(dr + place, mask=mask, other=0.0).to(tl.float32)
        inverse = tl.rsqrt(tl.sum(value * value, axis=1, keep_dims=True) / dim + eps)
        normal = value * inverse
        weight_sum += grad * normal
        grad *= scale
        total = inverse * (grad - normal * tl.sum(grad * normal, axis=1, keep_dims=True) / dim)
        if HAS_DR:
            total += from_stream
        tl.store(dx + place, total.to(dx.dtype.element_ty), mask=mask)
    dims = tl.arange(0, BLOCK_DIM)
    tl.store(dweight + program * dim + dims, tl.sum(weight_sum, axis=0), mask=dims < dim)
