"""Triton kernels of the backward pass; notation and sizes are those of `kernels`.

The gradient of D is that of its logarithm's argument, dD/dy = 1/√(y(y+h)), and the rest is products: with
g = dscore/√(y(y+h)),

    dq_i = (β/√c) E_i Σ_j g_ij F_j k_j   across q_i, which is a matrix product, and
         = -2β Σ_j g_ij ((β_j² - α_i²)/2 + (1+α_i²)/2 · B_j(1 - cos θ_ij))   along q_i,

kept apart because the first, rounded for the matrix product, would drown the second. A score is a function of
√c q and √c k over √c, so the gradient of c needs the lengths' gradients only: dc = (Σ q·dq + Σ k·dk - Σ
score·dscore)/2c. It and the gradient of β are small sums of large terms which only cancel if a query's
dscores sum to 0. With delta = Σ out·dout, as attention computes it, they sum to out's rounding;
`backward_queries` measures what is over and takes it out again.
"""

from __future__ import annotations

import triton
import triton.language as tl

from newllm_lib.ops.hyperbolic_attention.kernels import (
    LOG2E,
    A_of,
    exp2,
    load_numbers,
    load_rows,
    log2,
    parameter_of,
    rsqrt,
    scaled_cosh,
    sizes_of,
    store_rows,
    within,
)


@triton.jit
def _score_gradients(
    b_qk,
    b_dp,
    b_delta,
    b_row_log,
    b_log,
    slope,
    b_row,
    b_column,
    m_s,
    MASKED: tl.constexpr,
    LEAST: tl.constexpr,
):
    """Of a tile: the weights, log2 of them, dscore, the factor that makes it g/2, and what g/2 pulls along a
    vector.

    delta is (rows, 1) or (1, columns).
    """
    b_y, b_h, b_spread = scaled_cosh(b_qk, b_row, b_column, LEAST)
    b_square = b_y * (b_y + b_h)
    b_inv_root = rsqrt(b_square)
    b_log_p = slope * log2(b_y + 0.5 * b_h + b_square * b_inv_root) + (b_row_log[:, None] + b_log[None, :])
    b_p = exp2(b_log_p)
    if MASKED:
        b_p = tl.where(m_s, b_p, 0.0)
    b_ds = b_p * (b_dp - b_delta)
    b_row_A = A_of(b_row[0])
    b_pull = (
        ((1.0 - b_row_A) / b_row_A)[:, None] * b_spread
        + (2.0 * b_row_A)[:, None]
        - (2.0 * A_of(b_column[0]))[None, :]
    )
    return b_p, b_log_p, b_ds, b_inv_root, b_pull


@triton.jit
def _to(b_values, like):
    """In like's dtype; in float16 bounded, as an infinity would turn a zero vector's gradient into NaN."""
    if like.dtype == tl.float16:
        b_values = within(b_values, -65504.0, 65504.0)
    return b_values.to(like.dtype)


@triton.jit
def _query_gradients(
    b_across,
    b_sums,
    b_q,
    b_do,
    b_row,
    b_row_log,
    b_delta,
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
    """One tile of keys: the sums after it that make the queries' gradients.

    `sums`, each (rows,): of dscore, of dscore times score and times pull, and of the weights times score and
    times pull.
    """
    o_c = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    b_k = load_rows(k, o_c, o_d, k_time, keys, dim, MASKED, EVEN_D)
    b_v = load_rows(v, o_c, o_d, v_time, keys, dim, MASKED, EVEN_D)
    b_qk = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)
    b_dp = tl.dot(b_do, tl.trans(b_v), input_precision=PRECISION)
    b_column = load_numbers(numbers, plane, o_c)
    b_log = tl.load(numbers + 2 * plane + o_c)
    m_s = o_c[None, :] <= o_pos[:, None]
    if HAS_FIRST:
        m_s = m_s & (o_c[None, :] >= b_first[:, None])
    b_p, b_log_p, b_ds, b_inv_root, b_pull = _score_gradients(
        b_qk, b_dp, b_delta[:, None], b_row_log, b_log, slope, b_row, b_column, m_s, MASKED, LEAST
    )
    b_g, b_pulled = b_ds * b_inv_root, b_inv_root * b_pull
    b_sums = (
        b_sums[0] + tl.sum(b_ds, 1),
        b_sums[1] + tl.sum(b_ds * b_log_p, 1),
        b_sums[2] + tl.sum(b_ds * b_pulled, 1),
        b_sums[3] + tl.sum(b_p * b_log_p, 1),
        b_sums[4] + tl.sum(b_p * b_pulled, 1),
    )
    b_across = tl.dot(_to(b_g * b_column[1][None, :], b_k), b_k, b_across, input_precision=PRECISION)
    return b_across, b_sums


@triton.jit
def _length_gradient(b_across, b_along, b_u, b_row, root, slope):
    """The rows' gradients (BLOCK, BLOCK_D) and the products of both, from the sums over the columns."""
    b_wide = b_u.to(tl.float32)
    b_E = 2.0 * tl.where(b_row[1] > 0.0, b_row[1], 2.0 * root)  # across holds half of g
    b_unit = b_wide * (b_row[1] / A_of(b_row[0]))[:, None]
    b_radial = tl.sum(b_across * b_unit, 1)
    b_pull = 2.0 * root * slope * b_along
    b_norm = tl.where(b_row[1] > 0.0, A_of(b_row[0]) / tl.maximum(b_row[1], 1e-30), 0.0)
    return (-slope * b_E)[:, None] * b_across + (b_pull + slope * b_E * b_radial)[
        :, None
    ] * b_unit, b_pull * b_norm


@triton.jit(do_not_specialize=["queries", "keys"])
def backward_queries(
    q,
    k,
    v,
    out,
    dout,
    dq,
    q_numbers,
    k_numbers,
    delta,
    parts,
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
    dq_batch,
    dq_head,
    dq_time,
    HAS_FIRST: tl.constexpr,
    EVEN_D: tl.constexpr,
    LEAST: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """dq, delta (dscores sum to 0 with it), parts (2, batch·heads, tiles): Σ score·dscore, Σ q·dq."""
    i_tile = tl.num_programs(0) - 1 - tl.program_id(0)
    i_bh = tl.program_id(1).to(tl.int64)
    i_b, i_h = i_bh // heads, i_bh % heads
    o_t, o_d = i_tile * BLOCK_M + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    offset = keys - queries
    o_pos = o_t + offset
    root = tl.sqrt(parameter_of(curvature, i_h))
    slope = -parameter_of(beta, i_h) / root
    b_q = load_rows(q + i_b * q_batch + i_h * q_head, o_t, o_d, q_time, queries, dim, True, EVEN_D)
    b_do = load_rows(dout + i_b * out_batch + i_h * out_head, o_t, o_d, out_time, queries, dim, True, EVEN_D)
    b_o = load_rows(out + i_b * out_batch + i_h * out_head, o_t, o_d, out_time, queries, dim, True, EVEN_D)
    b_delta = tl.sum(b_o.to(tl.float32) * b_do.to(tl.float32), 1)
    q_size, q_plane = sizes_of(queries)
    b_row = load_numbers(q_numbers + i_bh * q_size, q_plane, o_t)
    b_row_log = -tl.load(q_numbers + 2 * q_plane + i_bh * q_size + o_t)
    b_row_log = tl.where(o_t < queries, b_row_log, -1e30)  # repetitions weigh nothing

    start = i_tile * BLOCK_M + offset
    end = tl.minimum(start + BLOCK_M, keys)
    low, low_of_all, b_first = 0, 0, o_pos
    if HAS_FIRST:
        b_first = tl.load(first + i_b * keys + o_pos, mask=o_pos < keys, other=0)
        low, low_of_all = tl.load(first + i_b * keys + start), tl.load(first + i_b * keys + end - 1)
    begin, behind = low // BLOCK_N, tl.cdiv(end, BLOCK_N)
    whole = tl.cdiv(low_of_all, BLOCK_N)
    whole_end = tl.maximum((start + 1) // BLOCK_N, whole)

    k += i_b * k_batch + i_h * k_head
    v += i_b * v_batch + i_h * v_head
    lane_size, plane = sizes_of(keys)
    k_numbers += i_bh * lane_size
    b_across = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    b_zero = tl.zeros((BLOCK_M,), tl.float32)
    b_sums = (b_zero, b_zero, b_zero, b_zero, b_zero)
    for i_n in range(whole, whole_end):
        b_across, b_sums = _query_gradients(
            b_across,
            b_sums,
            b_q,
            b_do,
            b_row,
            b_row_log,
            b_delta,
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
        b_across, b_sums = _query_gradients(
            b_across,
            b_sums,
            b_q,
            b_do,
            b_row,
            b_row_log,
            b_delta,
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

    b_over, b_score, b_along, b_mean_score, b_mean_pull = b_sums
    tl.store(delta + i_bh * q_size + o_t, b_delta + b_over)
    b_dq, b_inner = _length_gradient(b_across, b_along - b_over * b_mean_pull, b_q, b_row, root, slope)
    store_rows(dq + i_b * dq_batch + i_h * dq_head, o_t, o_d, dq_time, queries, dim, b_dq)
    p_part = parts + i_bh * tl.num_programs(0) + i_tile
    tl.store(p_part, tl.sum(b_score - b_over * b_mean_score, 0) / LOG2E)
    tl.store(p_part + tl.num_programs(1).to(tl.int64) * tl.num_programs(0), tl.sum(b_inner, 0))


@triton.jit
def _key_gradients(
    b_across,
    b_along,
    b_dv,
    b_k,
    b_v,
    b_row,
    b_row_log,
    slope,
    o_row,
    q,
    dout,
    first,
    numbers,
    plane,
    delta,
    o_d,
    i_m,
    q_time,
    dout_time,
    offset,
    queries,
    dim,
    MASKED: tl.constexpr,
    HAS_FIRST: tl.constexpr,
    EVEN_D: tl.constexpr,
    LEAST: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """One tile of queries (the columns): the sums that make the gradients of keys and values, after it."""
    o_c = i_m * BLOCK_M + tl.arange(0, BLOCK_M)
    b_q = load_rows(q, o_c, o_d, q_time, queries, dim, MASKED, EVEN_D)
    b_do = load_rows(dout, o_c, o_d, dout_time, queries, dim, MASKED, EVEN_D)
    b_qk = tl.dot(b_k, tl.trans(b_q), input_precision=PRECISION)
    b_dp = tl.dot(b_v, tl.trans(b_do), input_precision=PRECISION)
    b_column = load_numbers(numbers, plane, o_c)
    b_log = -tl.load(numbers + 2 * plane + o_c)
    b_delta = tl.load(delta + o_c)
    o_pos = o_c + offset
    m_s = (o_pos[None, :] >= o_row[:, None]) & (o_c[None, :] < queries)
    if HAS_FIRST and MASKED:
        m_s = m_s & (tl.load(first + o_pos, mask=o_c < queries, other=0)[None, :] <= o_row[:, None])
    b_p, _, b_ds, b_inv_root, b_pull = _score_gradients(
        b_qk, b_dp, b_delta[None, :], b_row_log, b_log, slope, b_row, b_column, m_s, MASKED, LEAST
    )
    b_g = b_ds * b_inv_root
    b_along += tl.sum(b_g * b_pull, 1)
    b_share = _to(b_g * b_column[1][None, :], b_q)
    b_dv = tl.dot(b_p.to(b_do.dtype), b_do, b_dv, input_precision=PRECISION)
    b_across = tl.dot(b_share, b_q, b_across, input_precision=PRECISION)
    return b_across, b_along, b_dv


@triton.jit(do_not_specialize=["queries", "keys"])
def backward_keys(
    q,
    k,
    v,
    dout,
    dk,
    dv,
    q_numbers,
    k_numbers,
    delta,
    parts,
    first,
    last,
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
    dout_batch,
    dout_head,
    dout_time,
    dk_batch,
    dk_head,
    dk_time,
    dv_batch,
    dv_head,
    dv_time,
    HAS_FIRST: tl.constexpr,
    EVEN_D: tl.constexpr,
    LEAST: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """dk, dv and a program's part (batch·heads, tiles) of Σ k·dk; after `backward_queries` wrote delta."""
    i_tile = tl.program_id(0)
    i_bh = tl.program_id(1).to(tl.int64)
    i_b, i_h = i_bh // heads, i_bh % heads
    o_t, o_d = i_tile * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    offset = keys - queries
    root = tl.sqrt(parameter_of(curvature, i_h))
    slope = -parameter_of(beta, i_h) / root
    b_k = load_rows(k + i_b * k_batch + i_h * k_head, o_t, o_d, k_time, keys, dim, True, EVEN_D)
    b_v = load_rows(v + i_b * v_batch + i_h * v_head, o_t, o_d, v_time, keys, dim, True, EVEN_D)
    k_size, plane = sizes_of(keys)
    b_row = load_numbers(k_numbers + i_bh * k_size, plane, o_t)
    b_row_log = tl.load(k_numbers + 2 * plane + i_bh * k_size + o_t)

    start = i_tile * BLOCK_N
    # behind the last query that sees any key, and that sees the first key
    behind_row, behind_first = queries, queries
    if HAS_FIRST:
        first += i_b * keys
        behind_row = tl.load(last + i_b * keys + tl.minimum(start + BLOCK_N, keys) - 1) + 1 - offset
        behind_first = tl.load(last + i_b * keys + start) + 1 - offset
    begin = tl.maximum(start - offset, 0) // BLOCK_M
    behind = tl.maximum(tl.cdiv(behind_row, BLOCK_M), begin)
    whole = tl.minimum(tl.cdiv(tl.maximum(start + BLOCK_N - 1 - offset, 0), BLOCK_M), behind)
    whole_end = within(behind_first // BLOCK_M, whole, behind)

    q += i_b * q_batch + i_h * q_head
    dout += i_b * dout_batch + i_h * dout_head
    q_size, q_plane = sizes_of(queries)
    q_numbers += i_bh * q_size
    delta += i_bh * q_size
    b_across = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    b_along = tl.zeros((BLOCK_N,), tl.float32)
    b_dv = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    for step in range(whole - begin + behind - whole_end):
        i_m = tl.where(step < whole - begin, begin + step, step - (whole - begin) + whole_end)
        b_across, b_along, b_dv = _key_gradients(
            b_across,
            b_along,
            b_dv,
            b_k,
            b_v,
            b_row,
            b_row_log,
            slope,
            o_t,
            q,
            dout,
            first,
            q_numbers,
            q_plane,
            delta,
            o_d,
            i_m,
            q_time,
            dout_time,
            offset,
            queries,
            dim,
            True,
            HAS_FIRST,
            EVEN_D,
            LEAST,
            PRECISION,
            BLOCK_M,
        )
    for i_m in range(whole, whole_end):
        b_across, b_along, b_dv = _key_gradients(
            b_across,
            b_along,
            b_dv,
            b_k,
            b_v,
            b_row,
            b_row_log,
            slope,
            o_t,
            q,
            dout,
            first,
            q_numbers,
            q_plane,
            delta,
            o_d,
            i_m,
            q_time,
            dout_time,
            offset,
            queries,
            dim,
            False,
            HAS_FIRST,
            EVEN_D,
            LEAST,
            PRECISION,
            BLOCK_M,
        )

    b_dk, b_inner = _length_gradient(b_across, b_along, b_k, b_row, root, slope)
    store_rows(dk + i_b * dk_batch + i_h * dk_head, o_t, o_d, dk_time, keys, dim, b_dk)
    store_rows(dv + i_b * dv_batch + i_h * dv_head, o_t, o_d, dv_time, keys, dim, b_dv)
    tl.store(parts + i_bh * tl.num_programs(0) + i_tile, tl.sum(b_inner, 0))


@triton.jit(do_not_specialize=["batches", "q_tiles", "k_tiles"])
def parameter_gradients(
    q_parts,
    k_parts,
    beta,
    curvature,
    dbeta,
    dcurvature,
    batches,
    heads,
    q_tiles,
    k_tiles,
    BLOCK: tl.constexpr,
):
    """The gradients of a head's beta and curvature from the programs' parts."""
    i_h = tl.program_id(0)
    b_scores, b_lengths = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    for i_b in range(batches):
        i_bh = (i_b * heads + i_h).to(tl.int64)
        plane = (batches * heads).to(tl.int64) * q_tiles
        for start in range(0, q_tiles, BLOCK):
            o_tile = start + tl.arange(0, BLOCK)
            b_scores += tl.load(q_parts + i_bh * q_tiles + o_tile, mask=o_tile < q_tiles, other=0.0)
            b_lengths += tl.load(q_parts + plane + i_bh * q_tiles + o_tile, mask=o_tile < q_tiles, other=0.0)
        for start in range(0, k_tiles, BLOCK):
            o_tile = start + tl.arange(0, BLOCK)
            b_lengths += tl.load(k_parts + i_bh * k_tiles + o_tile, mask=o_tile < k_tiles, other=0.0)
    b_score = tl.sum(b_scores, 0)
    b_dc = (tl.sum(b_lengths, 0) - b_score) / (2.0 * parameter_of(curvature, i_h))
    tl.store(dbeta + i_h, (b_score / parameter_of(beta, i_h)).to(dbeta.dtype.element_ty))
    tl.store(dcurvature + i_h, b_dc.to(dcurvature.dtype.element_ty))
