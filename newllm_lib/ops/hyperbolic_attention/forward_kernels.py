"""Triton kernels of the forward pass; notation and sizes are those of `tiles`."""

from __future__ import annotations

import triton
import triton.language as tl

from newllm_lib.ops.hyperbolic_attention.tiles import (
    LOG2E,
    exp2,
    load_numbers,
    load_rows,
    log2,
    numbers_of,
    parameter_of,
    scaled_cosh,
    sizes_of,
    sqrt,
    store_rows,
)


@triton.jit(do_not_specialize=["keys"])
def key_numbers(
    k, numbers, beta, curvature, heads, keys, dim, k_batch, k_head, k_time,
    EVEN_D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
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
    total, highest, weights, tile_q, row, slope, position, first, k, v, numbers, plane, dims,
    n, k_time, v_time, keys, dim,
    MASKED: tl.constexpr, HAS_FIRST: tl.constexpr, EVEN_D: tl.constexpr, LEAST: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
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
    q, k, v, out, q_numbers, k_numbers, first, beta, curvature, heads, queries, keys, dim,
    q_batch, q_head, q_time, k_batch, k_head, k_time, v_batch, v_head, v_time, out_batch, out_head, out_time,
    HAS_FIRST: tl.constexpr, EVEN_D: tl.constexpr, LEAST: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
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
            total, highest, weights, tile_q, row, slope, position, row_first, k, v, k_numbers, plane,
            dims, n, k_time, v_time, keys, dim, False, HAS_FIRST, EVEN_D, LEAST, PRECISION, BLOCK_N,
        )  # fmt: skip
    for step in range(whole - begin + behind - whole_end):
        n = tl.where(step < whole - begin, begin + step, step - (whole - begin) + whole_end)
        total, highest, weights = _attend(
            total, highest, weights, tile_q, row, slope, position, row_first, k, v, k_numbers, plane,
            dims, n, k_time, v_time, keys, dim, True, HAS_FIRST, EVEN_D, LEAST, PRECISION, BLOCK_N,
        )  # fmt: skip

    store_rows(out + batch * out_batch + head * out_head, rows, dims, out_time, queries, dim, total / weights[:, None])
    q_size, q_plane = sizes_of(queries)
    place = q_numbers + lane * q_size + rows
    tl.store(place, delta)
    tl.store(place + q_plane, E)
    tl.store(place + 2 * q_plane, highest + tl.log2(weights))
