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
def parameter_of(of_heads, i_h):
    return tl.load(of_heads + i_h).to(tl.float32)


@triton.jit
def _one_minus_exp(x):
    """1 - e^-x for x >= 0, with its digits where x is small."""
    series = x * (1.0 - x / 2.0 * (1.0 - x / 3.0 * (1.0 - x / 4.0 * (1.0 - x / 5.0))))
    return tl.where(x < 0.1, series, 1.0 - tl.exp2(-x * LOG2E))


@triton.jit
def A_of(delta):
    return delta - 0.5 * delta * delta


@triton.jit
def numbers_of(b_u, root):
    """a, 1 - e^-a and E of the rows u of a tile; root is √c."""
    b_wide = b_u.to(tl.float32)
    b_norm = tl.sqrt(tl.sum(b_wide * b_wide, 1))
    b_a = 2.0 * root * b_norm
    b_delta = tl.maximum(_one_minus_exp(b_a), 1e-7)  # keeps y above 0 between two points at 0
    return b_a, b_delta, tl.where(b_norm > 0.0, A_of(b_delta) / tl.maximum(b_norm, 1e-30), 0.0)


@triton.jit
def scaled_cosh(b_qk, b_row, b_column, LEAST: tl.constexpr):
    """2y, 2h and 2AB(1 - cos θ) of a tile from its rows' and its columns' numbers."""
    b_row_A, b_A = A_of(b_row[0]), A_of(b_column[0])
    b_angle = b_A[None, :] - (b_row[1] / b_row_A)[:, None] * (b_qk * b_column[1][None, :])
    b_spread = (2.0 * b_row_A)[:, None] * tl.maximum(b_angle, (LEAST * b_A)[None, :])
    b_apart = b_row[0][:, None] - b_column[0][None, :]
    b_four = 4.0 - 4.0 * b_row[0]
    return b_apart * b_apart + b_spread, b_four[:, None] - b_four[:, None] * b_column[0][None, :], b_spread


@triton.jit
def load_rows(p_tile, o_t, o_d, row_stride, row_end, dim, CLAMP: tl.constexpr, EVEN_D: tl.constexpr):
    """Rows (BLOCK, BLOCK_D) of a matrix; with CLAMP, its last row for those behind it."""
    if CLAMP:
        o_t = tl.minimum(o_t, row_end - 1)
    p_row = p_tile + o_t[:, None].to(tl.int64) * row_stride + o_d[None, :]
    if EVEN_D:
        return tl.load(p_row)
    else:
        return tl.load(p_row, mask=o_d[None, :] < dim, other=0.0)


@triton.jit
def store_rows(p_tile, o_t, o_d, row_stride, row_end, dim, b_values):
    p_row = p_tile + o_t[:, None].to(tl.int64) * row_stride + o_d[None, :]
    tl.store(
        p_row, b_values.to(p_tile.dtype.element_ty), mask=(o_t[:, None] < row_end) & (o_d[None, :] < dim)
    )


@triton.jit
def load_numbers(numbers, plane, o_t):
    """The first two numbers of each row: padded, so that there are some for rows behind the last."""
    return tl.load(numbers + o_t), tl.load(numbers + plane + o_t)


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
    i_bh = tl.program_id(1).to(tl.int64)
    i_h = i_bh % heads
    o_t, o_d = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    b_k = load_rows(k + i_bh // heads * k_batch + i_h * k_head, o_t, o_d, k_time, keys, dim, True, EVEN_D)
    root = tl.sqrt(parameter_of(curvature, i_h))
    b_a, b_delta, b_E = numbers_of(b_k, root)
    lane_size, plane = sizes_of(keys)
    p_numbers = numbers + i_bh * lane_size + o_t
    tl.store(p_numbers, b_delta)
    tl.store(p_numbers + plane, b_E)
    tl.store(p_numbers + 2 * plane, -parameter_of(beta, i_h) / root * LOG2E * b_a)


@triton.jit
def _attend(
    b_acc,
    b_max,
    b_sum,
    b_q,
    b_row,
    slope,
    o_pos,
    b_first,
    k,
    v,
    numbers,
    plane,
    o_d,
    i_n,
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
    o_c = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    b_k = load_rows(k, o_c, o_d, k_time, keys, dim, MASKED, EVEN_D)
    b_qk = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)
    b_column = load_numbers(numbers, plane, o_c)
    b_y, b_h, _ = scaled_cosh(b_qk, b_row, b_column, LEAST)
    b_argument = b_y + 0.5 * b_h + sqrt(b_y * (b_y + b_h))
    b_s = slope * log2(b_argument) + tl.load(numbers + 2 * plane + o_c)[None, :]
    if MASKED:
        m_s = o_c[None, :] <= o_pos[:, None]
        if HAS_FIRST:
            m_s = m_s & (o_c[None, :] >= b_first[:, None])
        b_s = tl.where(m_s, b_s, float("-inf"))
    b_higher = tl.maximum(b_max, tl.max(b_s, 1))
    b_p = exp2(b_s - b_higher[:, None])
    b_fade = exp2(b_max - b_higher)
    b_sum = b_sum * b_fade + tl.sum(b_p, 1)
    b_v = load_rows(v, o_c, o_d, v_time, keys, dim, MASKED, EVEN_D)
    b_acc = tl.dot(b_p.to(b_v.dtype), b_v, b_acc * b_fade[:, None], input_precision=PRECISION)
    return b_acc, b_higher, b_sum


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
    i_tile = tl.num_programs(0) - 1 - tl.program_id(0)  # the longest first
    i_bh = tl.program_id(1).to(tl.int64)
    i_b, i_h = i_bh // heads, i_bh % heads
    o_t, o_d = i_tile * BLOCK_M + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    offset = keys - queries
    o_pos = o_t + offset
    root = tl.sqrt(parameter_of(curvature, i_h))
    slope = -parameter_of(beta, i_h) / root
    b_q = load_rows(q + i_b * q_batch + i_h * q_head, o_t, o_d, q_time, queries, dim, True, EVEN_D)
    _, b_delta, b_E = numbers_of(b_q, root)
    b_row = (b_delta, b_E)

    start = i_tile * BLOCK_M + offset
    end = tl.minimum(start + BLOCK_M, keys)  # behind the last query's position
    low, low_of_all, b_first = 0, 0, o_pos
    if HAS_FIRST:
        b_first = tl.load(first + i_b * keys + o_pos, mask=o_pos < keys, other=0)
        low, low_of_all = tl.load(first + i_b * keys + start), tl.load(first + i_b * keys + end - 1)
    begin, behind = low // BLOCK_N, tl.cdiv(end, BLOCK_N)  # tiles of keys that any query sees
    whole = tl.cdiv(low_of_all, BLOCK_N)  # from here to whole_end all queries see all keys
    whole_end = tl.maximum((start + 1) // BLOCK_N, whole)

    k += i_b * k_batch + i_h * k_head
    v += i_b * v_batch + i_h * v_head
    lane_size, plane = sizes_of(keys)
    k_numbers += i_bh * lane_size
    b_acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    b_max = tl.full((BLOCK_M,), -1e30, tl.float32)
    b_sum = tl.zeros((BLOCK_M,), tl.float32)
    for i_n in range(whole, whole_end):
        b_acc, b_max, b_sum = _attend(
            b_acc,
            b_max,
            b_sum,
            b_q,
            b_row,
            slope,
            o_pos,
            b_first,
            k,
            v,
            k_numbers,
            plane,
            o_d,
            i_n,
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
        i_n = tl.where(step < whole - begin, begin + step, step - (whole - begin) + whole_end)
        b_acc, b_max, b_sum = _attend(
            b_acc,
            b_max,
            b_sum,
            b_q,
            b_row,
            slope,
            o_pos,
            b_first,
            k,
            v,
            k_numbers,
            plane,
            o_d,
            i_n,
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
        out + i_b * out_batch + i_h * out_head,
        o_t,
        o_d,
        out_time,
        queries,
        dim,
        b_acc / b_sum[:, None],
    )
    q_size, q_plane = sizes_of(queries)
    p_numbers = q_numbers + i_bh * q_size + o_t
    tl.store(p_numbers, b_delta)
    tl.store(p_numbers + q_plane, b_E)
    tl.store(p_numbers + 2 * q_plane, b_max + tl.log2(b_sum))


# ---- which keys a query sees


@triton.jit
def _larger(a, b):
    return tl.maximum(a, b)


@triton.jit(do_not_specialize=["time", "window"])
def find_first(doc_starts, first, time, window, BLOCK: tl.constexpr):
    """One program a row: the last document start so far, carried on, or where the window begins."""
    o_row = tl.program_id(0).to(tl.int64) * time
    b_carried = 0
    for begin in range(0, time, BLOCK):
        o_t = begin + tl.arange(0, BLOCK)
        m_start = tl.load(doc_starts + o_row + o_t, mask=o_t < time, other=0) != 0
        b_first = tl.associative_scan(tl.where(m_start, o_t, 0), 0, _larger)
        b_first = tl.maximum(b_first, b_carried)
        b_carried = tl.max(b_first, 0)
        tl.store(first + o_row + o_t, tl.maximum(b_first, o_t - (window - 1)), mask=o_t < time)


@triton.jit(do_not_specialize=["time"])
def find_last(first, last, time, STEPS: tl.constexpr, BLOCK: tl.constexpr):
    """How many positions' first is not behind each position, by bisection (first never falls), less one."""
    o_row = tl.program_id(0).to(tl.int64) * time
    o_t = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    b_low, b_high = tl.zeros((BLOCK,), tl.int32), tl.zeros((BLOCK,), tl.int32) + time
    for _ in range(STEPS):
        m_open = b_low < b_high
        b_middle = (b_low + b_high) // 2
        m_seen = tl.load(first + o_row + b_middle, mask=m_open, other=0) <= o_t
        b_low, b_high = (
            tl.where(m_open & m_seen, b_middle + 1, b_low),
            tl.where(m_open & (m_seen == 0), b_middle, b_high),
        )
    tl.store(last + o_row + o_t, b_low - 1, mask=o_t < time)


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
    i_row = tl.program_id(0).to(tl.int64)
    o_h, o_d = tl.arange(0, BLOCK_HEADS)[:, None], tl.arange(0, BLOCK_HALF)[None, :]
    m_x = (o_h < HEADS) & (o_d < HALF)
    p_one = qkv + (i_row * 3 + tl.program_id(1)) * (HEADS * 2 * HALF) + o_h * (2 * HALF) + o_d
    p_two = p_one + HALF
    o_angle = (i_row % time) * HALF + o_d
    b_cos = tl.load(cos + o_angle, mask=o_d < HALF, other=0.0) * scale
    b_sin = tl.load(sin + o_angle, mask=o_d < HALF, other=0.0) * (SIGN * scale)
    b_x, b_y = (
        tl.load(p_one, mask=m_x, other=0.0).to(tl.float32),
        tl.load(p_two, mask=m_x, other=0.0).to(tl.float32),
    )
    tl.store(p_one, (b_x * b_cos - b_y * b_sin).to(qkv.dtype.element_ty), mask=m_x)
    tl.store(p_two, (b_y * b_cos + b_x * b_sin).to(qkv.dtype.element_ty), mask=m_x)
