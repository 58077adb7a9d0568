"""Triton kernels of r = x + residual and n = RMSNorm(r; weight), both ways; float32 inside.

x, residual, r, n and their gradients are matrices (rows, dim) without gaps. A program takes ROWS whole rows
at a time; in the backward pass it walks over many blocks of them, so that the sum that makes the weight's
gradient stays in registers.

With the short convolution, u = n + conv(n) in one walk through time: as in `short_conv.kernels`, a program
walks along one batch row with the tokens that the convolution reads in a window of registers; but it takes
all channels, because the norm sums over them. n exists in registers alone: the backward pass makes it again
from r. There

    x, residual, r, u and their gradients   (batch, time, dim) without gaps
    weight                                  (dim,)
    conv_weight                             (dim, WIDTH)
    doc_starts                              (batch, time) bytes
    conv_state, dconv_state                 (batch, WIDTH - 1, dim), of what is normalised
    partial_sums                            (batch, chunks, dim x WIDTH + dim) float32: what each program adds
                                            to the gradients of conv_weight and of weight
"""

from __future__ import annotations

import triton
import triton.language as tl

from newllm_lib.ops.common.triton_helpers import load_flags, load_rows
from newllm_lib.ops.short_conv.kernels import (
    add_to_weights,
    empty_if,
    gradients_after,
    load_conv_weight,
    push,
    stored_where,
)


@triton.jit(do_not_specialize=["rows"])
def norm_forward(
    x,
    residual,
    weight,
    r,
    n,
    rows,
    dim,
    eps,
    HAS_RESIDUAL: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    o_r = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    o_d = tl.arange(0, BLOCK_DIM)[None, :]
    m_x = (o_r < rows) & (o_d < dim)
    o_x = o_r * dim + o_d
    b_r = tl.load(x + o_x, mask=m_x, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        b_r += tl.load(residual + o_x, mask=m_x, other=0.0).to(tl.float32)
        b_rounded = b_r.to(r.dtype.element_ty)
        tl.store(r + o_x, b_rounded, mask=m_x)
        b_r = b_rounded.to(tl.float32)
    b_w = tl.load(weight + o_d, mask=o_d < dim, other=0.0).to(tl.float32)
    b_inv = tl.rsqrt(tl.sum(b_r * b_r, axis=1, keep_dims=True) / dim + eps)
    tl.store(n + o_x, (b_r * b_inv * b_w).to(n.dtype.element_ty), mask=m_x)


@triton.jit(do_not_specialize=["rows"])
def norm_backward(
    r,
    weight,
    dn,
    dr,
    dx,
    dweight,
    rows,
    dim,
    eps,
    HAS_DR: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    """dx, the gradient of x and of residual, from those of n and (HAS_DR) of r; dweight (programs, dim)
    float32, what each program adds to the weight's.
    """
    i_p = tl.program_id(0)
    o_d = tl.arange(0, BLOCK_DIM)[None, :]
    b_w = tl.load(weight + o_d, mask=o_d < dim, other=0.0).to(tl.float32)
    b_dw = tl.zeros((ROWS, BLOCK_DIM), tl.float32)
    for i_block in range(i_p, tl.cdiv(rows, ROWS), tl.num_programs(0)):
        o_r = tl.full((ROWS, 1), i_block, tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
        m_x = (o_r < rows) & (o_d < dim)
        o_x = o_r * dim + o_d
        b_r = tl.load(r + o_x, mask=m_x, other=0.0).to(tl.float32)
        b_dn = tl.load(dn + o_x, mask=m_x, other=0.0).to(tl.float32)
        if HAS_DR:
            b_dr = tl.load(dr + o_x, mask=m_x, other=0.0).to(tl.float32)
        b_inv = tl.rsqrt(tl.sum(b_r * b_r, axis=1, keep_dims=True) / dim + eps)
        b_n = b_r * b_inv
        b_dw += b_dn * b_n
        b_dn *= b_w
        b_dx = b_inv * (b_dn - b_n * tl.sum(b_dn * b_n, axis=1, keep_dims=True) / dim)
        if HAS_DR:
            b_dx += b_dr
        tl.store(dx + o_x, b_dx.to(dx.dtype.element_ty), mask=m_x)
    o_d = tl.arange(0, BLOCK_DIM)
    tl.store(dweight + i_p * dim + o_d, tl.sum(b_dw, axis=0), mask=o_d < dim)


# ---- with the short convolution


@triton.jit
def _inverse(b_r, dim, eps):
    return tl.rsqrt(tl.sum(b_r * b_r, 0) / dim + eps)


@triton.jit
def _tokens_before(
    x,
    residual,
    doc_starts,
    conv_state,
    i_b,
    time,
    t,
    b_w,
    o_d,
    dim,
    eps,
    HAS_RESIDUAL: tl.constexpr,
    HAS_STARTS: tl.constexpr,
    HAS_CONV_STATE: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """The window that step t finds: what was normalised before it, newest first."""
    b_window = ()
    for _ in tl.static_range(WIDTH - 1):
        b_window = b_window + (tl.zeros(o_d.shape, tl.float32),)
    # oldest first: a document start empties what lies behind it
    for back in tl.static_range(WIDTH - 1, 0, -1):
        m_stored = stored_where(o_d, dim, t >= back)
        o_x = (i_b * time + t - back) * dim + o_d
        b_r = tl.load(x + o_x, mask=m_stored, other=0.0).to(tl.float32)
        if HAS_RESIDUAL:
            b_r += tl.load(residual + o_x, mask=m_stored, other=0.0).to(tl.float32)
            b_r = b_r.to(x.dtype.element_ty).to(tl.float32)
        b_token = b_r * _inverse(b_r, dim, eps) * b_w
        if HAS_CONV_STATE:
            o_x = (i_b * (WIDTH - 1) + WIDTH - 1 + t - back) * dim + o_d
            b_token += tl.load(conv_state + o_x, mask=stored_where(o_d, dim, t < back), other=0.0).to(
                tl.float32
            )
        if HAS_STARTS:
            m_start = tl.load(doc_starts + i_b * time + t - back, mask=t >= back, other=0) != 0
            b_window = empty_if(m_start, b_window, WIDTH - 1)
        b_window = push(b_window, b_token, WIDTH - 1)
    return b_window


@triton.jit
def _forward_steps(
    b_window,
    b_conv,
    b_w,
    x,
    residual,
    r,
    u,
    doc_starts,
    o_row,
    dim,
    o_d,
    m_d,
    eps,
    HAS_RESIDUAL: tl.constexpr,
    HAS_STARTS: tl.constexpr,
    WIDTH: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """UNROLL steps from `o_row`, a row of (batch x time); the window after them."""
    b_x = load_rows(x + o_row * dim, dim, o_d, m_d, UNROLL, 1)
    if HAS_RESIDUAL:
        b_residual = load_rows(residual + o_row * dim, dim, o_d, m_d, UNROLL, 1)
    m_start = load_flags(doc_starts, o_row, HAS_STARTS, UNROLL, 1)
    for step in tl.static_range(UNROLL):
        o_x = (o_row + step) * dim + o_d
        b_r = b_x[step]
        if HAS_RESIDUAL:
            b_rounded = (b_r + b_residual[step]).to(r.dtype.element_ty)
            tl.store(r + o_x, b_rounded, mask=m_d)
            b_r = b_rounded.to(tl.float32)
        b_token = b_r * _inverse(b_r, dim, eps) * b_w
        if HAS_STARTS:
            b_window = empty_if(m_start[step], b_window, WIDTH - 1)
        b_u = b_token * (1.0 + b_conv[0])
        for k in tl.static_range(1, WIDTH):
            b_u += b_window[k - 1] * b_conv[k]
        tl.store(u + o_x, b_u.to(u.dtype.element_ty), mask=m_d)
        b_window = push(b_window, b_token, WIDTH - 1)
    return b_window


@triton.jit(do_not_specialize=["time", "chunk_length"])
def norm_conv_forward(
    x,
    residual,
    weight,
    conv_weight,
    doc_starts,
    conv_state,
    r,
    u,
    time,
    dim,
    chunk_length,
    eps,
    HAS_RESIDUAL: tl.constexpr,
    HAS_STARTS: tl.constexpr,
    HAS_CONV_STATE: tl.constexpr,
    WIDTH: tl.constexpr,
    UNROLL: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    i_b = tl.program_id(0).to(tl.int64)
    o_d = tl.arange(0, BLOCK_DIM)
    m_d = o_d < dim
    first = tl.program_id(1) * chunk_length
    last = tl.minimum(first + chunk_length, time)
    b_conv = load_conv_weight(conv_weight, o_d, dim, WIDTH)
    b_w = tl.load(weight + o_d, mask=m_d, other=0.0).to(tl.float32)
    b_window = _tokens_before(
        x,
        residual,
        doc_starts,
        conv_state,
        i_b,
        time,
        first,
        b_w,
        o_d,
        dim,
        eps,
        HAS_RESIDUAL,
        HAS_STARTS,
        HAS_CONV_STATE,
        WIDTH,
    )
    whole = last - (last - first) % UNROLL
    for t in range(first, whole, UNROLL):
        b_window = _forward_steps(
            b_window,
            b_conv,
            b_w,
            x,
            residual,
            r,
            u,
            doc_starts,
            i_b * time + t,
            dim,
            o_d,
            m_d,
            eps,
            HAS_RESIDUAL,
            HAS_STARTS,
            WIDTH,
            UNROLL,
        )
    for t in range(whole, last):
        b_window = _forward_steps(
            b_window,
            b_conv,
            b_w,
            x,
            residual,
            r,
            u,
            doc_starts,
            i_b * time + t,
            dim,
            o_d,
            m_d,
            eps,
            HAS_RESIDUAL,
            HAS_STARTS,
            WIDTH,
            1,
        )


@triton.jit
def _backward_steps(
    b_window,
    b_dconv,
    b_dw,
    b_conv,
    b_w,
    r,
    du,
    dr,
    dx,
    doc_starts,
    o_row,
    dim,
    o_d,
    m_d,
    eps,
    HAS_STARTS: tl.constexpr,
    HAS_DR: tl.constexpr,
    WIDTH: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """UNROLL steps backward from `o_row`; the window of gradients and the parameters' sums after them."""
    b_r = load_rows(r + o_row * dim, dim, o_d, m_d, UNROLL, -1)
    b_du = load_rows(du + o_row * dim, dim, o_d, m_d, UNROLL, -1)
    if HAS_DR:
        b_dr = load_rows(dr + o_row * dim, dim, o_d, m_d, UNROLL, -1)
    m_start = load_flags(doc_starts, o_row, HAS_STARTS, UNROLL, -1)
    for step in tl.static_range(UNROLL):
        b_inv = _inverse(b_r[step], dim, eps)
        b_n = b_r[step] * b_inv
        b_grad = b_du[step] * (1.0 + b_conv[0])
        for k in tl.static_range(1, WIDTH):
            b_grad += b_window[k - 1] * b_conv[k]
        b_dconv = add_to_weights(b_dconv, b_n * b_w, b_du[step], b_window, WIDTH)
        b_dw += b_grad * b_n
        b_grad *= b_w
        b_dx = b_inv * (b_grad - b_n * (tl.sum(b_grad * b_n, 0) / dim))
        if HAS_DR:
            b_dx += b_dr[step]
        tl.store(dx + (o_row - step) * dim + o_d, b_dx.to(dx.dtype.element_ty), mask=m_d)
        b_window = push(b_window, b_du[step], WIDTH - 1)
        if HAS_STARTS:
            b_window = empty_if(m_start[step], b_window, WIDTH - 1)
    return b_window, b_dconv, b_dw


@triton.jit(do_not_specialize=["time", "chunk_length"])
def norm_conv_backward(
    r,
    weight,
    conv_weight,
    doc_starts,
    conv_state,
    du,
    dr,
    dx,
    dconv_state,
    partial_sums,
    time,
    dim,
    chunk_length,
    eps,
    HAS_STARTS: tl.constexpr,
    HAS_CONV_STATE: tl.constexpr,
    HAS_DR: tl.constexpr,
    WIDTH: tl.constexpr,
    UNROLL: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    """dx, the gradient of x and of residual, from those of u and (HAS_DR) of r."""
    i_b = tl.program_id(0).to(tl.int64)
    i_c = tl.program_id(1)
    o_d = tl.arange(0, BLOCK_DIM)
    m_d = o_d < dim
    first = i_c * chunk_length
    last = tl.minimum(first + chunk_length, time)
    b_conv = load_conv_weight(conv_weight, o_d, dim, WIDTH)
    b_w = tl.load(weight + o_d, mask=m_d, other=0.0).to(tl.float32)
    p_du = du + (i_b * time + last) * dim
    b_window = gradients_after(p_du, doc_starts, i_b, last, time, o_d, dim, HAS_STARTS, WIDTH)
    b_dconv = ()
    for _ in tl.static_range(WIDTH):
        b_dconv = b_dconv + (tl.zeros((BLOCK_DIM,), tl.float32),)
    b_dw = tl.zeros((BLOCK_DIM,), tl.float32)
    whole = (last - first) // UNROLL * UNROLL
    for back in range(0, whole, UNROLL):
        b_window, b_dconv, b_dw = _backward_steps(
            b_window,
            b_dconv,
            b_dw,
            b_conv,
            b_w,
            r,
            du,
            dr,
            dx,
            doc_starts,
            i_b * time + last - 1 - back,
            dim,
            o_d,
            m_d,
            eps,
            HAS_STARTS,
            HAS_DR,
            WIDTH,
            UNROLL,
        )
    for back in range(whole, last - first):
        b_window, b_dconv, b_dw = _backward_steps(
            b_window,
            b_dconv,
            b_dw,
            b_conv,
            b_w,
            r,
            du,
            dr,
            dx,
            doc_starts,
            i_b * time + last - 1 - back,
            dim,
            o_d,
            m_d,
            eps,
            HAS_STARTS,
            HAS_DR,
            WIDTH,
            1,
        )
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
    p_sums = partial_sums + (i_b * tl.num_programs(1) + i_c) * (WIDTH + 1) * dim
    for k in tl.static_range(WIDTH):
        tl.store(p_sums + o_d * WIDTH + k, b_dconv[k], mask=m_d)
    tl.store(p_sums + WIDTH * dim + o_d, b_dw, mask=m_d)


@triton.jit
def norm_last_rows(
    r,
    weight,
    doc_starts,
    out,
    time,
    dim,
    eps,
    HAS_STARTS: tl.constexpr,
    COUNT: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    """out (batch, COUNT, dim): the last rows of r, normalised; zeros before the last document start."""
    i_b, i_n = tl.program_id(0).to(tl.int64), tl.program_id(1)
    o_d = tl.arange(0, BLOCK_DIM)
    m_d = o_d < dim
    o_x = time - COUNT + i_n
    b_r = tl.load(r + (i_b * time + o_x) * dim + o_d, mask=m_d, other=0.0).to(tl.float32)
    b_w = tl.load(weight + o_d, mask=m_d, other=0.0).to(tl.float32)
    b_r = b_r * tl.rsqrt(tl.sum(b_r * b_r, 0) / dim + eps) * b_w
    if HAS_STARTS:
        for later in tl.static_range(1, COUNT):
            if i_n + later < COUNT:
                b_r = tl.where(tl.load(doc_starts + i_b * time + o_x + later) != 0, 0.0, b_r)
    tl.store(out + (i_b * COUNT + i_n) * dim + o_d, b_r, mask=m_d)
