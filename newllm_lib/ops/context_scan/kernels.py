"""Triton kernels of the scan c_t = a_t * c_{t-1} + b_t and of its gradient. No tensor-core dot: they run from sm70 on.

One program walks through time for one batch row and `BLOCK_DIM` channels, with the state in registers, in float32. The
state is the only thing that one step waits for, so the inputs of `UNROLL` steps are requested before the first of them
is used: memory stays busy although the walk is sequential (what is left over goes one step at a time). Where batch x dim
is too small to fill the GPU, time is cut into chunks as well: a first pass (`SUMMARY`) finds what each chunk does to any
state that enters it (exit = product * entry + end), these summaries are scanned by the same kernel, and the main pass
starts each chunk from the right state.

`GATED` kernels make the coefficients themselves from pre-activations x (forget) and y (input), so that neither a nor b
is ever stored: a = sigmoid(x + bias), b = (1 - a) * silu(y), with a = 0 where a document starts. Otherwise x is a and y
is b.

Sizes: x, y, c and their gradients (batch, time, dim) with any strides; bias (dim,); starts, valid (batch, time) bytes;
initial and final state and their gradients (batch, dim) float32; products, ends and exits (batch, chunks, dim) float32.
"""

from __future__ import annotations

import os

import triton
import triton.language as tl

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")  # which knows no instructions


@triton.jit
def exp2(x):
    """2^x as the special-function unit gives it, 0 below 2^-126: tl.exp2 spends three more instructions on such numbers."""
    if INTERPRETED:
        return tl.exp2(x)
    return tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)) to 3e-7, as a squared reciprocal root: 5 instructions, where exp and a division take 12."""
    root = tl.rsqrt(1.0 + exp2(x * -LOG2_E))
    return root * root


@triton.jit
def sigmoid_pair(x):
    """sigmoid(x) and 1 - sigmoid(x) to full relative precision: subtracting would lose the digits of a gate near 1."""
    e = exp2(tl.minimum(x * -LOG2_E, 126.0, propagate_nan=tl.PropagateNan.ALL))  # at 128 it would be infinite
    root = tl.rsqrt(1.0 + e)
    keep = root * root
    return keep, e * keep


@triton.jit
def load_rows(row, stride_time, stride_dim, dims, mask, UNROLL: tl.constexpr, STEP: tl.constexpr):
    """UNROLL rows from `row` on, forward or backward (STEP 1 or -1), as a tuple of float32 vectors."""
    rows = ()
    for u in tl.static_range(UNROLL):
        rows = rows + (tl.load(row + u * STEP * stride_time + dims * stride_dim, mask=mask, other=0.0).to(tl.float32),)
    return rows


@triton.jit
def load_flags(flags, place, STORED: tl.constexpr, UNROLL: tl.constexpr, STEP: tl.constexpr):
    """The bytes at `place` and after (or before) it, for UNROLL steps: which are set? All, if there is no such tensor."""
    found = ()
    for u in tl.static_range(UNROLL):
        if STORED:
            found = found + (tl.load(flags + place + u * STEP) != 0,)
        else:
            found = found + (True,)
    return found


@triton.jit
def _gates(x, bias, start, counts, GATED: tl.constexpr, HAS_STARTS: tl.constexpr, HAS_VALID: tl.constexpr):
    """(a, share): how much of the state is kept, how much is written; a step that does not count only keeps."""
    if GATED:
        keep, share = sigmoid_pair(x + bias)
        if HAS_STARTS:
            keep = tl.where(start, 0.0, keep)
            share = tl.where(start, 1.0, share)
    else:
        keep = x
        share = tl.full(x.shape, 1.0, tl.float32)
    if HAS_VALID:
        keep = tl.where(counts, keep, 1.0)
        share = tl.where(counts, share, 0.0)
    return keep, share


@triton.jit
def _entry_state(outer, exits, batch, dim, dims, in_dim, chunk, neighbour, chunks, HAS_OUTER: tl.constexpr):
    """What enters a chunk: the exit of the neighbouring chunk or, at the sequence's edge, the outer state or zeros."""
    state = tl.zeros(dims.shape, tl.float32)
    if (neighbour >= 0) & (neighbour < chunks):
        state = tl.load(exits + (batch * chunks + neighbour) * dim + dims, mask=in_dim, other=0.0)
    elif HAS_OUTER:
        state = tl.load(outer + batch * dim + dims, mask=in_dim, other=0.0)
    return state


@triton.jit
def _forward_steps(
    state, kept, x_row, y_row, c_row, shift, starts, valid, place, dim, dims, in_dim, x_time, x_dim, y_time, y_dim,
    GATED: tl.constexpr, HAS_STARTS: tl.constexpr, HAS_VALID: tl.constexpr, SUMMARY: tl.constexpr,
    UNROLL: tl.constexpr,
):  # fmt: skip
    """UNROLL steps from the rows given, `place` among the flags; the state and the product of a after them."""
    xs = load_rows(x_row, x_time, x_dim, dims, in_dim, UNROLL, 1)
    ys = load_rows(y_row, y_time, y_dim, dims, in_dim, UNROLL, 1)
    is_start = load_flags(starts, place, HAS_STARTS, UNROLL, 1)
    counts = load_flags(valid, place, HAS_VALID, UNROLL, 1)
    for u in tl.static_range(UNROLL):
        a, share = _gates(xs[u], shift, is_start[u], counts[u], GATED, HAS_STARTS, HAS_VALID)
        written = ys[u]
        if GATED:
            written = written * sigmoid(written)
        state = a * state + share * written
        if SUMMARY:
            kept = kept * a
        else:
            tl.store(c_row + u * dim + dims, state.to(c_row.dtype.element_ty), mask=in_dim)
    return state, kept


@triton.jit(do_not_specialize=["time", "chunks", "chunk_length"])
def scan_forward(
    x, y, bias, starts, valid, initial, exits, c, product, final,
    time, dim, chunks, chunk_length, x_batch, x_time, x_dim, y_batch, y_time, y_dim,
    GATED: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_STARTS: tl.constexpr, HAS_VALID: tl.constexpr,
    HAS_INITIAL: tl.constexpr, SUMMARY: tl.constexpr, UNROLL: tl.constexpr, BLOCK_DIM: tl.constexpr,
):  # fmt: skip
    """Writes c (contiguous) and the final state; with SUMMARY, each chunk's product of a and its end from zero."""
    dim_blocks = tl.cdiv(dim, BLOCK_DIM)
    batch = (tl.program_id(0) // dim_blocks).to(tl.int64)
    chunk = tl.program_id(1)
    dims = (tl.program_id(0) % dim_blocks) * BLOCK_DIM + tl.arange(0, BLOCK_DIM)
    in_dim = dims < dim
    first = chunk * chunk_length
    last = tl.minimum(first + chunk_length, time)
    x_row = x + batch * x_batch + first.to(tl.int64) * x_time
    y_row = y + batch * y_batch + first.to(tl.int64) * y_time
    c_row = c + (batch * time + first) * dim
    shift = tl.zeros((BLOCK_DIM,), tl.float32)
    if HAS_BIAS:
        shift = tl.load(bias + dims, mask=in_dim, other=0.0).to(tl.float32)
    state = tl.zeros((BLOCK_DIM,), tl.float32)
    if not SUMMARY:
        state = _entry_state(initial, exits, batch, dim, dims, in_dim, chunk, chunk - 1, chunks, HAS_INITIAL)
    kept = tl.full((BLOCK_DIM,), 1.0, tl.float32)
    whole = last - (last - first) % UNROLL
    for t in range(first, whole, UNROLL):
        state, kept = _forward_steps(
            state, kept, x_row, y_row, c_row, shift, starts, valid, batch * time + t, dim, dims, in_dim,
            x_time, x_dim, y_time, y_dim, GATED, HAS_STARTS, HAS_VALID, SUMMARY, UNROLL,
        )  # fmt: skip
        x_row += UNROLL * x_time
        y_row += UNROLL * y_time
        c_row += UNROLL * dim
    for t in range(whole, last):
        state, kept = _forward_steps(
            state, kept, x_row, y_row, c_row, shift, starts, valid, batch * time + t, dim, dims, in_dim,
            x_time, x_dim, y_time, y_dim, GATED, HAS_STARTS, HAS_VALID, SUMMARY, 1,
        )  # fmt: skip
        x_row += x_time
        y_row += y_time
        c_row += dim
    if SUMMARY:
        tl.store(product + (batch * chunks + chunk) * dim + dims, kept, mask=in_dim)
        tl.store(final + (batch * chunks + chunk) * dim + dims, state, mask=in_dim)
    elif chunk == chunks - 1:
        tl.store(final + batch * dim + dims, state, mask=in_dim)


@triton.jit
def _summary_steps(
    carried, kept, x_row, dc_row, shift, starts, valid, place, dims, in_dim, x_time, x_dim, dc_time, dc_dim,
    GATED: tl.constexpr, HAS_STARTS: tl.constexpr, HAS_VALID: tl.constexpr, HAS_DC: tl.constexpr,
    UNROLL: tl.constexpr,
):  # fmt: skip
    """UNROLL steps backward from the rows given; the gradient carried and the product of a after them."""
    xs = load_rows(x_row, x_time, x_dim, dims, in_dim, UNROLL, -1)
    is_start = load_flags(starts, place, HAS_STARTS, UNROLL, -1)
    counts = load_flags(valid, place, HAS_VALID, UNROLL, -1)
    if HAS_DC:
        dcs = load_rows(dc_row, dc_time, dc_dim, dims, in_dim, UNROLL, -1)
    for u in tl.static_range(UNROLL):
        a, share = _gates(xs[u], shift, is_start[u], counts[u], GATED, HAS_STARTS, HAS_VALID)
        if HAS_DC:
            carried += dcs[u]
        carried = a * carried
        kept = kept * a
    return carried, kept


@triton.jit(do_not_specialize=["time", "chunks", "chunk_length"])
def scan_backward_summary(
    x, bias, starts, valid, dc, product, end,
    time, dim, chunks, chunk_length, x_batch, x_time, x_dim, dc_batch, dc_time, dc_dim,
    GATED: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_STARTS: tl.constexpr, HAS_VALID: tl.constexpr,
    HAS_DC: tl.constexpr, UNROLL: tl.constexpr, BLOCK_DIM: tl.constexpr,
):  # fmt: skip
    """What a chunk does to a gradient that enters it from the later chunks: exit = product * entry + end."""
    dim_blocks = tl.cdiv(dim, BLOCK_DIM)
    batch = (tl.program_id(0) // dim_blocks).to(tl.int64)
    chunk = tl.program_id(1)
    dims = (tl.program_id(0) % dim_blocks) * BLOCK_DIM + tl.arange(0, BLOCK_DIM)
    in_dim = dims < dim
    first = chunk * chunk_length
    last = tl.minimum(first + chunk_length, time)
    x_row = x + batch * x_batch + (last - 1).to(tl.int64) * x_time
    dc_row = dc + batch * dc_batch + (last - 1).to(tl.int64) * dc_time
    shift = tl.zeros((BLOCK_DIM,), tl.float32)
    if HAS_BIAS:
        shift = tl.load(bias + dims, mask=in_dim, other=0.0).to(tl.float32)
    carried = tl.zeros((BLOCK_DIM,), tl.float32)
    kept = tl.full((BLOCK_DIM,), 1.0, tl.float32)
    whole = (last - first) // UNROLL * UNROLL
    for back in range(0, whole, UNROLL):
        carried, kept = _summary_steps(
            carried, kept, x_row, dc_row, shift, starts, valid, batch * time + last - 1 - back, dims, in_dim,
            x_time, x_dim, dc_time, dc_dim, GATED, HAS_STARTS, HAS_VALID, HAS_DC, UNROLL,
        )  # fmt: skip
        x_row -= UNROLL * x_time
        dc_row -= UNROLL * dc_time
    for back in range(whole, last - first):
        carried, kept = _summary_steps(
            carried, kept, x_row, dc_row, shift, starts, valid, batch * time + last - 1 - back, dims, in_dim,
            x_time, x_dim, dc_time, dc_dim, GATED, HAS_STARTS, HAS_VALID, HAS_DC, 1,
        )  # fmt: skip
        x_row -= x_time
        dc_row -= dc_time
    tl.store(product + (batch * chunks + chunk) * dim + dims, kept, mask=in_dim)
    tl.store(end + (batch * chunks + chunk) * dim + dims, carried, mask=in_dim)


@triton.jit
def _contexts_before(c_row, at_zero, t, dim, dims, UNROLL: tl.constexpr):
    """c_{t-1}, c_{t-2}, ... as float32 vectors, c_row being the row of c_t; before the first step, the initial state."""
    rows = ()
    for u in tl.static_range(UNROLL):
        # (The mask in this form because Triton's interpreter can't AND a vector with a scalar bool.)
        stored = dims < tl.where(t > u, dim, 0)
        before = tl.load(c_row - (u + 1) * dim + dims, mask=stored, other=at_zero)
        rows = rows + (before.to(tl.float32),)
    return rows


@triton.jit
def _backward_steps(
    carried, bias_sum, x_row, y_row, c_row, dc_row, dx_row, dy_row, at_zero, shift, starts, valid, place,
    t, dim, dims, in_dim, x_time, x_dim, y_time, y_dim, dc_time, dc_dim, dx_time, dx_dim, dy_time, dy_dim,
    GATED: tl.constexpr, HAS_STARTS: tl.constexpr, HAS_VALID: tl.constexpr, HAS_DC: tl.constexpr,
    UNROLL: tl.constexpr,
):  # fmt: skip
    """Steps t, t - 1, ... (UNROLL of them), of which the rows are t's; the gradient carried and the sum of dx after."""
    xs = load_rows(x_row, x_time, x_dim, dims, in_dim, UNROLL, -1)
    before = _contexts_before(c_row, at_zero, t, dim, dims, UNROLL)
    is_start = load_flags(starts, place, HAS_STARTS, UNROLL, -1)
    counts = load_flags(valid, place, HAS_VALID, UNROLL, -1)
    if GATED:
        ys = load_rows(y_row, y_time, y_dim, dims, in_dim, UNROLL, -1)
    if HAS_DC:
        dcs = load_rows(dc_row, dc_time, dc_dim, dims, in_dim, UNROLL, -1)
    for u in tl.static_range(UNROLL):
        a, share = _gates(xs[u], shift, is_start[u], counts[u], GATED, HAS_STARTS, HAS_VALID)
        if HAS_DC:
            carried += dcs[u]
        grad_x = carried * before[u]
        grad_y = share * carried
        if GATED:
            gate = sigmoid(ys[u])
            silu = ys[u] * gate
            # share = 1 - a: what a keeps is not written. a * share is sigmoid's derivative, 0 at a start and in padding.
            grad_x = (grad_x - carried * silu) * (a * share)
            grad_y = grad_y * (gate + silu * (1.0 - gate))
            bias_sum += grad_x
        elif HAS_VALID:
            grad_x = tl.where(counts[u], grad_x, 0.0)
        tl.store(dx_row - u * dx_time + dims * dx_dim, grad_x.to(dx_row.dtype.element_ty), mask=in_dim)
        tl.store(dy_row - u * dy_time + dims * dy_dim, grad_y.to(dy_row.dtype.element_ty), mask=in_dim)
        carried = a * carried
    return carried, bias_sum


@triton.jit(do_not_specialize=["time", "chunks", "chunk_length"])
def scan_backward(
    x, y, bias, starts, valid, initial, c, dc, dfinal, exits, dx, dy, dbias, dinitial,
    time, dim, chunks, chunk_length, x_batch, x_time, x_dim, y_batch, y_time, y_dim, dc_batch, dc_time, dc_dim,
    dx_batch, dx_time, dx_dim, dy_batch, dy_time, dy_dim,
    GATED: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_STARTS: tl.constexpr, HAS_VALID: tl.constexpr,
    HAS_INITIAL: tl.constexpr, HAS_DC: tl.constexpr, HAS_DFINAL: tl.constexpr,
    UNROLL: tl.constexpr, BLOCK_DIM: tl.constexpr,
):  # fmt: skip
    """From the last step to the first: g_t = dc_t + a_{t+1} g_{t+1}, da_t = g_t c_{t-1}, db_t = g_t, dinitial = a_1 g_1

    GATED: writes the gradients of the pre-activations, and in dbias (batch, chunks, dim) the sum of dx over the chunk.
    """
    dim_blocks = tl.cdiv(dim, BLOCK_DIM)
    batch = (tl.program_id(0) // dim_blocks).to(tl.int64)
    chunk = tl.program_id(1)
    dims = (tl.program_id(0) % dim_blocks) * BLOCK_DIM + tl.arange(0, BLOCK_DIM)
    in_dim = dims < dim
    first = chunk * chunk_length
    last = tl.minimum(first + chunk_length, time)
    end = (last - 1).to(tl.int64)
    x_row = x + batch * x_batch + end * x_time
    y_row = y + batch * y_batch + end * y_time
    c_row = c + (batch * time + end) * dim
    dc_row = dc + batch * dc_batch + end * dc_time
    dx_row = dx + batch * dx_batch + end * dx_time
    dy_row = dy + batch * dy_batch + end * dy_time
    shift = tl.zeros((BLOCK_DIM,), tl.float32)
    if HAS_BIAS:
        shift = tl.load(bias + dims, mask=in_dim, other=0.0).to(tl.float32)
    at_zero = tl.zeros((BLOCK_DIM,), tl.float32)
    if HAS_INITIAL:
        at_zero = tl.load(initial + batch * dim + dims, mask=in_dim, other=0.0)
    at_zero = at_zero.to(c.dtype.element_ty)
    carried = _entry_state(dfinal, exits, batch, dim, dims, in_dim, chunk, chunk + 1, chunks, HAS_DFINAL)
    bias_sum = tl.zeros((BLOCK_DIM,), tl.float32)
    whole = (last - first) // UNROLL * UNROLL
    for back in range(0, whole, UNROLL):
        carried, bias_sum = _backward_steps(
            carried, bias_sum, x_row, y_row, c_row, dc_row, dx_row, dy_row, at_zero, shift, starts, valid,
            batch * time + last - 1 - back, last - 1 - back, dim, dims, in_dim,
            x_time, x_dim, y_time, y_dim, dc_time, dc_dim, dx_time, dx_dim, dy_time, dy_dim,
            GATED, HAS_STARTS, HAS_VALID, HAS_DC, UNROLL,
        )  # fmt: skip
        x_row -= UNROLL * x_time
        y_row -= UNROLL * y_time
        c_row -= UNROLL * dim
        dc_row -= UNROLL * dc_time
        dx_row -= UNROLL * dx_time
        dy_row -= UNROLL * dy_time
    for back in range(whole, last - first):
        carried, bias_sum = _backward_steps(
            carried, bias_sum, x_row, y_row, c_row, dc_row, dx_row, dy_row, at_zero, shift, starts, valid,
            batch * time + last - 1 - back, last - 1 - back, dim, dims, in_dim,
            x_time, x_dim, y_time, y_dim, dc_time, dc_dim, dx_time, dx_dim, dy_time, dy_dim,
            GATED, HAS_STARTS, HAS_VALID, HAS_DC, 1,
        )  # fmt: skip
        x_row -= x_time
        y_row -= y_time
        c_row -= dim
        dc_row -= dc_time
        dx_row -= dx_time
        dy_row -= dy_time
    if HAS_BIAS:
        tl.store(dbias + (batch * chunks + chunk) * dim + dims, bias_sum, mask=in_dim)
    if chunk == 0:
        tl.store(dinitial + batch * dim + dims, carried, mask=in_dim)
