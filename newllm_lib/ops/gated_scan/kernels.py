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

Sizes: x, y, c and their gradients (batch, time, dim); x and y are thirds of one projection and share its
strides, dx and dy share those of its gradient; c and dc are contiguous. bias (dim,); doc_starts, mask (batch,
time) bytes; initial and final state and their gradients (batch, dim) float32; products, ends and exits
(batch, chunks, dim) float32.
"""

from __future__ import annotations

import triton
import triton.language as tl

from newllm_lib.ops.common.triton_helpers import load_flags, load_rows, sigmoid, sigmoid_pair


@triton.jit
def _gates(
    b_x, b_bias, m_start, m_counts, GATED: tl.constexpr, HAS_STARTS: tl.constexpr, HAS_VALID: tl.constexpr
):
    """(a, share): how much of the state is kept, how much is written; an uncounted step only keeps."""
    if GATED:
        b_keep, b_share = sigmoid_pair(b_x + b_bias)
        if HAS_STARTS:
            b_keep = tl.where(m_start, 0.0, b_keep)
            b_share = tl.where(m_start, 1.0, b_share)
    else:
        b_keep = b_x
        b_share = tl.full(b_x.shape, 1.0, tl.float32)
    if HAS_VALID:
        b_keep = tl.where(m_counts, b_keep, 1.0)
        b_share = tl.where(m_counts, b_share, 0.0)
    return b_keep, b_share


@triton.jit
def _entry_state(outer, exits, i_b, dim, o_d, m_d, i_neighbour, chunks, HAS_OUTER: tl.constexpr):
    """What enters a chunk: the neighbouring chunk's exit; at the sequence's edge the outer state or zeros."""
    b_state = tl.zeros(o_d.shape, tl.float32)
    if (i_neighbour >= 0) & (i_neighbour < chunks):
        b_state = tl.load(exits + (i_b * chunks + i_neighbour) * dim + o_d, mask=m_d, other=0.0)
    elif HAS_OUTER:
        b_state = tl.load(outer + i_b * dim + o_d, mask=m_d, other=0.0)
    return b_state


@triton.jit
def _forward_steps(
    b_state,
    b_kept,
    p_x,
    p_y,
    p_c,
    b_bias,
    doc_starts,
    mask,
    o_flag,
    dim,
    o_d,
    m_d,
    stride_t,
    GATED: tl.constexpr,
    HAS_STARTS: tl.constexpr,
    HAS_VALID: tl.constexpr,
    SUMMARY: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """UNROLL steps from the rows given, `o_flag` among the flags; the state and the product of a after."""
    b_x = load_rows(p_x, stride_t, o_d, m_d, UNROLL, 1)
    b_y = load_rows(p_y, stride_t, o_d, m_d, UNROLL, 1)
    m_start = load_flags(doc_starts, o_flag, HAS_STARTS, UNROLL, 1)
    m_counts = load_flags(mask, o_flag, HAS_VALID, UNROLL, 1)
    for u in tl.static_range(UNROLL):
        b_a, b_share = _gates(b_x[u], b_bias, m_start[u], m_counts[u], GATED, HAS_STARTS, HAS_VALID)
        b_written = b_y[u]
        if GATED:
            b_written = b_written * sigmoid(b_written)
        b_state = b_a * b_state + b_share * b_written
        if SUMMARY:
            b_kept = b_kept * b_a
        else:
            tl.store(p_c + u * dim + o_d, b_state.to(p_c.dtype.element_ty), mask=m_d)
    return b_state, b_kept


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
    stride_b,
    stride_t,
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
    i_b = (tl.program_id(0) // dim_blocks).to(tl.int64)
    i_c = tl.program_id(1)
    o_d = (tl.program_id(0) % dim_blocks) * BLOCK_DIM + tl.arange(0, BLOCK_DIM)
    m_d = o_d < dim
    first = i_c * chunk_length
    last = tl.minimum(first + chunk_length, time)
    p_x = x + i_b * stride_b + first.to(tl.int64) * stride_t
    p_y = y + i_b * stride_b + first.to(tl.int64) * stride_t
    p_c = c + (i_b * time + first) * dim
    b_bias = tl.zeros((BLOCK_DIM,), tl.float32)
    if HAS_BIAS:
        b_bias = tl.load(bias + o_d, mask=m_d, other=0.0).to(tl.float32)
    b_state = tl.zeros((BLOCK_DIM,), tl.float32)
    if not SUMMARY:
        b_state = _entry_state(initial, exits, i_b, dim, o_d, m_d, i_c - 1, chunks, HAS_INITIAL)
    b_kept = tl.full((BLOCK_DIM,), 1.0, tl.float32)
    whole = last - (last - first) % UNROLL
    for t in range(first, whole, UNROLL):
        b_state, b_kept = _forward_steps(
            b_state,
            b_kept,
            p_x,
            p_y,
            p_c,
            b_bias,
            doc_starts,
            mask,
            i_b * time + t,
            dim,
            o_d,
            m_d,
            stride_t,
            GATED,
            HAS_STARTS,
            HAS_VALID,
            SUMMARY,
            UNROLL,
        )
        p_x += UNROLL * stride_t
        p_y += UNROLL * stride_t
        p_c += UNROLL * dim
    for t in range(whole, last):
        b_state, b_kept = _forward_steps(
            b_state,
            b_kept,
            p_x,
            p_y,
            p_c,
            b_bias,
            doc_starts,
            mask,
            i_b * time + t,
            dim,
            o_d,
            m_d,
            stride_t,
            GATED,
            HAS_STARTS,
            HAS_VALID,
            SUMMARY,
            1,
        )
        p_x += stride_t
        p_y += stride_t
        p_c += dim
    if SUMMARY:
        tl.store(product + (i_b * chunks + i_c) * dim + o_d, b_kept, mask=m_d)
        tl.store(final + (i_b * chunks + i_c) * dim + o_d, b_state, mask=m_d)
    elif i_c == chunks - 1:
        tl.store(final + i_b * dim + o_d, b_state, mask=m_d)


@triton.jit
def _summary_steps(
    b_carried,
    b_kept,
    p_x,
    p_dc,
    b_bias,
    doc_starts,
    mask,
    o_flag,
    dim,
    o_d,
    m_d,
    stride_t,
    HAS_STARTS: tl.constexpr,
    HAS_VALID: tl.constexpr,
    HAS_DC: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """UNROLL steps backward from the rows given; the gradient carried and the product of a after them."""
    b_x = load_rows(p_x, stride_t, o_d, m_d, UNROLL, -1)
    m_start = load_flags(doc_starts, o_flag, HAS_STARTS, UNROLL, -1)
    m_counts = load_flags(mask, o_flag, HAS_VALID, UNROLL, -1)
    if HAS_DC:
        b_dc = load_rows(p_dc, dim, o_d, m_d, UNROLL, -1)
    for u in tl.static_range(UNROLL):
        b_a, b_share = _gates(b_x[u], b_bias, m_start[u], m_counts[u], True, HAS_STARTS, HAS_VALID)
        if HAS_DC:
            b_carried += b_dc[u]
        b_carried = b_a * b_carried
        b_kept = b_kept * b_a
    return b_carried, b_kept


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
    stride_b,
    stride_t,
    HAS_BIAS: tl.constexpr,
    HAS_STARTS: tl.constexpr,
    HAS_VALID: tl.constexpr,
    HAS_DC: tl.constexpr,
    UNROLL: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    """What a chunk does to a gradient that enters it from the later chunks: exit = product * entry + end."""
    dim_blocks = tl.cdiv(dim, BLOCK_DIM)
    i_b = (tl.program_id(0) // dim_blocks).to(tl.int64)
    i_c = tl.program_id(1)
    o_d = (tl.program_id(0) % dim_blocks) * BLOCK_DIM + tl.arange(0, BLOCK_DIM)
    m_d = o_d < dim
    first = i_c * chunk_length
    last = tl.minimum(first + chunk_length, time)
    p_x = x + i_b * stride_b + (last - 1).to(tl.int64) * stride_t
    p_dc = dc + (i_b * time + last - 1) * dim
    b_bias = tl.zeros((BLOCK_DIM,), tl.float32)
    if HAS_BIAS:
        b_bias = tl.load(bias + o_d, mask=m_d, other=0.0).to(tl.float32)
    b_carried = tl.zeros((BLOCK_DIM,), tl.float32)
    b_kept = tl.full((BLOCK_DIM,), 1.0, tl.float32)
    whole = (last - first) // UNROLL * UNROLL
    for back in range(0, whole, UNROLL):
        b_carried, b_kept = _summary_steps(
            b_carried,
            b_kept,
            p_x,
            p_dc,
            b_bias,
            doc_starts,
            mask,
            i_b * time + last - 1 - back,
            dim,
            o_d,
            m_d,
            stride_t,
            HAS_STARTS,
            HAS_VALID,
            HAS_DC,
            UNROLL,
        )
        p_x -= UNROLL * stride_t
        p_dc -= UNROLL * dim
    for back in range(whole, last - first):
        b_carried, b_kept = _summary_steps(
            b_carried,
            b_kept,
            p_x,
            p_dc,
            b_bias,
            doc_starts,
            mask,
            i_b * time + last - 1 - back,
            dim,
            o_d,
            m_d,
            stride_t,
            HAS_STARTS,
            HAS_VALID,
            HAS_DC,
            1,
        )
        p_x -= stride_t
        p_dc -= dim
    tl.store(product + (i_b * chunks + i_c) * dim + o_d, b_kept, mask=m_d)
    tl.store(end + (i_b * chunks + i_c) * dim + o_d, b_carried, mask=m_d)


@triton.jit
def _contexts_before(p_c, b_initial, t, dim, o_d, UNROLL: tl.constexpr):
    """c_{t-1}, c_{t-2}, ... in float32 (c_row: the row of c_t); before the first step, the initial state."""
    b_c = ()
    for u in tl.static_range(UNROLL):
        # (The mask in this form because Triton's interpreter can't AND a vector with a scalar bool.)
        m_stored = o_d < tl.where(t > u, dim, 0)
        b_before = tl.load(p_c - (u + 1) * dim + o_d, mask=m_stored, other=b_initial)
        b_c = b_c + (b_before.to(tl.float32),)
    return b_c


@triton.jit
def _backward_steps(
    b_carried,
    b_dbias,
    p_x,
    p_y,
    p_c,
    p_dc,
    p_dx,
    p_dy,
    b_initial,
    b_bias,
    doc_starts,
    mask,
    o_flag,
    t,
    dim,
    o_d,
    m_d,
    stride_t,
    dstride_t,
    HAS_STARTS: tl.constexpr,
    HAS_VALID: tl.constexpr,
    HAS_DC: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """Steps t, t - 1, ... (UNROLL of them) from t's rows; the carried gradient and the sum of dx after."""
    b_x = load_rows(p_x, stride_t, o_d, m_d, UNROLL, -1)
    b_before = _contexts_before(p_c, b_initial, t, dim, o_d, UNROLL)
    m_start = load_flags(doc_starts, o_flag, HAS_STARTS, UNROLL, -1)
    m_counts = load_flags(mask, o_flag, HAS_VALID, UNROLL, -1)
    b_y = load_rows(p_y, stride_t, o_d, m_d, UNROLL, -1)
    if HAS_DC:
        b_dc = load_rows(p_dc, dim, o_d, m_d, UNROLL, -1)
    for u in tl.static_range(UNROLL):
        b_a, b_share = _gates(b_x[u], b_bias, m_start[u], m_counts[u], True, HAS_STARTS, HAS_VALID)
        if HAS_DC:
            b_carried += b_dc[u]
        b_gate = sigmoid(b_y[u])
        b_silu = b_y[u] * b_gate
        # share = 1 - a. a * share is sigmoid's derivative, 0 at a start and in padding.
        b_dx = (b_carried * b_before[u] - b_carried * b_silu) * (b_a * b_share)
        b_dy = b_share * b_carried * (b_gate + b_silu * (1.0 - b_gate))
        b_dbias += b_dx
        tl.store(p_dx - u * dstride_t + o_d, b_dx.to(p_dx.dtype.element_ty), mask=m_d)
        tl.store(p_dy - u * dstride_t + o_d, b_dy.to(p_dy.dtype.element_ty), mask=m_d)
        b_carried = b_a * b_carried
    return b_carried, b_dbias


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
    stride_b,
    stride_t,
    dstride_b,
    dstride_t,
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
    i_b = (tl.program_id(0) // dim_blocks).to(tl.int64)
    i_c = tl.program_id(1)
    o_d = (tl.program_id(0) % dim_blocks) * BLOCK_DIM + tl.arange(0, BLOCK_DIM)
    m_d = o_d < dim
    first = i_c * chunk_length
    last = tl.minimum(first + chunk_length, time)
    end = (last - 1).to(tl.int64)
    p_x = x + i_b * stride_b + end * stride_t
    p_y = y + i_b * stride_b + end * stride_t
    p_c = c + (i_b * time + end) * dim
    p_dc = dc + (i_b * time + end) * dim
    p_dx = dx + i_b * dstride_b + end * dstride_t
    p_dy = dy + i_b * dstride_b + end * dstride_t
    b_bias = tl.zeros((BLOCK_DIM,), tl.float32)
    if HAS_BIAS:
        b_bias = tl.load(bias + o_d, mask=m_d, other=0.0).to(tl.float32)
    b_initial = tl.zeros((BLOCK_DIM,), tl.float32)
    if HAS_INITIAL:
        b_initial = tl.load(initial + i_b * dim + o_d, mask=m_d, other=0.0)
    b_initial = b_initial.to(c.dtype.element_ty)
    b_carried = _entry_state(dfinal, exits, i_b, dim, o_d, m_d, i_c + 1, chunks, HAS_DFINAL)
    b_dbias = tl.zeros((BLOCK_DIM,), tl.float32)
    whole = (last - first) // UNROLL * UNROLL
    for back in range(0, whole, UNROLL):
        b_carried, b_dbias = _backward_steps(
            b_carried,
            b_dbias,
            p_x,
            p_y,
            p_c,
            p_dc,
            p_dx,
            p_dy,
            b_initial,
            b_bias,
            doc_starts,
            mask,
            i_b * time + last - 1 - back,
            last - 1 - back,
            dim,
            o_d,
            m_d,
            stride_t,
            dstride_t,
            HAS_STARTS,
            HAS_VALID,
            HAS_DC,
            UNROLL,
        )
        p_x -= UNROLL * stride_t
        p_y -= UNROLL * stride_t
        p_c -= UNROLL * dim
        p_dc -= UNROLL * dim
        p_dx -= UNROLL * dstride_t
        p_dy -= UNROLL * dstride_t
    for back in range(whole, last - first):
        b_carried, b_dbias = _backward_steps(
            b_carried,
            b_dbias,
            p_x,
            p_y,
            p_c,
            p_dc,
            p_dx,
            p_dy,
            b_initial,
            b_bias,
            doc_starts,
            mask,
            i_b * time + last - 1 - back,
            last - 1 - back,
            dim,
            o_d,
            m_d,
            stride_t,
            dstride_t,
            HAS_STARTS,
            HAS_VALID,
            HAS_DC,
            1,
        )
        p_x -= stride_t
        p_y -= stride_t
        p_c -= dim
        p_dc -= dim
        p_dx -= dstride_t
        p_dy -= dstride_t
    if HAS_BIAS:
        tl.store(dbias + (i_b * chunks + i_c) * dim + o_d, b_dbias, mask=m_d)
    if i_c == 0:
        tl.store(dinitial + i_b * dim + o_d, b_carried, mask=m_d)


@triton.jit(do_not_specialize=["rows"])
def readout_forward(c, z, weight, y, rows, dim, eps, z_row, ROWS: tl.constexpr, BLOCK_DIM: tl.constexpr):
    o_r = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    o_d = tl.arange(0, BLOCK_DIM)[None, :]
    m_x = (o_r < rows) & (o_d < dim)
    b_c = tl.load(c + o_r * dim + o_d, mask=m_x, other=0.0).to(tl.float32)
    b_z = tl.load(z + o_r * z_row + o_d, mask=m_x, other=0.0).to(tl.float32)
    b_w = tl.load(weight + o_d, mask=o_d < dim, other=0.0).to(tl.float32)
    b_inv = tl.rsqrt(tl.sum(b_c * b_c, axis=1, keep_dims=True) / dim + eps)
    b_y = (b_c * b_inv) * b_w * (b_z * sigmoid(b_z))
    tl.store(y + o_r * dim + o_d, b_y.to(y.dtype.element_ty), mask=m_x)


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
    z_row,
    dz_row,
    ROWS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    """dweight (programs, dim) float32: each program's share of the weight's gradient."""
    i_p = tl.program_id(0)
    o_d = tl.arange(0, BLOCK_DIM)[None, :]
    b_w = tl.load(weight + o_d, mask=o_d < dim, other=0.0).to(tl.float32)
    b_dw = tl.zeros((ROWS, BLOCK_DIM), tl.float32)
    for i_block in range(i_p, tl.cdiv(rows, ROWS), tl.num_programs(0)):
        o_r = tl.full((ROWS, 1), i_block, tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
        m_x = (o_r < rows) & (o_d < dim)
        b_c = tl.load(c + o_r * dim + o_d, mask=m_x, other=0.0).to(tl.float32)
        b_z = tl.load(z + o_r * z_row + o_d, mask=m_x, other=0.0).to(tl.float32)
        b_dy = tl.load(dy + o_r * dim + o_d, mask=m_x, other=0.0).to(tl.float32)
        b_inv = tl.rsqrt(tl.sum(b_c * b_c, axis=1, keep_dims=True) / dim + eps)
        b_n = b_c * b_inv
        b_opened = sigmoid(b_z)
        b_silu = b_z * b_opened
        b_along = b_dy * b_n
        b_dw += b_along * b_silu
        b_dz = b_along * b_w * (b_opened + b_silu * (1.0 - b_opened))
        b_dn = b_dy * b_w * b_silu
        b_dc = b_inv * (b_dn - b_n * tl.sum(b_dn * b_n, axis=1, keep_dims=True) / dim)
        tl.store(dz + o_r * dz_row + o_d, b_dz.to(dz.dtype.element_ty), mask=m_x)
        tl.store(dc + o_r * dim + o_d, b_dc.to(dc.dtype.element_ty), mask=m_x)
    b_total = tl.sum(b_dw, axis=0)
    o_d = tl.arange(0, BLOCK_DIM)
    tl.store(dweight + i_p * dim + o_d, b_total, mask=o_d < dim)


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
    i_b = tl.program_id(0).to(tl.int64)
    o_d = tl.arange(0, BLOCK)
    m_d = o_d < dim
    p_in = projection + i_b * p_row + o_d
    b_x = tl.load(p_in, mask=m_d, other=0.0).to(tl.float32)
    b_f = tl.load(p_in + dim, mask=m_d, other=0.0).to(tl.float32)
    b_f += tl.load(bias + o_d, mask=m_d, other=0.0).to(tl.float32)
    b_z = tl.load(p_in + 2 * dim, mask=m_d, other=0.0).to(tl.float32)
    b_keep, b_share = sigmoid(b_f), sigmoid(-b_f)
    if STARTS:
        m_start = tl.load(start + i_b).to(tl.int32) != 0
        b_keep, b_share = tl.where(m_start, 0.0, b_keep), tl.where(m_start, 1.0, b_share)
    b_c = b_keep * tl.load(context + i_b * c_row + o_d, mask=m_d, other=0.0) + b_share * b_x * sigmoid(b_x)
    tl.store(new_context + i_b * new_row + o_d, b_c, mask=m_d)
    b_read = b_c.to(y.dtype.element_ty).to(tl.float32)
    b_inv = tl.rsqrt(tl.sum(b_read * b_read, 0) / dim + eps)
    b_w = tl.load(weight + o_d, mask=m_d, other=0.0).to(tl.float32)
    tl.store(
        y + i_b * dim + o_d,
        (b_read * b_inv * b_w * b_z * sigmoid(b_z)).to(y.dtype.element_ty),
        mask=m_d,
    )
