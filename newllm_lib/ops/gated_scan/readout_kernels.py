"""Triton kernels of y = RMSNorm(c; weight) * silu(z), forward and backward; float32 inside, one rounding at the end.

c, z and y are matrices (rows, dim) whose rows may lie apart (z is a third of the packed projection). A program takes
ROWS whole rows at a time. The backward pass keeps few programs, each of which walks over many blocks of rows, so that
the sum that makes the weight's gradient stays in registers until the end.
"""

from __future__ import annotations

import triton
import triton.language as tl

from newllm_lib.ops.context_scan.kernels import sigmoid


@triton.jit(do_not_specialize=["rows"])
def readout_forward(
    c, z, weight, y, rows, dim, eps, c_row, z_row, z_dim, ROWS: tl.constexpr, BLOCK_DIM: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    dims = tl.arange(0, BLOCK_DIM)[None, :]
    mask = (row < rows) & (dims < dim)
    x = tl.load(c + row * c_row + dims, mask=mask, other=0.0).to(tl.float32)
    gate = tl.load(z + row * z_row + dims * z_dim, mask=mask, other=0.0).to(tl.float32)
    scale = tl.load(weight + dims, mask=dims < dim, other=0.0).to(tl.float32)
    inverse = tl.rsqrt(tl.sum(x * x, axis=1, keep_dims=True) / dim + eps)
    out = (x * inverse) * scale * (gate * sigmoid(gate))
    tl.store(y + row * dim + dims, out.to(y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows"])
def readout_backward(
    c, z, weight, dy, dc, dz, dweight, rows, dim, eps, c_row, z_row, z_dim, dy_row, dy_dim, dz_row, dz_dim,
    ROWS: tl.constexpr, BLOCK_DIM: tl.constexpr,
):  # fmt: skip
    """dweight (programs, dim) float32: each program's share of the weight's gradient."""
    program = tl.program_id(0)
    dims = tl.arange(0, BLOCK_DIM)[None, :]
    scale = tl.load(weight + dims, mask=dims < dim, other=0.0).to(tl.float32)
    weight_sum = tl.zeros((ROWS, BLOCK_DIM), tl.float32)
    for block in range(program, tl.cdiv(rows, ROWS), tl.num_programs(0)):
        row = tl.full((ROWS, 1), block, tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
        mask = (row < rows) & (dims < dim)
        x = tl.load(c + row * c_row + dims, mask=mask, other=0.0).to(tl.float32)
        gate = tl.load(z + row * z_row + dims * z_dim, mask=mask, other=0.0).to(tl.float32)
        grad = tl.load(dy + row * dy_row + dims * dy_dim, mask=mask, other=0.0).to(tl.float32)
        inverse = tl.rsqrt(tl.sum(x * x, axis=1, keep_dims=True) / dim + eps)
        normal = x * inverse
        opened = sigmoid(gate)
        silu = gate * opened
        along_normal = grad * normal
        weight_sum += along_normal * silu
        grad_gate = along_normal * scale * (opened + silu * (1.0 - opened))
        grad_normal = grad * scale * silu
        grad_x = inverse * (grad_normal - normal * tl.sum(grad_normal * normal, axis=1, keep_dims=True) / dim)
        tl.store(dz + row * dz_row + dims * dz_dim, grad_gate.to(dz.dtype.element_ty), mask=mask)
        tl.store(dc + row * dim + dims, grad_x.to(dc.dtype.element_ty), mask=mask)
    total = tl.sum(weight_sum, axis=0)
    dims = tl.arange(0, BLOCK_DIM)
    tl.store(dweight + program * dim + dims, total, mask=dims < dim)
