"""A matrix product whose result is squared, or turned into the gradient before the square, while still in registers."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def product(
    x, w, squares, out, rows, columns, x_row, w_inner, w_column,
    INNER: tl.constexpr, GRADIENT: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
    BLOCK_INNER: tl.constexpr, EVEN: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """out = relu(x @ w)^2, or with GRADIENT out = (x @ w) * 2 sqrt(squares).

    x (rows, INNER) and out, squares (rows, columns) have columns that lie side by side; w is (INNER, columns) by its strides.
    A program keeps its columns of w in shared memory and walks down the rows, so that x's next rows are on their way while
    the last product is stored. EVEN: INNER and the columns fill their blocks.
    """
    blocks = tl.cdiv(columns, BLOCK_COLUMNS)
    program = tl.program_id(0)
    column = (program % blocks) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    local, k = tl.arange(0, BLOCK_ROWS), tl.arange(0, BLOCK_INNER)
    column_in, k_in = column < columns, k < INNER
    right = tl.load(w + k[:, None] * w_inner + column[None, :] * w_column, mask=k_in[:, None] & column_in[None, :], other=0.0)
    for block in tl.range(program // blocks, tl.cdiv(rows, BLOCK_ROWS), tl.num_programs(0) // blocks, num_stages=STAGES):
        # 64 bits for where the block begins, 32 for the places in it: an address an element costs as much as its arithmetic.
        first = tl.cast(block, tl.int64) * BLOCK_ROWS
        row_in = local < rows - first
        place = local[:, None] * columns + column[None, :]
        if EVEN:
            inside = row_in[:, None]
            left = tl.load(x + first * x_row + (local[:, None] * x_row + k[None, :]), mask=inside, other=0.0)
        else:
            inside = row_in[:, None] & column_in[None, :]
            left_in = row_in[:, None] & k_in[None, :]
            left = tl.load(x + first * x_row + (local[:, None] * x_row + k[None, :]), mask=left_in, other=0.0)
        if GRADIENT:  # asked for before the product, which hides the wait
            square = tl.load(squares + first * columns + place, mask=inside, other=0.0)
        result = tl.dot(left, right, input_precision="ieee")
        if GRADIENT:
            result *= 2.0 * tl.sqrt(square.to(tl.float32))
        else:
            result = tl.maximum(result, 0.0, propagate_nan=tl.PropagateNan.ALL)
            result *= result
        tl.store(out + first * columns + place, result.to(out.dtype.element_ty), mask=inside)
