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
    products,
    dweights,
    delta,
    row_logs,
    logs,
    slope,
    row,
    column,
    visible,
    MASKED: tl.constexpr,
    LEAST: tl.constexpr,
):
    """Of a tile: the weights, log2 of them, dscore, the factor that makes it g/2, and what g/2 pulls along a
    vector.

    delta is (rows, 1) or (1, columns).
    """
    y, h, spread = scaled_cosh(products, row, column, LEAST)
    square = y * (y + h)
    inverse_root = rsqrt(square)
    log_weights = slope * log2(y + 0.5 * h + square * inverse_root) + (row_logs[:, None] + logs[None, :])
    weights = exp2(log_weights)
    if MASKED:
        weights = tl.where(visible, weights, 0.0)
    dscores = weights * (dweights - delta)
    row_A = A_of(row[0])
    pulls = (
        ((1.0 - row_A) / row_A)[:, None] * spread + (2.0 * row_A)[:, None] - (2.0 * A_of(column[0]))[None, :]
    )
    return weights, log_weights, dscores, inverse_root, pulls


@triton.jit
def _to(values, like):
    """In like's dtype; in float16 bounded, as an infinity would turn a zero vector's gradient into NaN."""
    if like.dtype == tl.float16:
        values = within(values, -65504.0, 65504.0)
    return values.to(like.dtype)


@triton.jit
def _query_gradients(
    across,
    sums,
    tile_q,
    tile_dout,
    row,
    row_logs,
    delta,
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
    """One tile of keys: the sums after it that make the queries' gradients.

    `sums`, each (rows,): of dscore, of dscore times score and times pull, and of the weights times score and
    times pull.
    """
    columns = n * BLOCK_N + tl.arange(0, BLOCK_N)
    tile_k = load_rows(k, columns, dims, k_time, keys, dim, MASKED, EVEN_D)
    tile_v = load_rows(v, columns, dims, v_time, keys, dim, MASKED, EVEN_D)
    products = tl.dot(tile_q, tl.trans(tile_k), input_precision=PRECISION)
    dweights = tl.dot(tile_dout, tl.trans(tile_v), input_precision=PRECISION)
    column = load_numbers(numbers, plane, columns)
    logs = tl.load(numbers + 2 * plane + columns)
    visible = columns[None, :] <= position[:, None]
    if HAS_FIRST:
        visible = visible & (columns[None, :] >= first[:, None])
    weights, log_weights, dscores, inverse_root, pulls = _score_gradients(
        products, dweights, delta[:, None], row_logs, logs, slope, row, column, visible, MASKED, LEAST
    )
    g, pulled = dscores * inverse_root, inverse_root * pulls
    sums = (
        sums[0] + tl.sum(dscores, 1),
        sums[1] + tl.sum(dscores * log_weights, 1),
        sums[2] + tl.sum(dscores * pulled, 1),
        sums[3] + tl.sum(weights * log_weights, 1),
        sums[4] + tl.sum(weights * pulled, 1),
    )
    across = tl.dot(_to(g * column[1][None, :], tile_k), tile_k, across, input_precision=PRECISION)
    return across, sums


@triton.jit
def _length_gradient(across, along, tile, row, root, slope):
    """The rows' gradients (BLOCK, BLOCK_D) and the products of both, from the sums over the columns."""
    wide = tile.to(tl.float32)
    E = 2.0 * tl.where(row[1] > 0.0, row[1], 2.0 * root)  # across holds half of g
    unit = wide * (row[1] / A_of(row[0]))[:, None]
    radial = tl.sum(across * unit, 1)
    pull = 2.0 * root * slope * along
    norm = tl.where(row[1] > 0.0, A_of(row[0]) / tl.maximum(row[1], 1e-30), 0.0)
    return (-slope * E)[:, None] * across + (pull + slope * E * radial)[:, None] * unit, pull * norm


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
    dout_batch,
    dout_head,
    dout_time,
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
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    lane = tl.program_id(1).to(tl.int64)
    batch, head = lane // heads, lane % heads
    rows, dims = tile * BLOCK_M + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    offset = keys - queries
    position = rows + offset
    root = tl.sqrt(parameter_of(curvature, head))
    slope = -parameter_of(beta, head) / root
    tile_q = load_rows(q + batch * q_batch + head * q_head, rows, dims, q_time, queries, dim, True, EVEN_D)
    tile_dout = load_rows(
        dout + batch * dout_batch + head * dout_head, rows, dims, dout_time, queries, dim, True, EVEN_D
    )
    tile_out = load_rows(
        out + batch * out_batch + head * out_head, rows, dims, out_time, queries, dim, True, EVEN_D
    )
    row_delta = tl.sum(tile_out.to(tl.float32) * tile_dout.to(tl.float32), 1)
    q_size, q_plane = sizes_of(queries)
    row = load_numbers(q_numbers + lane * q_size, q_plane, rows)
    row_logs = -tl.load(q_numbers + 2 * q_plane + lane * q_size + rows)
    row_logs = tl.where(rows < queries, row_logs, -1e30)  # repetitions weigh nothing

    start = tile * BLOCK_M + offset
    end = tl.minimum(start + BLOCK_M, keys)
    low, low_of_all, row_first = 0, 0, position
    if HAS_FIRST:
        row_first = tl.load(first + batch * keys + position, mask=position < keys, other=0)
        low, low_of_all = tl.load(first + batch * keys + start), tl.load(first + batch * keys + end - 1)
    begin, behind = low // BLOCK_N, tl.cdiv(end, BLOCK_N)
    whole = tl.cdiv(low_of_all, BLOCK_N)
    whole_end = tl.maximum((start + 1) // BLOCK_N, whole)

    k += batch * k_batch + head * k_head
    v += batch * v_batch + head * v_head
    lane_size, plane = sizes_of(keys)
    k_numbers += lane * lane_size
    across = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    nothing = tl.zeros((BLOCK_M,), tl.float32)
    sums = (nothing, nothing, nothing, nothing, nothing)
    for n in range(whole, whole_end):
        across, sums = _query_gradients(
            across,
            sums,
            tile_q,
            tile_dout,
            row,
            row_logs,
            row_delta,
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
        across, sums = _query_gradients(
            across,
            sums,
            tile_q,
            tile_dout,
            row,
            row_logs,
            row_delta,
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

    over, scores, along, mean_score, mean_pull = sums
    tl.store(delta + lane * q_size + rows, row_delta + over)
    gradient, inner = _length_gradient(across, along - over * mean_pull, tile_q, row, root, slope)
    store_rows(dq + batch * dq_batch + head * dq_head, rows, dims, dq_time, queries, dim, gradient)
    part = parts + lane * tl.num_programs(0) + tile
    tl.store(part, tl.sum(scores - over * mean_score, 0) / LOG2E)
    tl.store(part + tl.num_programs(1).to(tl.int64) * tl.num_programs(0), tl.sum(inner, 0))


@triton.jit
def _key_gradients(
    across,
    along,
    dvalues,
    tile_k,
    tile_v,
    row,
    row_logs,
    slope,
    row_position,
    q,
    dout,
    first,
    numbers,
    plane,
    delta,
    dims,
    m,
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
    columns = m * BLOCK_M + tl.arange(0, BLOCK_M)
    tile_q = load_rows(q, columns, dims, q_time, queries, dim, MASKED, EVEN_D)
    tile_dout = load_rows(dout, columns, dims, dout_time, queries, dim, MASKED, EVEN_D)
    products = tl.dot(tile_k, tl.trans(tile_q), input_precision=PRECISION)
    dweights = tl.dot(tile_v, tl.trans(tile_dout), input_precision=PRECISION)
    column = load_numbers(numbers, plane, columns)
    logs = -tl.load(numbers + 2 * plane + columns)
    deltas = tl.load(delta + columns)
    position = columns + offset
    visible = (position[None, :] >= row_position[:, None]) & (columns[None, :] < queries)
    if HAS_FIRST and MASKED:
        visible = visible & (
            tl.load(first + position, mask=columns < queries, other=0)[None, :] <= row_position[:, None]
        )
    weights, _, dscores, inverse_root, pulls = _score_gradients(
        products, dweights, deltas[None, :], row_logs, logs, slope, row, column, visible, MASKED, LEAST
    )
    g = dscores * inverse_root
    along += tl.sum(g * pulls, 1)
    share = _to(g * column[1][None, :], tile_q)
    dvalues = tl.dot(weights.to(tile_dout.dtype), tile_dout, dvalues, input_precision=PRECISION)
    across = tl.dot(share, tile_q, across, input_precision=PRECISION)
    return across, along, dvalues


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
    tile = tl.program_id(0)
    lane = tl.program_id(1).to(tl.int64)
    batch, head = lane // heads, lane % heads
    rows, dims = tile * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    offset = keys - queries
    root = tl.sqrt(parameter_of(curvature, head))
    slope = -parameter_of(beta, head) / root
    tile_k = load_rows(k + batch * k_batch + head * k_head, rows, dims, k_time, keys, dim, True, EVEN_D)
    tile_v = load_rows(v + batch * v_batch + head * v_head, rows, dims, v_time, keys, dim, True, EVEN_D)
    k_size, plane = sizes_of(keys)
    row = load_numbers(k_numbers + lane * k_size, plane, rows)
    row_logs = tl.load(k_numbers + 2 * plane + lane * k_size + rows)

    start = tile * BLOCK_N
    # behind the last query that sees any key, and that sees the first key
    behind_row, behind_first = queries, queries
    if HAS_FIRST:
        first += batch * keys
        behind_row = tl.load(last + batch * keys + tl.minimum(start + BLOCK_N, keys) - 1) + 1 - offset
        behind_first = tl.load(last + batch * keys + start) + 1 - offset
    begin = tl.maximum(start - offset, 0) // BLOCK_M
    behind = tl.maximum(tl.cdiv(behind_row, BLOCK_M), begin)
    whole = tl.minimum(tl.cdiv(tl.maximum(start + BLOCK_N - 1 - offset, 0), BLOCK_M), behind)
    whole_end = within(behind_first // BLOCK_M, whole, behind)

    q += batch * q_batch + head * q_head
    dout += batch * dout_batch + head * dout_head
    q_size, q_plane = sizes_of(queries)
    q_numbers += lane * q_size
    delta += lane * q_size
    across = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    along = tl.zeros((BLOCK_N,), tl.float32)
    dvalues = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    for step in range(whole - begin + behind - whole_end):
        m = tl.where(step < whole - begin, begin + step, step - (whole - begin) + whole_end)
        across, along, dvalues = _key_gradients(
            across,
            along,
            dvalues,
            tile_k,
            tile_v,
            row,
            row_logs,
            slope,
            rows,
            q,
            dout,
            first,
            q_numbers,
            q_plane,
            delta,
            dims,
            m,
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
    for m in range(whole, whole_end):
        across, along, dvalues = _key_gradients(
            across,
            along,
            dvalues,
            tile_k,
            tile_v,
            row,
            row_logs,
            slope,
            rows,
            q,
            dout,
            first,
            q_numbers,
            q_plane,
            delta,
            dims,
            m,
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

    gradient, inner = _length_gradient(across, along, tile_k, row, root, slope)
    store_rows(dk + batch * dk_batch + head * dk_head, rows, dims, dk_time, keys, dim, gradient)
    store_rows(dv + batch * dv_batch + head * dv_head, rows, dims, dv_time, keys, dim, dvalues)
    tl.store(parts + lane * tl.num_programs(0) + tile, tl.sum(inner, 0))


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
    head = tl.program_id(0)
    scores, lengths = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    for batch in range(batches):
        lane = (batch * heads + head).to(tl.int64)
        plane = (batches * heads).to(tl.int64) * q_tiles
        for start in range(0, q_tiles, BLOCK):
            tiles = start + tl.arange(0, BLOCK)
            scores += tl.load(q_parts + lane * q_tiles + tiles, mask=tiles < q_tiles, other=0.0)
            lengths += tl.load(q_parts + plane + lane * q_tiles + tiles, mask=tiles < q_tiles, other=0.0)
        for start in range(0, k_tiles, BLOCK):
            tiles = start + tl.arange(0, BLOCK)
            lengths += tl.load(k_parts + lane * k_tiles + tiles, mask=tiles < k_tiles, other=0.0)
    score = tl.sum(scores, 0)
    gradient = (tl.sum(lengths, 0) - score) / (2.0 * parameter_of(curvature, head))
    tl.store(dbeta + head, (score / parameter_of(beta, head)).to(dbeta.dtype.element_ty))
    tl.store(dcurvature + head, gradient.to(dcurvature.dtype.element_ty))
