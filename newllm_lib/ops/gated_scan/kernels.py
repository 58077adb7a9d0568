"""Triton kernels of the scan c_t = a_t * c_{t-1} + b_t, its read-out and both gradients; from sm70 on.

One program walks through time for one batch row and `BLOCK_DIM` channels, with the state in registers, in
float32. The state is the only thing that one step waits for, so the inputs of `UNROLL` steps are requested
before the first of them is used: memory stays busy although the walk is sequential (what is left over goes
one step at a time). Where batch x dim is too small to fill the GPU, time is cut into chunks as well: a first
pass (`SUMMARY`) finds what each chunk does to any state that enters it (exit = product * entry + end), these
summaries are scanned by the same kernel, and the main pass starts each chunk from the right state.

The coefficients are made from pre-activations x (forget) and y (input), so that neither a nor b is ever
stored: a = sigmoid(x + bias), b = (1 - a) * silu(y), with a = 0 where a document starts. For the summaries x
is a and y is b (not `GATED`).

The read-out y = RMSNorm(c) * silu(z) is a pass of its own, over ROWS whole rows a program; x and z may lie
strided in memory (thirds of a packed projection). Its backward pass keeps few programs, each of which walks
over many blocks of rows, so that the sum that makes the weight's gradient stays in registers until the end.
`scan_step` is both for one token, in decoding.

Sizes: x, y, c and their gradients (batch, time, dim) with any strides; bias (dim,); doc_starts, mask (batch,
time) bytes; initial and final state and their gradients (batch, dim) float32; products, ends and exits
(batch, chunks, dim) float32.
"""

from __future__ import annotations

import triton
import triton.language as tl

from newllm_lib.ops.common.triton_helpers import load_flags, load_rows, sigmoid, sigmoid_pair


@triton.jit
def _gates(x, bias, start, counts, GATED: tl.constexpr, HAS_STARTS: tl.constexpr, HAS_VALID: tl.constexpr):
    """(a, share): how much of the state is kept, how much is written; an uncounted step only keeps."""
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
    """What enters a chunk: the neighbouring chunk's exit; at the sequence's edge the outer state or zeros."""
    state = tl.zeros(dims.shape, tl.float32)
    if (neighbour >= 0) & (neighbour < chunks):
        state = tl.load(exits + (batch * chunks + neighbour) * dim + dims, mask=in_dim, other=0.0)
    elif HAS_OUTER:
        state = tl.load(outer + batch * dim + dims, mask=in_dim, other=0.0)
    return state


@triton.jit
def _forward_steps(
    state,
    kept,
    x_row,
    y_row,
    c_row,
    shift,
    doc_starts,
    mask,
    place,
    dim,
    dims,
    in_dim,
    x_time,
    x_dim,
    y_time,
    y_dim,
    GATED: tl.constexpr,
    HAS_STARTS: tl.constexpr,
    HAS_VALID: tl.constexpr,
    SUMMARY: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """UNROLL steps from the rows given, `place` among the flags; the state and the product of a
    after them.
    """
    xs = load_rows(x_row, x_time, x_dim, dims, in_dim, UNROLL, 1)
    ys = load_rows(y_row, y_time, y_dim, dims, in_dim, UNROLL, 1)
    is_start = load_flags(doc_starts, place, HAS_STARTS, UNROLL, 1)
    counts = load_flags(mask, place, HAS_VALID, UNROLL, 1)
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
    x,
    y,
    bias,
    doc_starts,
    mask,
    initial,
    exits,
    c,
    product,
    final,
    time,
    dim,
    chunks,
    chunk_length,
    x_batch,
    x_time,
    x_dim,
    y_batch,
    y_time,
    y_dim,
    GATED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_STARTS: tl.constexpr,
    HAS_VALID: tl.constexpr,
    HAS_INITIAL: tl.constexpr,
    SUMMARY: tl.constexpr,
    UNROLL: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    """Writes c (contiguous) and the final state; with SUMMARY, each chunk's product of a and its end."""
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
            state,
            kept,
            x_row,
            y_row,
            c_row,
            shift,
            doc_starts,
            mask,
            batch * time + t,
            dim,
            dims,
            in_dim,
            x_time,
            x_dim,
            y_time,
            y_dim,
            GATED,
            HAS_STARTS,
            HAS_VALID,
            SUMMARY,
            UNROLL,
        )
        x_row += UNROLL * x_time
        y_row += UNROLL * y_time
        c_row += UNROLL * dim
    for t in range(whole, last):
        state, kept = _forward_steps(
            state,
            kept,
            x_row,
            y_row,
            c_row,
            shift,
            doc_starts,
            mask,
            batch * time + t,
            dim,
            dims,
            in_dim,
            x_time,
            x_dim,
            y_time,
            y_dim,
            GATED,
            HAS_STARTS,
            HAS_VALID,
            SUMMARY,
            1,
        )
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
    carried,
    kept,
    x_row,
    dc_row,
    shift,
    doc_starts,
    mask,
    place,
    dims,
    in_dim,
    x_time,
    x_dim,
    dc_time,
    dc_dim,
    HAS_STARTS: tl.constexpr,
    HAS_VALID: tl.constexpr,
    HAS_DC: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """UNROLL steps backward from the rows given; the gradient carried and the product of a after them."""
    xs = load_rows(x_row, x_time, x_dim, dims, in_dim, UNROLL, -1)
    is_start = load_flags(doc_starts, place, HAS_STARTS, UNROLL, -1)
    counts = load_flags(mask, place, HAS_VALID, UNROLL, -1)
    if HAS_DC:
        dcs = load_rows(dc_row, dc_time, dc_dim, dims, in_dim, UNROLL, -1)
    for u in tl.static_range(UNROLL):
        a, share = _gates(xs[u], shift, is_start[u], counts[u], True, HAS_STARTS, HAS_VALID)
        if HAS_DC:
            carried += dcs[u]
        carried = a * carried
        kept = kept * a
    return carried, kept


@triton.jit(do_not_specialize=["time", "chunks", "chunk_length"])
def scan_backward_summary(
    x,
    bias,
    doc_starts,
    mask,
    dc,
    product,
    end,
    time,
    dim,
    chunks,
    chunk_length,
    x_batch,
    x_time,
    x_dim,
    dc_batch,
    dc_time,
    dc_dim,
    HAS_BIAS: tl.constexpr,
    HAS_STARTS: tl.constexpr,
    HAS_VALID: tl.constexpr,
    HAS_DC: tl.constexpr,
    UNROLL: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
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
            carried,
            kept,
            x_row,
            dc_row,
            shift,
            doc_starts,
            mask,
            batch * time + last - 1 - back,
            dims,
            in_dim,
            x_time,
            x_dim,
            dc_time,
            dc_dim,
            HAS_STARTS,
            HAS_VALID,
            HAS_DC,
            UNROLL,
        )
        x_row -= UNROLL * x_time
        dc_row -= UNROLL * dc_time
    for back in range(whole, last - first):
        carried, kept = _summary_steps(
            carried,
            kept,
            x_row,
            dc_row,
            shift,
            doc_starts,
            mask,
            batch * time + last - 1 - back,
            dims,
            in_dim,
            x_time,
            x_dim,
            dc_time,
            dc_dim,
            HAS_STARTS,
            HAS_VALID,
            HAS_DC,
            1,
        )
        x_row -= x_time
        dc_row -= dc_time
    tl.store(product + (batch * chunks + chunk) * dim + dims, kept, mask=in_dim)
    tl.store(end + (batch * chunks + chunk) * dim + dims, carried, mask=in_dim)


@triton.jit
def _contexts_before(c_row, at_zero, t, dim, dims, UNROLL: tl.constexpr):
    """c_{t-1}, c_{t-2}, ... in float32 (c_row: the row of c_t); before the first step, the initial state."""
    rows = ()
    for u in tl.static_range(UNROLL):
        # (The mask in this form because Triton's interpreter can't AND a vector with a scalar bool.)
        stored = dims < tl.where(t > u, dim, 0)
        before = tl.load(c_row - (u + 1) * dim + dims, mask=stored, other=at_zero)
        rows = rows + (before.to(tl.float32),)
    return rows


@triton.jit
def _backward_steps(
    carried,
    bias_sum,
    x_row,
    y_row,
    c_row,
    dc_row,
    dx_row,
    dy_row,
    at_zero,
    shift,
    doc_starts,
    mask,
    place,
    t,
    dim,
    dims,
    in_dim,
    x_time,
    x_dim,
    y_time,
    y_dim,
    dc_time,
    dc_dim,
    dx_time,
    dx_dim,
    dy_time,
    dy_dim,
    HAS_STARTS: tl.constexpr,
    HAS_VALID: tl.constexpr,
    HAS_DC: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """Steps t, t - 1, ... (UNROLL of them) from t's rows; the carried gradient and the sum of dx after."""
    xs = load_rows(x_row, x_time, x_dim, dims, in_dim, UNROLL, -1)
    before = _contexts_before(c_row, at_zero, t, dim, dims, UNROLL)
    is_start = load_flags(doc_starts, place, HAS_STARTS, UNROLL, -1)
    counts = load_flags(mask, place, HAS_VALID, UNROLL, -1)
    ys = load_rows(y_row, y_time, y_dim, dims, in_dim, UNROLL, -1)
    if HAS_DC:
        dcs = load_rows(dc_row, dc_time, dc_dim, dims, in_dim, UNROLL, -1)
    for u in tl.static_range(UNROLL):
        a, share = _gates(xs[u], shift, is_start[u], counts[u], True, HAS_STARTS, HAS_VALID)
        if HAS_DC:
            carried += dcs[u]
        gate = sigmoid(ys[u])
        silu = ys[u] * gate
        # share = 1 - a. a * share is sigmoid's derivative, 0 at a start and in padding.
        grad_x = (carried * before[u] - carried * silu) * (a * share)
        grad_y = share * carried * (gate + silu * (1.0 - gate))
        bias_sum += grad_x
        tl.store(dx_row - u * dx_time + dims * dx_dim, grad_x.to(dx_row.dtype.element_ty), mask=in_dim)
        tl.store(dy_row - u * dy_time + dims * dy_dim, grad_y.to(dy_row.dtype.element_ty), mask=in_dim)
        carried = a * carried
    return carried, bias_sum


@triton.jit(do_not_specialize=["time", "chunks", "chunk_length"])
def scan_backward(
    x,
    y,
    bias,
    doc_starts,
    mask,
    initial,
    c,
    dc,
    dfinal,
    exits,
    dx,
    dy,
    dbias,
    dinitial,
    time,
    dim,
    chunks,
    chunk_length,
    x_batch,
    x_time,
    x_dim,
    y_batch,
    y_time,
    y_dim,
    dc_batch,
    dc_time,
    dc_dim,
    dx_batch,
    dx_time,
    dx_dim,
    dy_batch,
    dy_time,
    dy_dim,
    HAS_BIAS: tl.constexpr,
    HAS_STARTS: tl.constexpr,
    HAS_VALID: tl.constexpr,
    HAS_INITIAL: tl.constexpr,
    HAS_DC: tl.constexpr,
    HAS_DFINAL: tl.constexpr,
    UNROLL: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    """From the last step to the first: g_t = dc_t + a_{t+1} g_{t+1}, da_t = g_t c_{t-1}, db_t = g_t, dinitial
    = a_1 g_1

    Writes the gradients of the pre-activations, and in dbias (batch, chunks, dim) the sum of dx over the
    chunk.
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
            carried,
            bias_sum,
            x_row,
            y_row,
            c_row,
            dc_row,
            dx_row,
            dy_row,
            at_zero,
            shift,
            doc_starts,
            mask,
            batch * time + last - 1 - back,
            last - 1 - back,
            dim,
            dims,
            in_dim,
            x_time,
            x_dim,
            y_time,
            y_dim,
            dc_time,
            dc_dim,
            dx_time,
            dx_dim,
            dy_time,
            dy_dim,
            HAS_STARTS,
            HAS_VALID,
            HAS_DC,
            UNROLL,
        )
        x_row -= UNROLL * x_time
        y_row -= UNROLL * y_time
        c_row -= UNROLL * dim
        dc_row -= UNROLL * dc_time
        dx_row -= UNROLL * dx_time
        dy_row -= UNROLL * dy_time
    for back in range(whole, last - first):
        carried, bias_sum = _backward_steps(
            carried,
            bias_sum,
            x_row,
            y_row,
            c_row,
            dc_row,
            dx_row,
            dy_row,
            at_zero,
            shift,
            doc_starts,
            mask,
            batch * time + last - 1 - back,
            last - 1 - back,
            dim,
            dims,
            in_dim,
            x_time,
            x_dim,
            y_time,
            y_dim,
            dc_time,
            dc_dim,
            dx_time,
            dx_dim,
            dy_time,
            dy_dim,
            HAS_STARTS,
            HAS_VALID,
            HAS_DC,
            1,
        )
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


@triton.jit(do_not_specialize=["rows"])
def readout_forward(
    c, z, weight, y, rows, dim, eps, c_row, z_row, z_dim, ROWS: tl.constexpr, BLOCK_DIM: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    dims = tl.arange(0, BLOCK_DIM)[None, :]
    mask = (row < rows) & (dims < dim)
    x = tl.load(c + row * c_row + dims, mask=mask, other=0.0).to(tl.float32)
    gate = tl.load(z + row * z_row + dims * z_dim, mask=mask, other=0.0).to(tl.float32)
    scale = tl.load(weight + dims, mask=dims < dim, other=0.0).to(tl.float32)
    inverse = tl.rsqrt(tl.sum(x * x, axis=1, keep_dims=True) / dim + eps)
    out = (x * inverse) * scale * (gate * sigmoid(gate))
    tl.store(y + row * dim + dims, out.to(y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows"])
def readout_backward(
    c,
    z,
    weight,
    dy,
    dc,
    dz,
    dweight,
    rows,
    dim,
    eps,
    c_row,
    z_row,
    z_dim,
    dy_row,
    dy_dim,
    dz_row,
    dz_dim,
    ROWS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    """dweight (programs, dim) float32: each program's share of the weight's gradient."""
    program = tl.program_id(0)
    dims = tl.arange(0, BLOCK_DIM)[None, :]
    scale = tl.load(weight + dims, mask=dims < dim, other=0.0).to(tl.float32)
    weight_sum = tl.zeros((ROWS, BLOCK_DIM), tl.float32)
    for block in range(program, tl.cdiv(rows, ROWS), tl.num_programs(0)):
        row = tl.full((ROWS, 1), block, tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
        mask = (row < rows) & (dims < dim)
        x = tl.load(c + row * c_row + dims, mask=mask, other=0.0).to(tl.float32)
        gate = tl.load(z + row * z_row + dims * z_dim, mask=mask, other=0.0).to(tl.float32)
        grad = tl.load(dy + row * dy_row + dims * dy_dim, mask=mask, other=0.0).to(tl.float32)
        inverse = tl.rsqrt(tl.sum(x * x, axis=1, keep_dims=True) / dim + eps)
        normal = x * inverse
        opened = sigmoid(gate)
        silu = gate * opened
        along_normal = grad * normal
        weight_sum += along_normal * silu
        grad_gate = along_normal * scale * (opened + silu * (1.0 - opened))
        grad_normal = grad * scale * silu
        grad_x = inverse * (grad_normal - normal * tl.sum(grad_normal * normal, axis=1, keep_dims=True) / dim)
        tl.store(dz + row * dz_row + dims * dz_dim, grad_gate.to(dz.dtype.element_ty), mask=mask)
        tl.store(dc + row * dim + dims, grad_x.to(dc.dtype.element_ty), mask=mask)
    total = tl.sum(weight_sum, axis=0)
    dims = tl.arange(0, BLOCK_DIM)
    tl.store(dweight + program * dim + dims, total, mask=dims < dim)


@triton.jit
def scan_step(
    projection,
    bias,
    weight,
    start,
    context,
    new_context,
    y,
    dim,
    eps,
    p_row,
    c_row,
    new_row,
    STARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    dims = tl.arange(0, BLOCK)
    inside = dims < dim
    here = projection + row * p_row + dims
    value = tl.load(here, mask=inside, other=0.0).to(tl.float32)
    forget = tl.load(here + dim, mask=inside, other=0.0).to(tl.float32)
    forget += tl.load(bias + dims, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(here + 2 * dim, mask=inside, other=0.0).to(tl.float32)
    keep, share = sigmoid(forget), sigmoid(-forget)
    if STARTS:
        begins = tl.load(start + row).to(tl.int32) != 0
        keep, share = tl.where(begins, 0.0, keep), tl.where(begins, 1.0, share)
    c = keep * tl.load(context + row * c_row + dims, mask=inside, other=0.0) + share * value * sigmoid(value)
    tl.store(new_context + row * new_row + dims, c, mask=inside)
    read = c.to(y.dtype.element_ty).to(tl.float32)
    inverse = tl.rsqrt(tl.sum(read * read, 0) / dim + eps)
    scale = tl.load(weight + dims, mask=inside, other=0.0).to(tl.float32)
    tl.store(
        y + row * dim + dims,
        (read * inverse * scale * gate * sigmoid(gate)).to(y.dtype.element_ty),
        mask=inside,
    )
