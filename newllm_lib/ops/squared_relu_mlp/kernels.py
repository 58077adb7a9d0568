"""A matrix product whose result is squared, or turned into the gradient before the square, while still in registers."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def product(
    x, w, squares, out, rows, columns, x_row, w_inner, w_column,
    INNER: tl.constexpr, GRADIENT: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
    BLOCK_INNER: tl.constexpr,
):  # fmt: skip
    """out = relu(x @ w)^2, or with GRADIENT out = (x @ w) * 2 sqrt(squares).

    x (rows, INNER) and out, squares (rows, columns) have columns that lie side by side; w is (INNER, columns) by its strides.
    The programs of a row of blocks run side by side, so that they share their x in the cache.
    """
    blocks = tl.cdiv(columns, BLOCK_COLUMNS)
    program = tl.program_id(0)
    row = (program // blocks).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = (program % blocks) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    inner = tl.arange(0, BLOCK_INNER)
    row_in, column_in = row < rows, column < columns
    total = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
    for start in range(0, INNER, BLOCK_INNER):
        k = start + inner
        k_in = k < INNER
        left = tl.load(x + row[:, None] * x_row + k[None, :], mask=row_in[:, None] & k_in[None, :], other=0.0)
        right = tl.load(w + k[:, None] * w_inner + column[None, :] * w_column, mask=k_in[:, None] & column_in[None, :], other=0.0)
        total = tl.dot(left, right, total, input_precision="ieee")
    place = row[:, None] * columns + column[None, :]
    inside = row_in[:, None] & column_in[None, :]
    if GRADIENT:
        total *= 2.0 * tl.sqrt(tl.load(squares + place, mask=inside, other=0.0).to(tl.float32))
    else:
        total = tl.maximum(total, 0.0)
        total *= total
    tl.store(out + place, total.to(out.dtype.element_ty), mask=inside)
