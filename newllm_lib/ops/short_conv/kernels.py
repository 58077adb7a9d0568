"""Triton kernels of the short convolution u_t = x_t + sum_k w_k x_{t-k}, with document starts and a state.

As in `gated_scan.kernels`, a program walks through time for one batch row and BLOCK_DIM channels. What the
convolution reads (the last WIDTH - 1 tokens, or in the backward pass the gradients of the next WIDTH - 1
outputs) is a window in registers, emptied where a document starts, so that every value crosses the memory bus
once. Time is cut into chunks freely: each reads WIDTH - 1 rows more.

Sizes: x, du (batch, time, dim) with any strides, u, dx (batch, time, dim) contiguous, conv_state, dconv_state
(batch, WIDTH - 1, dim) contiguous, weight (dim, WIDTH), dweight (batch, chunks, WIDTH, dim) float32,
doc_starts (batch, time) bytes.
"""

from __future__ import annotations

import triton
import triton.language as tl

from newllm_lib.ops.common.triton_helpers import load_flags, load_rows


@triton.jit
def load_conv_weight(weight, dims, dim, WIDTH: tl.constexpr):
    conv_weight = ()
    for k in tl.static_range(WIDTH):
        conv_weight = conv_weight + (
            tl.load(weight + dims * WIDTH + k, mask=dims < dim, other=0.0).to(tl.float32),
        )
    return conv_weight


@triton.jit
def push(window, newest, LENGTH: tl.constexpr):
    """The window with `newest` at its front and its oldest entry gone."""
    moved = ()
    for k in tl.static_range(LENGTH):
        moved = moved + (newest if k == 0 else window[k - 1],)
    return moved


@triton.jit
def empty_if(start, window, LENGTH: tl.constexpr):
    emptied = ()
    for k in tl.static_range(LENGTH):
        emptied = emptied + (tl.where(start, 0.0, window[k]),)
    return emptied


@triton.jit
def stored_where(dims, dim, inside):
    """Channels below dim, or none unless `inside` (Triton's interpreter can't AND vector and scalar)."""
    return dims < tl.where(inside, dim, 0)


@triton.jit
def _tokens_before(
    x_row,
    doc_starts,
    conv_state,
    batch,
    time,
    t,
    dims,
    dim,
    x_time,
    x_dim,
    HAS_STARTS: tl.constexpr,
    HAS_CONV_STATE: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """The window that step t finds: the tokens before it, from x (x_row is row t) and from the state, newest
    first.
    """
    window = ()
    for _ in tl.static_range(WIDTH - 1):
        window = window + (tl.zeros(dims.shape, tl.float32),)
    # oldest first: a document start empties what lies behind it
    for back in tl.static_range(WIDTH - 1, 0, -1):
        stored = stored_where(dims, dim, t >= back)
        token = tl.load(x_row - back * x_time + dims * x_dim, mask=stored, other=0.0).to(tl.float32)
        if HAS_CONV_STATE:
            place = (batch * (WIDTH - 1) + WIDTH - 1 + t - back) * dim + dims
            token += tl.load(conv_state + place, mask=stored_where(dims, dim, t < back), other=0.0).to(
                tl.float32
            )
        if HAS_STARTS:
            start = tl.load(doc_starts + batch * time + t - back, mask=t >= back, other=0) != 0
            window = empty_if(start, window, WIDTH - 1)
        window = push(window, token, WIDTH - 1)
    return window


@triton.jit
def gradients_after(
    du_row,
    doc_starts,
    batch,
    t,
    time,
    dims,
    dim,
    du_time,
    du_dim,
    HAS_STARTS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """The window of step t - 1 on the way back: output gradients from t (du_row) on, nearest first."""
    window = ()
    for _ in tl.static_range(WIDTH - 1):
        window = window + (tl.zeros(dims.shape, tl.float32),)
    # latest first: nothing before a document start is read from it on
    for on in tl.static_range(WIDTH - 2, -1, -1):
        stored = stored_where(dims, dim, t + on < time)
        grad = tl.load(du_row + on * du_time + dims * du_dim, mask=stored, other=0.0).to(tl.float32)
        window = push(window, grad, WIDTH - 1)
        if HAS_STARTS:
            start = tl.load(doc_starts + batch * time + t + on, mask=t + on < time, other=0) != 0
            window = empty_if(start, window, WIDTH - 1)
    return window


@triton.jit
def _forward_steps(
    window,
    conv_weight,
    x_row,
    u_row,
    doc_starts,
    place,
    dim,
    dims,
    in_dim,
    x_time,
    x_dim,
    HAS_STARTS: tl.constexpr,
    WIDTH: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """UNROLL steps from the rows given, `place` among the starts; the window after them."""
    xs = load_rows(x_row, x_time, x_dim, dims, in_dim, UNROLL, 1)
    is_start = load_flags(doc_starts, place, HAS_STARTS, UNROLL, 1)
    for step in tl.static_range(UNROLL):
        if HAS_STARTS:
            window = empty_if(is_start[step], window, WIDTH - 1)
        out = xs[step] * (1.0 + conv_weight[0])
        for k in tl.static_range(1, WIDTH):
            out += window[k - 1] * conv_weight[k]
        tl.store(u_row + step * dim + dims, out.to(u_row.dtype.element_ty), mask=in_dim)
        window = push(window, xs[step], WIDTH - 1)
    return window


@triton.jit(do_not_specialize=["time", "chunk_length"])
def conv_forward(
    x,
    weight,
    doc_starts,
    conv_state,
    u,
    time,
    dim,
    chunk_length,
    x_batch,
    x_time,
    x_dim,
    HAS_STARTS: tl.constexpr,
    HAS_CONV_STATE: tl.constexpr,
    WIDTH: tl.constexpr,
    UNROLL: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    dim_blocks = tl.cdiv(dim, BLOCK_DIM)
    batch = (tl.program_id(0) // dim_blocks).to(tl.int64)
    dims = (tl.program_id(0) % dim_blocks) * BLOCK_DIM + tl.arange(0, BLOCK_DIM)
    in_dim = dims < dim
    first = tl.program_id(1) * chunk_length
    last = tl.minimum(first + chunk_length, time)
    conv_weight = load_conv_weight(weight, dims, dim, WIDTH)
    x_row = x + batch * x_batch + first.to(tl.int64) * x_time
    u_row = u + (batch * time + first) * dim
    window = _tokens_before(
        x_row,
        doc_starts,
        conv_state,
        batch,
        time,
        first,
        dims,
        dim,
        x_time,
        x_dim,
        HAS_STARTS,
        HAS_CONV_STATE,
        WIDTH,
    )
    whole = last - (last - first) % UNROLL
    for t in range(first, whole, UNROLL):
        window = _forward_steps(
            window,
            conv_weight,
            x_row,
            u_row,
            doc_starts,
            batch * time + t,
            dim,
            dims,
            in_dim,
            x_time,
            x_dim,
            HAS_STARTS,
            WIDTH,
            UNROLL,
        )
        x_row += UNROLL * x_time
        u_row += UNROLL * dim
    for t in range(whole, last):
        window = _forward_steps(
            window,
            conv_weight,
            x_row,
            u_row,
            doc_starts,
            batch * time + t,
            dim,
            dims,
            in_dim,
            x_time,
            x_dim,
            HAS_STARTS,
            WIDTH,
            1,
        )
        x_row += x_time
        u_row += dim


@triton.jit
def add_to_weights(sums, token, grad, window, WIDTH: tl.constexpr):
    """The token's share of the weight's gradient: itself times the gradients of the outputs that read it."""
    added = (sums[0] + token * grad,)
    for k in tl.static_range(1, WIDTH):
        added = added + (sums[k] + token * window[k - 1],)
    return added


@triton.jit
def _backward_steps(
    window,
    sums,
    conv_weight,
    x_row,
    du_row,
    dx_row,
    doc_starts,
    place,
    dim,
    dims,
    in_dim,
    x_time,
    x_dim,
    du_time,
    du_dim,
    HAS_STARTS: tl.constexpr,
    WIDTH: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """UNROLL steps backward from the rows given; the window and the weight's gradient after them."""
    xs = load_rows(x_row, x_time, x_dim, dims, in_dim, UNROLL, -1)
    dus = load_rows(du_row, du_time, du_dim, dims, in_dim, UNROLL, -1)
    is_start = load_flags(doc_starts, place, HAS_STARTS, UNROLL, -1)
    for step in tl.static_range(UNROLL):
        grad = dus[step] * (1.0 + conv_weight[0])
        for k in tl.static_range(1, WIDTH):
            grad += window[k - 1] * conv_weight[k]
        tl.store(dx_row - step * dim + dims, grad.to(dx_row.dtype.element_ty), mask=in_dim)
        sums = add_to_weights(sums, xs[step], dus[step], window, WIDTH)
        window = push(window, dus[step], WIDTH - 1)
        if HAS_STARTS:
            window = empty_if(is_start[step], window, WIDTH - 1)
    return window, sums


@triton.jit(do_not_specialize=["time", "chunk_length"])
def conv_backward(
    x,
    weight,
    doc_starts,
    conv_state,
    du,
    dx,
    dconv_state,
    dweight,
    time,
    dim,
    chunk_length,
    x_batch,
    x_time,
    x_dim,
    du_batch,
    du_time,
    du_dim,
    HAS_STARTS: tl.constexpr,
    HAS_CONV_STATE: tl.constexpr,
    WIDTH: tl.constexpr,
    UNROLL: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    dim_blocks = tl.cdiv(dim, BLOCK_DIM)
    batch = (tl.program_id(0) // dim_blocks).to(tl.int64)
    chunk = tl.program_id(1)
    dims = (tl.program_id(0) % dim_blocks) * BLOCK_DIM + tl.arange(0, BLOCK_DIM)
    in_dim = dims < dim
    first = chunk * chunk_length
    last = tl.minimum(first + chunk_length, time)
    end = (last - 1).to(tl.int64)
    conv_weight = load_conv_weight(weight, dims, dim, WIDTH)
    x_row = x + batch * x_batch + end * x_time
    du_row = du + batch * du_batch + end * du_time
    dx_row = dx + (batch * time + end) * dim
    window = gradients_after(
        du_row + du_time, doc_starts, batch, last, time, dims, dim, du_time, du_dim, HAS_STARTS, WIDTH
    )
    sums = ()
    for _ in tl.static_range(WIDTH):
        sums = sums + (tl.zeros((BLOCK_DIM,), tl.float32),)
    whole = (last - first) // UNROLL * UNROLL
    for back in range(0, whole, UNROLL):
        window, sums = _backward_steps(
            window,
            sums,
            conv_weight,
            x_row,
            du_row,
            dx_row,
            doc_starts,
            batch * time + last - 1 - back,
            dim,
            dims,
            in_dim,
            x_time,
            x_dim,
            du_time,
            du_dim,
            HAS_STARTS,
            WIDTH,
            UNROLL,
        )
        x_row -= UNROLL * x_time
        du_row -= UNROLL * du_time
        dx_row -= UNROLL * dim
    for back in range(whole, last - first):
        window, sums = _backward_steps(
            window,
            sums,
            conv_weight,
            x_row,
            du_row,
            dx_row,
            doc_starts,
            batch * time + last - 1 - back,
            dim,
            dims,
            in_dim,
            x_time,
            x_dim,
            du_time,
            du_dim,
            HAS_STARTS,
            WIDTH,
            1,
        )
        x_row -= x_time
        du_row -= du_time
        dx_row -= dim
    if HAS_CONV_STATE:
        if chunk == 0:  # which ends at the first step: the window is what the state's tokens find
            nothing = tl.zeros((BLOCK_DIM,), tl.float32)
            for before in tl.static_range(1, WIDTH):
                state_row = (batch * (WIDTH - 1) + WIDTH - 1 - before) * dim + dims
                token = tl.load(conv_state + state_row, mask=in_dim, other=0.0).to(tl.float32)
                state_grad = nothing
                for k in tl.static_range(1, WIDTH):
                    state_grad += window[k - 1] * conv_weight[k]
                tl.store(dconv_state + state_row, state_grad.to(dconv_state.dtype.element_ty), mask=in_dim)
                sums = add_to_weights(sums, token, nothing, window, WIDTH)
                window = push(window, nothing, WIDTH - 1)
    for k in tl.static_range(WIDTH):
        place = ((batch * tl.num_programs(1) + chunk) * WIDTH + k) * dim + dims
        tl.store(dweight + place, sums[k], mask=in_dim)


@triton.jit
def conv_step(
    x,
    weight,
    start,
    conv_state,
    new_conv_state,
    u,
    dim,
    x_row,
    state_row,
    new_row,
    WIDTH: tl.constexpr,
    STARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    dims = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = dims < dim
    now = tl.load(x + row * x_row + dims, mask=inside, other=0.0).to(tl.float32)
    total = now * (1.0 + tl.load(weight + dims * WIDTH, mask=inside, other=0.0).to(tl.float32))
    for k in tl.static_range(1, WIDTH):
        place = WIDTH - 1 - k
        past = tl.load(conv_state + row * state_row + place * dim + dims, mask=inside, other=0.0)
        if STARTS:
            past = tl.where(tl.load(start + row).to(tl.int32) == 0, past, 0.0)
        total += past * tl.load(weight + dims * WIDTH + k, mask=inside, other=0.0).to(tl.float32)
        if place > 0:
            tl.store(new_conv_state + row * new_row + (place - 1) * dim + dims, past, mask=inside)
    if WIDTH > 1:
        tl.store(new_conv_state + row * new_row + (WIDTH - 2) * dim + dims, now, mask=inside)
    tl.store(u + row * dim + dims, total.to(u.dtype.element_ty), mask=inside)
