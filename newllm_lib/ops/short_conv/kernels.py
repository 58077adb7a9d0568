"""Triton kernels of the short convolution u_t = x_t + sum_k w_k x_{t-k}, with document starts and a state.

As in `gated_scan.kernels`, a program walks through time for one batch row and BLOCK_DIM channels. What the
convolution reads (the last WIDTH - 1 tokens, or in the backward pass the gradients of the next WIDTH - 1
outputs) is a window in registers, emptied where a document starts, so that every value crosses the memory bus
once. Time is cut into chunks freely: each reads WIDTH - 1 rows more.

Sizes: x (batch, time, dim), its rows wherever strides say; contiguous: u, du, dx (batch, time, dim),
conv_state, dconv_state (batch, WIDTH - 1, dim), weight (dim, WIDTH), dweight (batch, chunks, WIDTH, dim)
float32, doc_starts (batch, time) bytes.
"""

from __future__ import annotations

import triton
import triton.language as tl

from newllm_lib.ops.common.triton_helpers import load_flags, load_rows


@triton.jit
def load_conv_weight(weight, o_d, dim, WIDTH: tl.constexpr):
    b_conv = ()
    for k in tl.static_range(WIDTH):
        b_conv = b_conv + (tl.load(weight + o_d * WIDTH + k, mask=o_d < dim, other=0.0).to(tl.float32),)
    return b_conv


@triton.jit
def push(b_window, b_newest, LENGTH: tl.constexpr):
    """The window with `newest` at its front and its oldest entry gone."""
    b_moved = ()
    for k in tl.static_range(LENGTH):
        b_moved = b_moved + (b_newest if k == 0 else b_window[k - 1],)
    return b_moved


@triton.jit
def empty_if(m_start, b_window, LENGTH: tl.constexpr):
    b_emptied = ()
    for k in tl.static_range(LENGTH):
        b_emptied = b_emptied + (tl.where(m_start, 0.0, b_window[k]),)
    return b_emptied


@triton.jit
def stored_where(o_d, dim, inside):
    """Channels below dim, or none unless `inside` (Triton's interpreter can't AND vector and scalar)."""
    return o_d < tl.where(inside, dim, 0)


@triton.jit
def _tokens_before(
    p_x,
    doc_starts,
    conv_state,
    i_b,
    time,
    t,
    o_d,
    dim,
    stride_t,
    HAS_STARTS: tl.constexpr,
    HAS_CONV_STATE: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """The window that step t finds: the tokens before it, from x (p_x: row t) and from the state, newest
    first.
    """
    b_window = ()
    for _ in tl.static_range(WIDTH - 1):
        b_window = b_window + (tl.zeros(o_d.shape, tl.float32),)
    # oldest first: a document start empties what lies behind it
    for back in tl.static_range(WIDTH - 1, 0, -1):
        m_stored = stored_where(o_d, dim, t >= back)
        b_token = tl.load(p_x - back * stride_t + o_d, mask=m_stored, other=0.0).to(tl.float32)
        if HAS_CONV_STATE:
            o_state = (i_b * (WIDTH - 1) + WIDTH - 1 + t - back) * dim + o_d
            b_token += tl.load(conv_state + o_state, mask=stored_where(o_d, dim, t < back), other=0.0).to(
                tl.float32
            )
        if HAS_STARTS:
            m_start = tl.load(doc_starts + i_b * time + t - back, mask=t >= back, other=0) != 0
            b_window = empty_if(m_start, b_window, WIDTH - 1)
        b_window = push(b_window, b_token, WIDTH - 1)
    return b_window


@triton.jit
def gradients_after(
    p_du,
    doc_starts,
    i_b,
    t,
    time,
    o_d,
    dim,
    HAS_STARTS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """The window of step t - 1 on the way back: output gradients from t (du_row) on, nearest first."""
    b_window = ()
    for _ in tl.static_range(WIDTH - 1):
        b_window = b_window + (tl.zeros(o_d.shape, tl.float32),)
    # latest first: nothing before a document start is read from it on
    for on in tl.static_range(WIDTH - 2, -1, -1):
        m_stored = stored_where(o_d, dim, t + on < time)
        b_grad = tl.load(p_du + on * dim + o_d, mask=m_stored, other=0.0).to(tl.float32)
        b_window = push(b_window, b_grad, WIDTH - 1)
        if HAS_STARTS:
            m_start = tl.load(doc_starts + i_b * time + t + on, mask=t + on < time, other=0) != 0
            b_window = empty_if(m_start, b_window, WIDTH - 1)
    return b_window


@triton.jit
def _forward_steps(
    b_window,
    b_conv,
    p_x,
    p_u,
    doc_starts,
    o_flag,
    dim,
    o_d,
    m_d,
    stride_t,
    HAS_STARTS: tl.constexpr,
    WIDTH: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """UNROLL steps from the rows given, `o_flag` among the starts; the window after them."""
    b_x = load_rows(p_x, stride_t, o_d, m_d, UNROLL, 1)
    m_start = load_flags(doc_starts, o_flag, HAS_STARTS, UNROLL, 1)
    for step in tl.static_range(UNROLL):
        if HAS_STARTS:
            b_window = empty_if(m_start[step], b_window, WIDTH - 1)
        b_u = b_x[step] * (1.0 + b_conv[0])
        for k in tl.static_range(1, WIDTH):
            b_u += b_window[k - 1] * b_conv[k]
        tl.store(p_u + step * dim + o_d, b_u.to(p_u.dtype.element_ty), mask=m_d)
        b_window = push(b_window, b_x[step], WIDTH - 1)
    return b_window


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
    stride_b,
    stride_t,
    HAS_STARTS: tl.constexpr,
    HAS_CONV_STATE: tl.constexpr,
    WIDTH: tl.constexpr,
    UNROLL: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    dim_blocks = tl.cdiv(dim, BLOCK_DIM)
    i_b = (tl.program_id(0) // dim_blocks).to(tl.int64)
    o_d = (tl.program_id(0) % dim_blocks) * BLOCK_DIM + tl.arange(0, BLOCK_DIM)
    m_d = o_d < dim
    first = tl.program_id(1) * chunk_length
    last = tl.minimum(first + chunk_length, time)
    b_conv = load_conv_weight(weight, o_d, dim, WIDTH)
    p_x = x + i_b * stride_b + first.to(tl.int64) * stride_t
    p_u = u + (i_b * time + first) * dim
    b_window = _tokens_before(
        p_x,
        doc_starts,
        conv_state,
        i_b,
        time,
        first,
        o_d,
        dim,
        stride_t,
        HAS_STARTS,
        HAS_CONV_STATE,
        WIDTH,
    )
    whole = last - (last - first) % UNROLL
    for t in range(first, whole, UNROLL):
        b_window = _forward_steps(
            b_window,
            b_conv,
            p_x,
            p_u,
            doc_starts,
            i_b * time + t,
            dim,
            o_d,
            m_d,
            stride_t,
            HAS_STARTS,
            WIDTH,
            UNROLL,
        )
        p_x += UNROLL * stride_t
        p_u += UNROLL * dim
    for t in range(whole, last):
        b_window = _forward_steps(
            b_window,
            b_conv,
            p_x,
            p_u,
            doc_starts,
            i_b * time + t,
            dim,
            o_d,
            m_d,
            stride_t,
            HAS_STARTS,
            WIDTH,
            1,
        )
        p_x += stride_t
        p_u += dim


@triton.jit
def add_to_weights(b_dconv, b_token, b_grad, b_window, WIDTH: tl.constexpr):
    """The token's share of the weight's gradient: itself times the gradients of the outputs that read it."""
    b_added = (b_dconv[0] + b_token * b_grad,)
    for k in tl.static_range(1, WIDTH):
        b_added = b_added + (b_dconv[k] + b_token * b_window[k - 1],)
    return b_added


@triton.jit
def _backward_steps(
    b_window,
    b_dconv,
    b_conv,
    p_x,
    p_du,
    p_dx,
    doc_starts,
    o_flag,
    dim,
    o_d,
    m_d,
    stride_t,
    HAS_STARTS: tl.constexpr,
    WIDTH: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """UNROLL steps backward from the rows given; the window and the weight's gradient after them."""
    b_x = load_rows(p_x, stride_t, o_d, m_d, UNROLL, -1)
    b_du = load_rows(p_du, dim, o_d, m_d, UNROLL, -1)
    m_start = load_flags(doc_starts, o_flag, HAS_STARTS, UNROLL, -1)
    for step in tl.static_range(UNROLL):
        b_grad = b_du[step] * (1.0 + b_conv[0])
        for k in tl.static_range(1, WIDTH):
            b_grad += b_window[k - 1] * b_conv[k]
        tl.store(p_dx - step * dim + o_d, b_grad.to(p_dx.dtype.element_ty), mask=m_d)
        b_dconv = add_to_weights(b_dconv, b_x[step], b_du[step], b_window, WIDTH)
        b_window = push(b_window, b_du[step], WIDTH - 1)
        if HAS_STARTS:
            b_window = empty_if(m_start[step], b_window, WIDTH - 1)
    return b_window, b_dconv


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
    stride_b,
    stride_t,
    HAS_STARTS: tl.constexpr,
    HAS_CONV_STATE: tl.constexpr,
    WIDTH: tl.constexpr,
    UNROLL: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    dim_blocks = tl.cdiv(dim, BLOCK_DIM)
    i_b = (tl.program_id(0) // dim_blocks).to(tl.int64)
    i_c = tl.program_id(1)
    o_d = (tl.program_id(0) % dim_blocks) * BLOCK_DIM + tl.arange(0, BLOCK_DIM)
    m_d = o_d < dim
    first = i_c * chunk_length
    last = tl.minimum(first + chunk_length, time)
    end = (last - 1).to(tl.int64)
    b_conv = load_conv_weight(weight, o_d, dim, WIDTH)
    p_x = x + i_b * stride_b + end * stride_t
    p_du = du + (i_b * time + end) * dim
    p_dx = dx + (i_b * time + end) * dim
    b_window = gradients_after(p_du + dim, doc_starts, i_b, last, time, o_d, dim, HAS_STARTS, WIDTH)
    b_dconv = ()
    for _ in tl.static_range(WIDTH):
        b_dconv = b_dconv + (tl.zeros((BLOCK_DIM,), tl.float32),)
    whole = (last - first) // UNROLL * UNROLL
    for back in range(0, whole, UNROLL):
        b_window, b_dconv = _backward_steps(
            b_window,
            b_dconv,
            b_conv,
            p_x,
            p_du,
            p_dx,
            doc_starts,
            i_b * time + last - 1 - back,
            dim,
            o_d,
            m_d,
            stride_t,
            HAS_STARTS,
            WIDTH,
            UNROLL,
        )
        p_x -= UNROLL * stride_t
        p_du -= UNROLL * dim
        p_dx -= UNROLL * dim
    for back in range(whole, last - first):
        b_window, b_dconv = _backward_steps(
            b_window,
            b_dconv,
            b_conv,
            p_x,
            p_du,
            p_dx,
            doc_starts,
            i_b * time + last - 1 - back,
            dim,
            o_d,
            m_d,
            stride_t,
            HAS_STARTS,
            WIDTH,
            1,
        )
        p_x -= stride_t
        p_du -= dim
        p_dx -= dim
    if HAS_CONV_STATE:
        if i_c == 0:  # which ends at the first step: the window is what the state's tokens find
            b_zero = tl.zeros((BLOCK_DIM,), tl.float32)
            for before in tl.static_range(1, WIDTH):
                o_state = (i_b * (WIDTH - 1) + WIDTH - 1 - before) * dim + o_d
                b_token = tl.load(conv_state + o_state, mask=m_d, other=0.0).to(tl.float32)
                b_dstate = b_zero
                for k in tl.static_range(1, WIDTH):
                    b_dstate += b_window[k - 1] * b_conv[k]
                tl.store(dconv_state + o_state, b_dstate.to(dconv_state.dtype.element_ty), mask=m_d)
                b_dconv = add_to_weights(b_dconv, b_token, b_zero, b_window, WIDTH)
                b_window = push(b_window, b_zero, WIDTH - 1)
    for k in tl.static_range(WIDTH):
        o_w = ((i_b * tl.num_programs(1) + i_c) * WIDTH + k) * dim + o_d
        tl.store(dweight + o_w, b_dconv[k], mask=m_d)


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
    i_b = tl.program_id(0).to(tl.int64)
    o_d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    m_d = o_d < dim
    b_x = tl.load(x + i_b * x_row + o_d, mask=m_d, other=0.0).to(tl.float32)
    b_u = b_x * (1.0 + tl.load(weight + o_d * WIDTH, mask=m_d, other=0.0).to(tl.float32))
    for k in tl.static_range(1, WIDTH):
        o_slot = WIDTH - 1 - k
        b_past = tl.load(conv_state + i_b * state_row + o_slot * dim + o_d, mask=m_d, other=0.0)
        if STARTS:
            b_past = tl.where(tl.load(start + i_b).to(tl.int32) == 0, b_past, 0.0)
        b_u += b_past * tl.load(weight + o_d * WIDTH + k, mask=m_d, other=0.0).to(tl.float32)
        if o_slot > 0:
            tl.store(new_conv_state + i_b * new_row + (o_slot - 1) * dim + o_d, b_past, mask=m_d)
    if WIDTH > 1:
        tl.store(new_conv_state + i_b * new_row + (WIDTH - 2) * dim + o_d, b_x, mask=m_d)
    tl.store(u + i_b * dim + o_d, b_u.to(u.dtype.element_ty), mask=m_d)
