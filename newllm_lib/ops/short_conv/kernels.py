"""Triton kernels of the short convolution u_t = x_t + sum_k w_k x_{t-k}, with document starts and a tail.

As in `context_scan.kernels`, a program walks through time for one batch row and BLOCK_DIM channels. What the taps reach
(the last WIDTH - 1 tokens, or in the backward pass the gradients of the next WIDTH - 1 outputs) is a window in
registers, emptied where a document starts, so that every value crosses the memory bus once. Time is cut into chunks
freely: each reads WIDTH - 1 rows more.

Sizes: x, du (batch, time, dim) with any strides, u, dx (batch, time, dim) contiguous, tail, dtail (batch, WIDTH - 1,
dim) contiguous, weight (dim, WIDTH), dweight (batch, chunks, WIDTH, dim) float32, starts (batch, time) bytes.
"""

from __future__ import annotations

import triton
import triton.language as tl

from newllm_lib.ops.context_scan.kernels import _load_flags, _load_rows, _mask


@triton.jit
def _taps(weight, dims, dim, WIDTH: tl.constexpr):
    taps = ()
    for k in tl.static_range(WIDTH):
        taps = taps + (tl.load(weight + dims * WIDTH + k, mask=dims < dim, other=0.0).to(tl.float32),)
    return taps


@triton.jit
def _push(window, newest, LENGTH: tl.constexpr):
    """The window with `newest` at its front and its oldest entry gone."""
    moved = ()
    for k in tl.static_range(LENGTH):
        moved = moved + (newest if k == 0 else window[k - 1],)
    return moved


@triton.jit
def _empty_if(start, window, LENGTH: tl.constexpr):
    emptied = ()
    for k in tl.static_range(LENGTH):
        emptied = emptied + (tl.where(start, 0.0, window[k]),)
    return emptied


@triton.jit
def _tokens_before(
    x_row, starts, tail, batch, time, t, dims, dim, x_time, x_dim,
    HAS_STARTS: tl.constexpr, HAS_TAIL: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The window that step t finds: the tokens before it, from x (x_row is row t) and from the tail, newest first."""
    window = _load_rows(x_row - x_time, x_time, x_dim, dims, dim, t - 1, 0, t, WIDTH - 1, -1)
    tokens = window
    is_start = _load_flags(starts, batch * time, t - 1, 0, t, HAS_STARTS, WIDTH - 1, -1)
    for k in tl.static_range(WIDTH - 2, -1, -1):  # oldest first: a document start empties what lies behind it
        token = tokens[k]
        if HAS_TAIL:
            place = t - 1 - k + WIDTH - 1  # its row in the tail, if it is there
            in_tail = _mask(dims, dim, (place >= 0) & (place < WIDTH - 1))
            token += tl.load(tail + (batch * (WIDTH - 1) + place) * dim + dims, mask=in_tail, other=0.0).to(tl.float32)
        if HAS_STARTS:
            window = _empty_if(is_start[k], window, WIDTH - 1)
        window = _push(window, token, WIDTH - 1)
    return window


@triton.jit
def _gradients_after(
    du_row, starts, batch, t, time, dims, dim, du_time, du_dim, HAS_STARTS: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    """The window that step t - 1 finds on the way back: gradients of the outputs from t (du_row) on, nearest first."""
    window = _load_rows(du_row, du_time, du_dim, dims, dim, t, t, time, WIDTH - 1, 1)
    gradients = window
    is_start = _load_flags(starts, batch * time, t, t, time, HAS_STARTS, WIDTH - 1, 1)
    for k in tl.static_range(WIDTH - 2, -1, -1):  # latest first: nothing before a document start is read from it on
        window = _push(window, gradients[k], WIDTH - 1)
        if HAS_STARTS:
            window = _empty_if(is_start[k], window, WIDTH - 1)
    return window


@triton.jit(do_not_specialize=["time", "chunk_length"])
def conv_forward(
    x, weight, starts, tail, u, time, dim, chunk_length, x_batch, x_time, x_dim,
    HAS_STARTS: tl.constexpr, HAS_TAIL: tl.constexpr, WIDTH: tl.constexpr,
    UNROLL: tl.constexpr, BLOCK_DIM: tl.constexpr,
):  # fmt: skip
    dim_blocks = tl.cdiv(dim, BLOCK_DIM)
    batch = (tl.program_id(0) // dim_blocks).to(tl.int64)
    dims = (tl.program_id(0) % dim_blocks) * BLOCK_DIM + tl.arange(0, BLOCK_DIM)
    first = tl.program_id(1) * chunk_length
    last = tl.minimum(first + chunk_length, time)
    taps = _taps(weight, dims, dim, WIDTH)
    x_row = x + batch * x_batch + first.to(tl.int64) * x_time
    u_row = u + (batch * time + first) * dim
    window = _tokens_before(
        x_row, starts, tail, batch, time, first, dims, dim, x_time, x_dim,
        HAS_STARTS, HAS_TAIL, WIDTH,
    )  # fmt: skip
    for t in range(first, last, UNROLL):
        xs = _load_rows(x_row, x_time, x_dim, dims, dim, t, first, last, UNROLL, 1)
        is_start = _load_flags(starts, batch * time, t, first, last, HAS_STARTS, UNROLL, 1)
        for step in tl.static_range(UNROLL):
            if HAS_STARTS:
                window = _empty_if(is_start[step], window, WIDTH - 1)
            out = xs[step] * (1.0 + taps[0])
            for k in tl.static_range(1, WIDTH):
                out += window[k - 1] * taps[k]
            tl.store(u_row + step * dim + dims, out.to(u.dtype.element_ty), mask=_mask(dims, dim, t + step < last))
            window = _push(window, xs[step], WIDTH - 1)
        x_row += UNROLL * x_time
        u_row += UNROLL * dim


@triton.jit
def _add_to_weights(sums, token, grad, window, WIDTH: tl.constexpr):
    """The token's share of the weight's gradient: itself times the gradients of the outputs that read it."""
    added = (sums[0] + token * grad,)
    for k in tl.static_range(1, WIDTH):
        added = added + (sums[k] + token * window[k - 1],)
    return added


@triton.jit(do_not_specialize=["time", "chunk_length"])
def conv_backward(
    x, weight, starts, tail, du, dx, dtail, dweight, time, dim, chunk_length,
    x_batch, x_time, x_dim, du_batch, du_time, du_dim,
    HAS_STARTS: tl.constexpr, HAS_TAIL: tl.constexpr, WIDTH: tl.constexpr,
    UNROLL: tl.constexpr, BLOCK_DIM: tl.constexpr,
):  # fmt: skip
    dim_blocks = tl.cdiv(dim, BLOCK_DIM)
    batch = (tl.program_id(0) // dim_blocks).to(tl.int64)
    chunk = tl.program_id(1)
    dims = (tl.program_id(0) % dim_blocks) * BLOCK_DIM + tl.arange(0, BLOCK_DIM)
    first = chunk * chunk_length
    last = tl.minimum(first + chunk_length, time)
    end = (last - 1).to(tl.int64)
    taps = _taps(weight, dims, dim, WIDTH)
    x_row = x + batch * x_batch + end * x_time
    du_row = du + batch * du_batch + end * du_time
    dx_row = dx + (batch * time + end) * dim
    window = _gradients_after(
        du_row + du_time, starts, batch, last, time, dims, dim, du_time, du_dim, HAS_STARTS, WIDTH
    )  # fmt: skip
    sums = ()
    for _ in tl.static_range(WIDTH):
        sums = sums + (tl.zeros((BLOCK_DIM,), tl.float32),)
    for back in range(0, last - first, UNROLL):
        t = last - 1 - back
        xs = _load_rows(x_row, x_time, x_dim, dims, dim, t, first, last, UNROLL, -1)
        dus = _load_rows(du_row, du_time, du_dim, dims, dim, t, first, last, UNROLL, -1)
        is_start = _load_flags(starts, batch * time, t, first, last, HAS_STARTS, UNROLL, -1)
        for step in tl.static_range(UNROLL):
            grad = dus[step] * (1.0 + taps[0])
            for k in tl.static_range(1, WIDTH):
                grad += window[k - 1] * taps[k]
            tl.store(dx_row - step * dim + dims, grad.to(dx.dtype.element_ty), mask=_mask(dims, dim, t - step >= first))
            sums = _add_to_weights(sums, xs[step], dus[step], window, WIDTH)
            window = _push(window, dus[step], WIDTH - 1)
            if HAS_STARTS:
                window = _empty_if(is_start[step], window, WIDTH - 1)
        x_row -= UNROLL * x_time
        du_row -= UNROLL * du_time
        dx_row -= UNROLL * dim
    if HAS_TAIL:
        if chunk == 0:
            window = _gradients_after(
                du + batch * du_batch, starts, batch, 0, time, dims, dim, du_time, du_dim, HAS_STARTS, WIDTH
            )  # fmt: skip
            nothing = tl.zeros((BLOCK_DIM,), tl.float32)
            for before in tl.static_range(1, WIDTH):
                tail_row = (batch * (WIDTH - 1) + WIDTH - 1 - before) * dim + dims
                token = tl.load(tail + tail_row, mask=dims < dim, other=0.0).to(tl.float32)
                tail_grad = nothing
                for k in tl.static_range(1, WIDTH):
                    tail_grad += window[k - 1] * taps[k]
                tl.store(dtail + tail_row, tail_grad.to(dtail.dtype.element_ty), mask=dims < dim)
                sums = _add_to_weights(sums, token, nothing, window, WIDTH)
                window = _push(window, nothing, WIDTH - 1)
    for k in tl.static_range(WIDTH):
        place = ((batch * tl.num_programs(1) + chunk) * WIDTH + k) * dim + dims
        tl.store(dweight + place, sums[k], mask=dims < dim)
