"""Triton kernels of hyperbolic attention: the forward pass and what both share; scores stay in registers.

The notation is `reference`'s. A tile of products u·w comes from the tensor cores, exact for the vectors as
they are given; everything else is float32 from a few numbers a row and a column ("numbers" below):

    0: δ = 1 - e^-a, of which α = 1 - δ and A = δ - δ²/2 come without loss
    1: E = A/|u| (0 where u is 0)
    2: of a key, its share -β/√c · b · log2(e) of the score; of a query, log2 of the sum of its weights,
       without the share of a, which is the same for all keys and so changes no weight.

y and h are held doubled here: it saves a product and moves every score by the same amount.

A score costs three evaluations in the special-function unit, √ (or 1/√), log2 and exp2, both ways.

Sizes: q, dout, out, dq (batch, heads, queries, dim), k, v, dk, dv (batch, heads, keys, dim), any strides but
1 for dim; numbers (3, batch·heads, time) and delta (batch·heads, queries) float32, time padded to a multiple
of 128: rows behind the last are repetitions of it, finite and never seen. first, last (batch, keys) int32
(`reference.first_visible`).
"""

from __future__ import annotations

import os

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")  # which knows no instructions


@triton.jit
def _special(x, INSTRUCTION: tl.constexpr):
    """One evaluation in the special-function unit: Triton's own log2 is a polynomial of 20 instructions, its
    exp2 mends results too small for anything here.
    """
    return tl.inline_asm_elementwise(
        INSTRUCTION + ".approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1
    )


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
    """Of the numbers: places a head and a plane, padded so that every head is aligned, every tile inside."""
    lane_size = tl.multiple_of((time + 127) // 128 * 128, 128)
    return lane_size, tl.multiple_of(tl.num_programs(1).to(tl.int64) * lane_size, 128)


# ---- the forward pass


@triton.jit(do_not_specialize=["keys"])
def key_numbers(
    k,
    numbers,
    beta,
    curvature,
    heads,
    keys,
    dim,
    k_batch,
    k_head,
    k_time,
    EVEN_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    lane = tl.program_id(1).to(tl.int64)
    head = lane % heads
    rows, dims = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    tile = load_rows(k + lane // heads * k_batch + head * k_head, rows, dims, k_time, keys, dim, True, EVEN_D)
    root = tl.sqrt(parameter_of(curvature, head))
    a, delta, E = numbers_of(tile, root)
    lane_size, plane = sizes_of(keys)
    place = numbers + lane * lane_size + rows
    tl.store(place, delta)
    tl.store(place + plane, E)
    tl.store(place + 2 * plane, -parameter_of(beta, head) / root * LOG2E * a)


@triton.jit
def _attend(
    total,
    highest,
    weights,
    tile_q,
    row,
    slope,
    position,
    first,
    k,
    v,
    numbers,
    plane,
    dims,
    n,
    k_time,
    v_time,
    keys,
    dim,
    MASKED: tl.constexpr,
    HAS_FIRST: tl.constexpr,
    EVEN_D: tl.constexpr,
    LEAST: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One tile of keys: the weighted sum of values, the highest score and the sum of weights after it."""
    columns = n * BLOCK_N + tl.arange(0, BLOCK_N)
    tile_k = load_rows(k, columns, dims, k_time, keys, dim, MASKED, EVEN_D)
    products = tl.dot(tile_q, tl.trans(tile_k), input_precision=PRECISION)
    column = load_numbers(numbers, plane, columns)
    y, h, _ = scaled_cosh(products, row, column, LEAST)
    argument = y + 0.5 * h + sqrt(y * (y + h))
    scores = slope * log2(argument) + tl.load(numbers + 2 * plane + columns)[None, :]
    if MASKED:
        visible = columns[None, :] <= position[:, None]
        if HAS_FIRST:
            visible = visible & (columns[None, :] >= first[:, None])
        scores = tl.where(visible, scores, float("-inf"))
    higher = tl.maximum(highest, tl.max(scores, 1))
    share = exp2(scores - higher[:, None])
    fade = exp2(highest - higher)
    weights = weights * fade + tl.sum(share, 1)
    tile_v = load_rows(v, columns, dims, v_time, keys, dim, MASKED, EVEN_D)
    total = tl.dot(share.to(tile_v.dtype), tile_v, total * fade[:, None], input_precision=PRECISION)
    return total, higher, weights


@triton.jit(do_not_specialize=["queries", "keys"])
def forward(
    q,
    k,
    v,
    out,
    q_numbers,
    k_numbers,
    first,
    beta,
    curvature,
    heads,
    queries,
    keys,
    dim,
    q_batch,
    q_head,
    q_time,
    k_batch,
    k_head,
    k_time,
    v_batch,
    v_head,
    v_time,
    out_batch,
    out_head,
    out_time,
    HAS_FIRST: tl.constexpr,
    EVEN_D: tl.constexpr,
    LEAST: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """out and the queries' numbers."""
    tile = tl.num_programs(0) - 1 - tl.program_id(0)  # the longest first
    lane = tl.program_id(1).to(tl.int64)
    batch, head = lane // heads, lane % heads
    rows, dims = tile * BLOCK_M + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    offset = keys - queries
    position = rows + offset
    root = tl.sqrt(parameter_of(curvature, head))
    slope = -parameter_of(beta, head) / root
    tile_q = load_rows(q + batch * q_batch + head * q_head, rows, dims, q_time, queries, dim, True, EVEN_D)
    _, delta, E = numbers_of(tile_q, root)
    row = (delta, E)

    start = tile * BLOCK_M + offset
    end = tl.minimum(start + BLOCK_M, keys)  # behind the last query's position
    low, low_of_all, row_first = 0, 0, position
    if HAS_FIRST:
        row_first = tl.load(first + batch * keys + position, mask=position < keys, other=0)
        low, low_of_all = tl.load(first + batch * keys + start), tl.load(first + batch * keys + end - 1)
    begin, behind = low // BLOCK_N, tl.cdiv(end, BLOCK_N)  # tiles of keys that any query sees
    whole = tl.cdiv(low_of_all, BLOCK_N)  # from here to whole_end all queries see all keys
    whole_end = tl.maximum((start + 1) // BLOCK_N, whole)

    k += batch * k_batch + head * k_head
    v += batch * v_batch + head * v_head
    lane_size, plane = sizes_of(keys)
    k_numbers += lane * lane_size
    total = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    highest = tl.full((BLOCK_M,), -1e30, tl.float32)
    weights = tl.zeros((BLOCK_M,), tl.float32)
    for n in range(whole, whole_end):
        total, highest, weights = _attend(
            total,
            highest,
            weights,
            tile_q,
            row,
            slope,
            position,
            row_first,
            k,
            v,
            k_numbers,
            plane,
            dims,
            n,
            k_time,
            v_time,
            keys,
            dim,
            False,
            HAS_FIRST,
            EVEN_D,
            LEAST,
            PRECISION,
            BLOCK_N,
        )
    for step in range(whole - begin + behind - whole_end):
        n = tl.where(step < whole - begin, begin + step, step - (whole - begin) + whole_end)
        total, highest, weights = _attend(
            total,
            highest,
            weights,
            tile_q,
            row,
            slope,
            position,
            row_first,
            k,
            v,
            k_numbers,
            plane,
            dims,
            n,
            k_time,
            v_time,
            keys,
            dim,
            True,
            HAS_FIRST,
            EVEN_D,
            LEAST,
            PRECISION,
            BLOCK_N,
        )

    store_rows(
        out + batch * out_batch + head * out_head,
        rows,
        dims,
        out_time,
        queries,
        dim,
        total / weights[:, None],
    )
    q_size, q_plane = sizes_of(queries)
    place = q_numbers + lane * q_size + rows
    tl.store(place, delta)
    tl.store(place + q_plane, E)
    tl.store(place + 2 * q_plane, highest + tl.log2(weights))


# ---- which keys a query sees


@triton.jit
def _larger(a, b):
    return tl.maximum(a, b)


@triton.jit(do_not_specialize=["time", "window"])
def find_first(doc_starts, first, time, window, BLOCK: tl.constexpr):
    """One program a row: the last document start so far, carried on, or where the window begins."""
    row = tl.program_id(0).to(tl.int64) * time
    carried = 0
    for begin in range(0, time, BLOCK):
        place = begin + tl.arange(0, BLOCK)
        starts_here = tl.load(doc_starts + row + place, mask=place < time, other=0) != 0
        start = tl.associative_scan(tl.where(starts_here, place, 0), 0, _larger)
        start = tl.maximum(start, carried)
        carried = tl.max(start, 0)
        tl.store(first + row + place, tl.maximum(start, place - (window - 1)), mask=place < time)


@triton.jit(do_not_specialize=["time"])
def find_last(first, last, time, STEPS: tl.constexpr, BLOCK: tl.constexpr):
    """How many positions' first is not behind each position, by bisection (first never falls), less one."""
    row = tl.program_id(0).to(tl.int64) * time
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    low, high = tl.zeros((BLOCK,), tl.int32), tl.zeros((BLOCK,), tl.int32) + time
    for _ in range(STEPS):
        open_ = low < high
        middle = (low + high) // 2
        seen = tl.load(first + row + middle, mask=open_, other=0) <= place
        low, high = tl.where(open_ & seen, middle + 1, low), tl.where(open_ & (seen == 0), middle, high)
    tl.store(last + row + place, low - 1, mask=place < time)


# ---- rotation by position


@triton.jit
def turn(
    qkv,
    cos,
    sin,
    time,
    scale,
    SIGN: tl.constexpr,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
):
    """Rotate one token's queries (program 0 of axis 1) or keys (1) in place by SIGN x angles, x `scale`."""
    row = tl.program_id(0).to(tl.int64)
    head, i = tl.arange(0, BLOCK_HEADS)[:, None], tl.arange(0, BLOCK_HALF)[None, :]
    inside = (head < HEADS) & (i < HALF)
    one = qkv + (row * 3 + tl.program_id(1)) * (HEADS * 2 * HALF) + head * (2 * HALF) + i
    two = one + HALF
    angle = (row % time) * HALF + i
    c = tl.load(cos + angle, mask=i < HALF, other=0.0) * scale
    s = tl.load(sin + angle, mask=i < HALF, other=0.0) * (SIGN * scale)
    x, y = (
        tl.load(one, mask=inside, other=0.0).to(tl.float32),
        tl.load(two, mask=inside, other=0.0).to(tl.float32),
    )
    tl.store(one, (x * c - y * s).to(qkv.dtype.element_ty), mask=inside)
    tl.store(two, (y * c + x * s).to(qkv.dtype.element_ty), mask=inside)
