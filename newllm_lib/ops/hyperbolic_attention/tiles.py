"""What the Triton kernels of hyperbolic attention share: scores live in registers, a tile at a time, both ways.

The notation is `geometry`'s. A tile of products u·w comes from the tensor cores, exact for the vectors as they are given;
everything else is float32 from a few numbers a row and a column ("numbers" below):

    0: δ = 1 - e^-a, of which α = 1 - δ and A = δ - δ²/2 come without loss      1: E = A/|u| (0 where u is 0)
    2: of a key, its share -β/√c · b · log2(e) of the score; of a query, log2 of the sum of its weights, without the share
       of a, which is the same for all keys and so changes no weight.

y and h are held doubled here: it saves a product and moves every score by the same amount.

A score costs three evaluations in the special-function unit, √ (or 1/√), log2 and exp2, both ways.

Sizes: q, dout, out, dq (batch, heads, queries, dim), k, v, dk, dv (batch, heads, keys, dim), any strides but 1 for dim;
numbers (3, batch·heads, time) and delta (batch·heads, queries) float32, time padded to a multiple of 128: rows behind the
last are repetitions of it, finite and never seen. first, last (batch, keys) int32 (`visibility`).
"""

from __future__ import annotations

import os

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")  # which knows no instructions


@triton.jit
def _special(x, INSTRUCTION: tl.constexpr):
    """One evaluation in the special-function unit: Triton's own log2 is a polynomial of 20 instructions, its exp2 mends
    results too small for anything here.
    """
    return tl.inline_asm_elementwise(INSTRUCTION + ".approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)


@triton.jit
def log2(x):
    return tl.log2(x) if INTERPRETED else _special(x, "lg2")


@triton.jit
def exp2(x):
    return tl.exp2(x) if INTERPRETED else _special(x, "ex2")


@triton.jit
def sqrt(x):
    return tl.sqrt(x) if INTERPRETED else _special(x, "sqrt")


@triton.jit
def rsqrt(x):
    return tl.rsqrt(x) if INTERPRETED else _special(x, "rsqrt")


@triton.jit
def parameter_of(of_heads, head):
    return tl.load(of_heads + head).to(tl.float32)


@triton.jit
def _one_minus_exp(x):
    """1 - e^-x for x >= 0, with its digits where x is small."""
    series = x * (1.0 - x / 2.0 * (1.0 - x / 3.0 * (1.0 - x / 4.0 * (1.0 - x / 5.0))))
    return tl.where(x < 0.1, series, 1.0 - tl.exp2(-x * LOG2E))


@triton.jit
def A_of(delta):
    return delta - 0.5 * delta * delta


@triton.jit
def numbers_of(tile, root):
    """a, 1 - e^-a and E of the rows u of a tile; root is √c."""
    wide = tile.to(tl.float32)
    norm = tl.sqrt(tl.sum(wide * wide, 1))
    a = 2.0 * root * norm
    delta = tl.maximum(_one_minus_exp(a), 1e-7)  # keeps y above 0 between two points at 0
    return a, delta, tl.where(norm > 0.0, A_of(delta) / tl.maximum(norm, 1e-30), 0.0)


@triton.jit
def scaled_cosh(products, row, column, LEAST: tl.constexpr):
    """2y, 2h and 2AB(1 - cos θ) of a tile from its rows' and its columns' numbers."""
    row_A, A = A_of(row[0]), A_of(column[0])
    angle = A[None, :] - (row[1] / row_A)[:, None] * (products * column[1][None, :])
    spread = (2.0 * row_A)[:, None] * tl.maximum(angle, (LEAST * A)[None, :])
    apart = row[0][:, None] - column[0][None, :]
    four = 4.0 - 4.0 * row[0]
    return apart * apart + spread, four[:, None] - four[:, None] * column[0][None, :], spread


@triton.jit
def load_rows(tile, rows, dims, row_stride, row_end, dim, CLAMP: tl.constexpr, EVEN_D: tl.constexpr):
    """Rows (BLOCK, BLOCK_D) of a matrix; with CLAMP, its last row for those behind it."""
    if CLAMP:
        rows = tl.minimum(rows, row_end - 1)
    place = tile + rows[:, None].to(tl.int64) * row_stride + dims[None, :]
    if EVEN_D:
        return tl.load(place)
    else:
        return tl.load(place, mask=dims[None, :] < dim, other=0.0)


@triton.jit
def store_rows(tile, rows, dims, row_stride, row_end, dim, values):
    place = tile + rows[:, None].to(tl.int64) * row_stride + dims[None, :]
    tl.store(place, values.to(tile.dtype.element_ty), mask=(rows[:, None] < row_end) & (dims[None, :] < dim))


@triton.jit
def load_numbers(numbers, plane, rows):
    """The first two numbers of each row: padded, so that there are some for rows behind the last."""
    return tl.load(numbers + rows), tl.load(numbers + plane + rows)


@triton.jit
def within(value, low, high):
    return tl.minimum(tl.maximum(value, low), high)


@triton.jit
def sizes_of(time):
    """Of the numbers: places a lane and a plane, padded so that every lane is aligned and every tile inside."""
    lane_size = tl.multiple_of((time + 127) // 128 * 128, 128)
    return lane_size, tl.multiple_of(tl.num_programs(1).to(tl.int64) * lane_size, 128)
