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
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    dims = tl.arange(0, BLOCK_DIM)[None, :]
    mask = (row < rows) & (dims < dim)
    place = row * dim + dims
    value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        value += tl.load(residual + place, mask=mask, other=0.0).to(tl.float32)
        rounded = value.to(r.dtype.element_ty)
        tl.store(r + place, rounded, mask=mask)
        value = rounded.to(tl.float32)
    scale = tl.load(weight + dims, mask=dims < dim, other=0.0).to(tl.float32)
    inverse = tl.rsqrt(tl.sum(value * value, axis=1, keep_dims=True) / dim + eps)
    tl.store(n + place, (value * inverse * scale).to(n.dtype.element_ty), mask=mask)


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
    program = tl.program_id(0)
    dims = tl.arange(0, BLOCK_DIM)[None, :]
    scale = tl.load(weight + dims, mask=dims < dim, other=0.0).to(tl.float32)
    weight_sum = tl.zeros((ROWS, BLOCK_DIM), tl.float32)
    for block in range(program, tl.cdiv(rows, ROWS), tl.num_programs(0)):
        row = tl.full((ROWS, 1), block, tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
        mask = (row < rows) & (dims < dim)
        place = row * dim + dims
        value = tl.load(r + place, mask=mask, other=0.0).to(tl.float32)
        grad = tl.load(dn + place, mask=mask, other=0.0).to(tl.float32)
        if HAS_DR:
            from_stream = tl.load(dr + place, mask=mask, other=0.0).to(tl.float32)
        inverse = tl.rsqrt(tl.sum(value * value, axis=1, keep_dims=True) / dim + eps)
        normal = value * inverse
        weight_sum += grad * normal
        grad *= scale
        total = inverse * (grad - normal * tl.sum(grad * normal, axis=1, keep_dims=True) / dim)
        if HAS_DR:
            total += from_stream
        tl.store(dx + place, total.to(dx.dtype.element_ty), mask=mask)
    dims = tl.arange(0, BLOCK_DIM)
    tl.store(dweight + program * dim + dims, tl.sum(weight_sum, axis=0), mask=dims < dim)


# ---- with the short convolution


@triton.jit
def _inverse(value, dim, eps):
    return tl.rsqrt(tl.sum(value * value, 0) / dim + eps)


@triton.jit
def _tokens_before(
    x,
    residual,
    doc_starts,
    conv_state,
    batch,
    time,
    t,
    scale,
    dims,
    dim,
    eps,
    HAS_RESIDUAL: tl.constexpr,
    HAS_STARTS: tl.constexpr,
    HAS_CONV_STATE: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """The window that step t finds: what was normalised before it, newest first."""
    window = ()
    for _ in tl.static_range(WIDTH - 1):
        window = window + (tl.zeros(dims.shape, tl.float32),)
    # oldest first: a document start empties what lies behind it
    for back in tl.static_range(WIDTH - 1, 0, -1):
        stored = stored_where(dims, dim, t >= back)
        place = (batch * time + t - back) * dim + dims
        value = tl.load(x + place, mask=stored, other=0.0).to(tl.float32)
        if HAS_RESIDUAL:
            value += tl.load(residual + place, mask=stored, other=0.0).to(tl.float32)
            value = value.to(x.dtype.element_ty).to(tl.float32)
        token = value * _inverse(value, dim, eps) * scale
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
def _forward_steps(
    window,
    conv_weight,
    scale,
    x,
    residual,
    r,
    u,
    doc_starts,
    place,
    dim,
    dims,
    in_dim,
    eps,
    HAS_RESIDUAL: tl.constexpr,
    HAS_STARTS: tl.constexpr,
    WIDTH: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """UNROLL steps from `place`, a row of (batch x time); the window after them."""
    xs = load_rows(x + place * dim, dim, 1, dims, in_dim, UNROLL, 1)
    if HAS_RESIDUAL:
        residuals = load_rows(residual + place * dim, dim, 1, dims, in_dim, UNROLL, 1)
    is_start = load_flags(doc_starts, place, HAS_STARTS, UNROLL, 1)
    for step in tl.static_range(UNROLL):
        here = (place + step) * dim + dims
        value = xs[step]
        if HAS_RESIDUAL:
            rounded = (value + residuals[step]).to(r.dtype.element_ty)
            tl.store(r + here, rounded, mask=in_dim)
            value = rounded.to(tl.float32)
        token = value * _inverse(value, dim, eps) * scale
        if HAS_STARTS:
            window = empty_if(is_start[step], window, WIDTH - 1)
        out = token * (1.0 + conv_weight[0])
        for k in tl.static_range(1, WIDTH):
            out += window[k - 1] * conv_weight[k]
        tl.store(u + here, out.to(u.dtype.element_ty), mask=in_dim)
        window = push(window, token, WIDTH - 1)
    return window


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
    batch = tl.program_id(0).to(tl.int64)
    dims = tl.arange(0, BLOCK_DIM)
    in_dim = dims < dim
    first = tl.program_id(1) * chunk_length
    last = tl.minimum(first + chunk_length, time)
    filters = load_conv_weight(conv_weight, dims, dim, WIDTH)
    scale = tl.load(weight + dims, mask=in_dim, other=0.0).to(tl.float32)
    window = _tokens_before(
        x,
        residual,
        doc_starts,
        conv_state,
        batch,
        time,
        first,
        scale,
        dims,
        dim,
        eps,
        HAS_RESIDUAL,
        HAS_STARTS,
        HAS_CONV_STATE,
        WIDTH,
    )
    whole = last - (last - first) % UNROLL
    for t in range(first, whole, UNROLL):
        window = _forward_steps(
            window,
            filters,
            scale,
            x,
            residual,
            r,
            u,
            doc_starts,
            batch * time + t,
            dim,
            dims,
            in_dim,
            eps,
            HAS_RESIDUAL,
            HAS_STARTS,
            WIDTH,
            UNROLL,
        )
    for t in range(whole, last):
        window = _forward_steps(
            window,
            filters,
            scale,
            x,
            residual,
            r,
            u,
            doc_starts,
            batch * time + t,
            dim,
            dims,
            in_dim,
            eps,
            HAS_RESIDUAL,
            HAS_STARTS,
            WIDTH,
            1,
        )


@triton.jit
def _backward_steps(
    window,
    sums,
    scale_sum,
    conv_weight,
    scale,
    r,
    du,
    dr,
    dx,
    doc_starts,
    place,
    dim,
    dims,
    in_dim,
    eps,
    HAS_STARTS: tl.constexpr,
    HAS_DR: tl.constexpr,
    WIDTH: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """UNROLL steps backward from `place`; the window of gradients and the parameters' sums after them."""
    values = load_rows(r + place * dim, dim, 1, dims, in_dim, UNROLL, -1)
    dus = load_rows(du + place * dim, dim, 1, dims, in_dim, UNROLL, -1)
    if HAS_DR:
        from_stream = load_rows(dr + place * dim, dim, 1, dims, in_dim, UNROLL, -1)
    is_start = load_flags(doc_starts, place, HAS_STARTS, UNROLL, -1)
    for step in tl.static_range(UNROLL):
        inverse = _inverse(values[step], dim, eps)
        normal = values[step] * inverse
        grad = dus[step] * (1.0 + conv_weight[0])
        for k in tl.static_range(1, WIDTH):
            grad += window[k - 1] * conv_weight[k]
        sums = add_to_weights(sums, normal * scale, dus[step], window, WIDTH)
        scale_sum += grad * normal
        grad *= scale
        total = inverse * (grad - normal * (tl.sum(grad * normal, 0) / dim))
        if HAS_DR:
            total += from_stream[step]
        tl.store(dx + (place - step) * dim + dims, total.to(dx.dtype.element_ty), mask=in_dim)
        window = push(window, dus[step], WIDTH - 1)
        if HAS_STARTS:
            window = empty_if(is_start[step], window, WIDTH - 1)
    return window, sums, scale_sum


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
    batch = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    dims = tl.arange(0, BLOCK_DIM)
    in_dim = dims < dim
    first = chunk * chunk_length
    last = tl.minimum(first + chunk_length, time)
    filters = load_conv_weight(conv_weight, dims, dim, WIDTH)
    scale = tl.load(weight + dims, mask=in_dim, other=0.0).to(tl.float32)
    after = du + (batch * time + last) * dim
    window = gradients_after(after, doc_starts, batch, last, time, dims, dim, dim, 1, HAS_STARTS, WIDTH)
    sums = ()
    for _ in tl.static_range(WIDTH):
        sums = sums + (tl.zeros((BLOCK_DIM,), tl.float32),)
    scale_sum = tl.zeros((BLOCK_DIM,), tl.float32)
    whole = (last - first) // UNROLL * UNROLL
    for back in range(0, whole, UNROLL):
        window, sums, scale_sum = _backward_steps(
            window,
            sums,
            scale_sum,
            filters,
            scale,
            r,
            du,
            dr,
            dx,
            doc_starts,
            batch * time + last - 1 - back,
            dim,
            dims,
            in_dim,
            eps,
            HAS_STARTS,
            HAS_DR,
            WIDTH,
            UNROLL,
        )
    for back in range(whole, last - first):
        window, sums, scale_sum = _backward_steps(
            window,
            sums,
            scale_sum,
            filters,
            scale,
            r,
            du,
            dr,
            dx,
            doc_starts,
            batch * time + last - 1 - back,
            dim,
            dims,
            in_dim,
            eps,
            HAS_STARTS,
            HAS_DR,
            WIDTH,
            1,
        )
    if HAS_CONV_STATE:
        if chunk == 0:  # which ends at the first step: the window is what the state's tokens find
            nothing = tl.zeros((BLOCK_DIM,), tl.float32)
            for before in tl.static_range(1, WIDTH):
                state_row = (batch * (WIDTH - 1) + WIDTH - 1 - before) * dim + dims
                token = tl.load(conv_state + state_row, mask=in_dim, other=0.0).to(tl.float32)
                state_grad = nothing
                for k in tl.static_range(1, WIDTH):
                    state_grad += window[k - 1] * filters[k]
                tl.store(dconv_state + state_row, state_grad.to(dconv_state.dtype.element_ty), mask=in_dim)
                sums = add_to_weights(sums, token, nothing, window, WIDTH)
                window = push(window, nothing, WIDTH - 1)
    own = partial_sums + (batch * tl.num_programs(1) + chunk) * (WIDTH + 1) * dim
    for k in tl.static_range(WIDTH):
        tl.store(own + dims * WIDTH + k, sums[k], mask=in_dim)
    tl.store(own + WIDTH * dim + dims, scale_sum, mask=in_dim)


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
    batch, number = tl.program_id(0).to(tl.int64), tl.program_id(1)
    dims = tl.arange(0, BLOCK_DIM)
    inside = dims < dim
    place = time - COUNT + number
    value = tl.load(r + (batch * time + place) * dim + dims, mask=inside, other=0.0).to(tl.float32)
    scale = tl.load(weight + dims, mask=inside, other=0.0).to(tl.float32)
    value = value * tl.rsqrt(tl.sum(value * value, 0) / dim + eps) * scale
    if HAS_STARTS:
        for later in tl.static_range(1, COUNT):
            if number + later < COUNT:
                value = tl.where(tl.load(doc_starts + batch * time + place + later) != 0, 0.0, value)
    tl.store(out + (batch * COUNT + number) * dim + dims, value, mask=inside)
