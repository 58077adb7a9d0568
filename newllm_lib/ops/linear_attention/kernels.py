"""Triton kernels of linear attention: a chunk of a head a program, and a walk over the chunks between.

The notation is that of `chunked`. A head's states lie in a row, (chunks + 1, dim + 1, features) float32: slot
n is the sum of v k' before chunk n, its last line the sum of k. The forward pass writes what chunk n adds
into slot n + 1, `walk` sums that up, and `read` uses it. The backward pass does the same from the end: slot n
is the gradient of the state before chunk n.

With N_i and D_i the two sums of token i, dN = dout / D and dD = -(dout·out) / D. The gradient of a token's
log decay is the sum of dw w over all pairs on either side of it: of those that reach beyond the chunk it is
<state, its gradient> at the chunk's end, of those within the chunk the sum of q·dq - k·dk from there on. So
no sum runs over more than a chunk, however long the text.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _load(ptr, strides_b, strides_h, strides_t, i_b, i_h, o_t, o_c, time, width, dtype: tl.constexpr):
    """A (rows, columns) tile of (batch, heads, time, width), zeros outside."""
    p_x = (
        ptr
        + i_b.to(tl.int64) * strides_b
        + i_h * strides_h
        + o_t[:, None].to(tl.int64) * strides_t
        + o_c[None, :]
    )
    return tl.load(p_x, mask=(o_t[:, None] < time) & (o_c[None, :] < width), other=0.0).to(dtype)


@triton.jit
def _decays(log_decay, first, i_b, i_bh, i_c, o_t, time, HAS_FIRST: tl.constexpr, CHUNK: tl.constexpr):
    """The chunk's running total of log decays; each token's first visible position; shares of the past that
    reach each token (before), of each token at the chunk's end (leaving), of the past there (kept)."""
    m_t = o_t < time
    b_g = tl.load(log_decay + i_bh.to(tl.int64) * time + o_t, mask=m_t, other=0.0)
    b_total, b_end = tl.cumsum(b_g, 0), tl.sum(b_g, 0)
    b_before, b_leaving, b_kept = tl.exp(b_total), tl.exp(b_end - b_total), tl.exp(b_end)
    b_first = tl.zeros_like(o_t)
    if HAS_FIRST:
        begin = i_c * CHUNK
        b_first = tl.load(first + i_b.to(tl.int64) * time + o_t, mask=m_t, other=0)
        i_last = tl.load(first + i_b.to(tl.int64) * time + tl.minimum(begin + CHUNK, time) - 1)
        b_before = tl.where(b_first < begin, b_before, 0.0)
        b_leaving = tl.where(o_t >= i_last, b_leaving, 0.0)
        b_kept = tl.where(i_last < begin, b_kept, 0.0)
    return b_total, b_first, b_before, b_leaving, b_kept


@triton.jit
def _weights(b_total, b_first, o_t, HAS_FIRST: tl.constexpr):
    """(chunk, chunk): what each token still has of each one before it in its document."""
    m_a = o_t[None, :] <= o_t[:, None]
    if HAS_FIRST:
        m_a = m_a & (o_t[None, :] >= b_first[:, None])
    return tl.where(m_a, tl.exp(b_total[:, None] - b_total[None, :]), 0.0)


@triton.jit
def _slot(states, i_bh, i_slot, chunks, dim, features, o_d, o_f):
    """Where the (d, f) tile of a slot's sum of v k' lies, its mask, and where the sum of k does."""
    p_slot = states + (i_bh.to(tl.int64) * (chunks + 1) + i_slot) * (dim + 1) * features
    return (
        p_slot + o_d[:, None] * features + o_f[None, :],
        (o_d[:, None] < dim) & (o_f[None, :] < features),
        p_slot + dim * features + o_f,
    )


@triton.jit
def collect(
    k,
    v,
    log_decay,
    first,
    states,
    keeps,
    heads,
    time,
    chunks,
    features,
    dim,
    kb,
    kh,
    kt,
    vb,
    vh,
    vt,
    HAS_FIRST: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """What each chunk adds to the state, into the slot behind it; what is kept of the state, into keeps."""
    i_c, i_bh = tl.program_id(0), tl.program_id(1)
    i_b, i_h = i_bh // heads, i_bh % heads
    o_t, o_f, o_d = i_c * CHUNK + tl.arange(0, CHUNK), tl.arange(0, BLOCK_F), tl.arange(0, BLOCK_D)
    dtype = v.dtype.element_ty
    _, _, _, b_leaving, b_kept = _decays(log_decay, first, i_b, i_bh, i_c, o_t, time, HAS_FIRST, CHUNK)
    b_k = _load(k, kb, kh, kt, i_b, i_h, o_t, o_f, time, features, dtype) * b_leaving[:, None]
    b_v = _load(v, vb, vh, vt, i_b, i_h, o_t, o_d, time, dim, dtype)
    p_s, m_s, p_z = _slot(states, i_bh, i_c + 1, chunks, dim, features, o_d, o_f)
    tl.store(p_s, tl.dot(tl.trans(b_v), b_k.to(dtype), input_precision=PRECISION), mask=m_s)
    tl.store(p_z, tl.sum(b_k, 0), mask=o_f < features)
    tl.store(keeps + i_bh * chunks + i_c, b_kept)


@triton.jit
def walk(states, keeps, chunks, size, REVERSE: tl.constexpr, BLOCK: tl.constexpr):
    """state <- kept state + added, from the first slot to the last, or from the last to the first."""
    i_bh = tl.program_id(1)
    o_s = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m_s = o_s < size
    p_states = states + i_bh.to(tl.int64) * (chunks + 1) * size + o_s
    if REVERSE:
        b_s = tl.load(p_states + chunks * size, mask=m_s)
    else:
        b_s = tl.load(p_states, mask=m_s)
    for step in range(chunks):
        if REVERSE:
            i_c = chunks - 1 - step
            i_slot = i_c
        else:
            i_c = step
            i_slot = i_c + 1
        p_s = p_states + i_slot * size
        b_s = tl.load(keeps + i_bh * chunks + i_c) * b_s + tl.load(p_s, mask=m_s)
        tl.store(p_s, b_s, mask=m_s)


@triton.jit
def read(
    q,
    k,
    v,
    log_decay,
    first,
    states,
    out,
    counts,
    heads,
    time,
    chunks,
    features,
    dim,
    qb,
    qh,
    qt,
    kb,
    kh,
    kt,
    vb,
    vh,
    vt,
    ob,
    oh,
    ot,
    HAS_FIRST: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out and the sums of weights, from the chunk itself and the state before it."""
    i_c, i_bh = tl.program_id(0), tl.program_id(1)
    i_b, i_h = i_bh // heads, i_bh % heads
    o_t, o_f, o_d = i_c * CHUNK + tl.arange(0, CHUNK), tl.arange(0, BLOCK_F), tl.arange(0, BLOCK_D)
    dtype = v.dtype.element_ty
    b_total, b_first, b_before, _, _ = _decays(log_decay, first, i_b, i_bh, i_c, o_t, time, HAS_FIRST, CHUNK)
    b_q = _load(q, qb, qh, qt, i_b, i_h, o_t, o_f, time, features, dtype)
    b_k = _load(k, kb, kh, kt, i_b, i_h, o_t, o_f, time, features, dtype)
    b_v = _load(v, vb, vh, vt, i_b, i_h, o_t, o_d, time, dim, dtype)
    b_a = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION) * _weights(b_total, b_first, o_t, HAS_FIRST)
    p_s, m_s, p_z = _slot(states, i_bh, i_c, chunks, dim, features, o_d, o_f)
    b_s, b_z = tl.load(p_s, mask=m_s, other=0.0), tl.load(p_z, mask=o_f < features, other=0.0)
    b_o = tl.dot(b_q, tl.trans(b_s).to(dtype), input_precision=PRECISION) * b_before[:, None]
    b_o = tl.dot(b_a.to(dtype), b_v, b_o, input_precision=PRECISION)
    b_count = tl.sum(b_a, 1) + b_before * tl.sum(b_q.to(tl.float32) * b_z[None, :], 1)
    b_count = tl.maximum(b_count, 1e-30)
    p_s = out + i_b.to(tl.int64) * ob + i_h * oh + o_t[:, None].to(tl.int64) * ot + o_d[None, :]
    tl.store(p_s, (b_o / b_count[:, None]).to(dtype), mask=(o_t[:, None] < time) & (o_d[None, :] < dim))
    tl.store(counts + i_bh.to(tl.int64) * time + o_t, b_count, mask=o_t < time)


@triton.jit
def _upstream(dout, out, counts, ob, oh, ot, i_b, i_h, i_bh, o_t, o_d, time, dim):
    """dN (chunk, dim) and dD (chunk,), float32."""
    b_count = tl.load(counts + i_bh.to(tl.int64) * time + o_t, mask=o_t < time, other=1.0)
    b_do = _load(dout, ob, oh, ot, i_b, i_h, o_t, o_d, time, dim, tl.float32)
    b_o = _load(out, ob, oh, ot, i_b, i_h, o_t, o_d, time, dim, tl.float32)
    b_inv = tl.where(b_count > 1e-30, 1 / b_count, 0.0)  # a token that saw nothing learns nothing
    return b_do * b_inv[:, None], -tl.sum(b_do * b_o, 1) * b_inv


@triton.jit
def collect_gradients(
    q,
    log_decay,
    first,
    out,
    dout,
    counts,
    dstates,
    heads,
    time,
    chunks,
    features,
    dim,
    qb,
    qh,
    qt,
    ob,
    oh,
    ot,
    HAS_FIRST: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """What each chunk's tokens ask of the state before it, into its slot."""
    i_c, i_bh = tl.program_id(0), tl.program_id(1)
    i_b, i_h = i_bh // heads, i_bh % heads
    o_t, o_f, o_d = i_c * CHUNK + tl.arange(0, CHUNK), tl.arange(0, BLOCK_F), tl.arange(0, BLOCK_D)
    dtype = out.dtype.element_ty
    _, _, b_before, _, _ = _decays(log_decay, first, i_b, i_bh, i_c, o_t, time, HAS_FIRST, CHUNK)
    b_q = _load(q, qb, qh, qt, i_b, i_h, o_t, o_f, time, features, dtype)
    b_dn, b_dd = _upstream(dout, out, counts, ob, oh, ot, i_b, i_h, i_bh, o_t, o_d, time, dim)
    p_s, m_s, p_z = _slot(dstates, i_bh, i_c, chunks, dim, features, o_d, o_f)
    tl.store(
        p_s,
        tl.dot(tl.trans((b_dn * b_before[:, None]).to(dtype)), b_q, input_precision=PRECISION),
        mask=m_s,
    )
    tl.store(p_z, tl.sum((b_before * b_dd)[:, None] * b_q, 0), mask=o_f < features)


@triton.jit
def gradients(
    q,
    k,
    v,
    log_decay,
    first,
    states,
    dstates,
    out,
    dout,
    counts,
    dq,
    dk,
    dv,
    dlog_decay,
    heads,
    time,
    chunks,
    features,
    dim,
    qb,
    qh,
    qt,
    kb,
    kh,
    kt,
    vb,
    vh,
    vt,
    ob,
    oh,
    ot,
    HAS_FIRST: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradients of a chunk's q, k, v and log decays."""
    i_c, i_bh = tl.program_id(0), tl.program_id(1)
    i_b, i_h = i_bh // heads, i_bh % heads
    o_t, o_f, o_d = i_c * CHUNK + tl.arange(0, CHUNK), tl.arange(0, BLOCK_F), tl.arange(0, BLOCK_D)
    dtype = v.dtype.element_ty
    b_total, b_first, b_before, b_leaving, _ = _decays(
        log_decay, first, i_b, i_bh, i_c, o_t, time, HAS_FIRST, CHUNK
    )
    b_q = _load(q, qb, qh, qt, i_b, i_h, o_t, o_f, time, features, dtype)
    b_k = _load(k, kb, kh, kt, i_b, i_h, o_t, o_f, time, features, dtype)
    b_v = _load(v, vb, vh, vt, i_b, i_h, o_t, o_d, time, dim, dtype)
    b_dn, b_dd = _upstream(dout, out, counts, ob, oh, ot, i_b, i_h, i_bh, o_t, o_d, time, dim)
    b_dn_low, b_decay = b_dn.to(dtype), _weights(b_total, b_first, o_t, HAS_FIRST)

    b_da = (tl.dot(b_dn_low, tl.trans(b_v), input_precision=PRECISION) + b_dd[:, None]) * b_decay
    b_dq = tl.dot(b_da.to(dtype), b_k, input_precision=PRECISION)
    b_dk = tl.dot(tl.trans(b_da).to(dtype), b_q, input_precision=PRECISION)
    b_a = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION) * b_decay
    b_dv = tl.dot(tl.trans(b_a).to(dtype), b_dn_low, input_precision=PRECISION)

    p_s, m_s, p_z = _slot(states, i_bh, i_c, chunks, dim, features, o_d, o_f)
    b_s, b_z = tl.load(p_s, mask=m_s, other=0.0), tl.load(p_z, mask=o_f < features, other=0.0)
    b_carried = tl.dot(b_dn_low, b_s.to(dtype), input_precision=PRECISION) + b_dd[:, None] * b_z[None, :]
    b_dq += b_before[:, None] * b_carried

    p_s, m_s, p_z = _slot(dstates, i_bh, i_c + 1, chunks, dim, features, o_d, o_f)
    b_ds, b_dz = tl.load(p_s, mask=m_s, other=0.0), tl.load(p_z, mask=o_f < features, other=0.0)
    b_ds_low = b_ds.to(dtype)
    b_dk += b_leaving[:, None] * (tl.dot(b_v, b_ds_low, input_precision=PRECISION) + b_dz[None, :])
    b_dv += b_leaving[:, None] * tl.dot(b_k, tl.trans(b_ds_low), input_precision=PRECISION)

    p_s, m_s, p_z = _slot(states, i_bh, i_c + 1, chunks, dim, features, o_d, o_f)
    b_s_after, b_z_after = tl.load(p_s, mask=m_s, other=0.0), tl.load(p_z, mask=o_f < features, other=0.0)
    b_beyond = tl.sum(tl.sum(b_s_after * b_ds, 1), 0) + tl.sum(b_z_after * b_dz, 0)
    b_own = tl.sum(b_q * b_dq, 1) - tl.sum(b_k * b_dk, 1)
    b_dg = b_beyond + tl.sum(b_own, 0) - tl.cumsum(b_own, 0) + b_own
    tl.store(dlog_decay + i_bh.to(tl.int64) * time + o_t, b_dg, mask=o_t < time)

    m_f, m_d = (
        (o_t[:, None] < time) & (o_f[None, :] < features),
        (o_t[:, None] < time) & (o_d[None, :] < dim),
    )
    o_row = i_bh.to(tl.int64) * time + o_t[:, None]
    tl.store(dq + o_row * features + o_f[None, :], b_dq.to(dtype), mask=m_f)
    tl.store(dk + o_row * features + o_f[None, :], b_dk.to(dtype), mask=m_f)
    tl.store(dv + o_row * dim + o_d[None, :], b_dv.to(dtype), mask=m_d)


# ---- the feature map: a tile of vectors of one head at a time, nothing kept but the features. The notation
# is `features`': p = u·ω, g = tanh(r|u|)/|u| with r = 2√c, y = g p = κ·ω, φ = softmax(-s log(1 - y)). The
# backward pass computes them again from u; what all vectors of a head ask of its boundary points is summed in
# registers, a part for each program.


_LIMIT = tl.constexpr(1 - 2.0**-20)


@triton.jit
def _vectors(u, ub, uh, ut, i_b, i_h, o_t, o_d, time, dim):
    p_u = u + i_b.to(tl.int64) * ub + i_h * uh + o_t[:, None].to(tl.int64) * ut + o_d[None, :]
    return tl.load(p_u, mask=(o_t[:, None] < time) & (o_d[None, :] < dim), other=0.0).to(tl.float32)


@triton.jit
def _stretch(b_u, root):
    """|u|, 1 - tanh²(r|u|), g."""
    b_norm = tl.sqrt(tl.sum(b_u * b_u, 1))
    b_decayed = tl.exp(-2 * root * b_norm)
    b_tanh = (1 - b_decayed) / (1 + b_decayed)
    return (
        b_norm,
        4 * b_decayed / ((1 + b_decayed) * (1 + b_decayed)),
        tl.where(b_norm > 1e-6, b_tanh / tl.maximum(b_norm, 1e-6), root),
    )


@triton.jit
def _features(b_u, b_points, b_stretch, sharpness, o_f, features, PRECISION: tl.constexpr):
    """p, 1 - y (never 0), its logarithm and φ."""
    b_p = tl.dot(b_u, tl.trans(b_points), input_precision=PRECISION)
    b_left = 1 - tl.minimum(b_stretch[:, None] * b_p, _LIMIT)
    b_log = tl.log(b_left)
    b_scores = tl.where((o_f < features)[None, :], -sharpness * b_log, float("-inf"))
    b_powers = tl.exp(b_scores - tl.max(b_scores, 1)[:, None])
    return b_p, b_left, b_log, b_powers / tl.sum(b_powers, 1)[:, None]


@triton.jit
def features_forward(
    u,
    boundary,
    sharpness,
    root,
    out,
    heads,
    time,
    features,
    dim,
    ub,
    uh,
    ut,
    BLOCK_T: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """(batch, heads, time, features), contiguous, in out's dtype."""
    i_bh = tl.program_id(1)
    i_b, i_h = i_bh // heads, i_bh % heads
    o_t, o_f, o_d = (
        tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T),
        tl.arange(0, BLOCK_F),
        tl.arange(0, BLOCK_D),
    )
    b_u = _vectors(u, ub, uh, ut, i_b, i_h, o_t, o_d, time, dim)
    b_points = tl.load(
        boundary + (i_h * features + o_f[:, None]) * dim + o_d[None, :],
        mask=(o_f[:, None] < features) & (o_d[None, :] < dim),
        other=0.0,
    )
    _, _, b_stretch = _stretch(b_u, tl.load(root + i_h))
    _, _, _, b_phi = _features(b_u, b_points, b_stretch, tl.load(sharpness + i_h), o_f, features, PRECISION)
    p_out = out + (i_bh.to(tl.int64) * time + o_t[:, None]) * features + o_f[None, :]
    tl.store(p_out, b_phi.to(out.dtype.element_ty), mask=(o_t[:, None] < time) & (o_f[None, :] < features))


@triton.jit
def features_backward(
    u,
    boundary,
    sharpness,
    root,
    dout,
    du,
    dboundary,
    dsharpness,
    droot,
    batches,
    heads,
    time,
    features,
    dim,
    parts,
    ub,
    uh,
    ut,
    gb,
    gh,
    gt,
    db,
    dh,
    dt,
    BLOCK_T: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """du; parts of the others: dboundary (heads, parts, features, dim), dsharpness, droot (heads, parts)."""
    i_p, i_h = tl.program_id(0), tl.program_id(1)
    o_f, o_d = tl.arange(0, BLOCK_F), tl.arange(0, BLOCK_D)
    m_points = (o_f[:, None] < features) & (o_d[None, :] < dim)
    b_points = tl.load(
        boundary + (i_h * features + o_f[:, None]) * dim + o_d[None, :], mask=m_points, other=0.0
    )
    b_sharp, b_root = tl.load(sharpness + i_h), tl.load(root + i_h)
    b_dpoints = tl.zeros([BLOCK_F, BLOCK_D], dtype=tl.float32)
    b_dsharp = tl.zeros([BLOCK_T], dtype=tl.float32)
    b_droot = tl.zeros([BLOCK_T], dtype=tl.float32)
    tiles = tl.cdiv(time, BLOCK_T)
    for i_tile in range(i_p, tiles * batches, parts):
        i_b = i_tile // tiles
        o_t = (i_tile % tiles) * BLOCK_T + tl.arange(0, BLOCK_T)
        b_u = _vectors(u, ub, uh, ut, i_b, i_h, o_t, o_d, time, dim)
        b_dphi = _vectors(dout, gb, gh, gt, i_b, i_h, o_t, o_f, time, features)
        b_norm, b_left_of_square, b_stretch = _stretch(b_u, b_root)
        b_p, b_left, b_log, b_phi = _features(b_u, b_points, b_stretch, b_sharp, o_f, features, PRECISION)
        b_dscores = b_phi * (b_dphi - tl.sum(b_phi * b_dphi, 1)[:, None])
        b_dsharp -= tl.sum(tl.where((o_f < features)[None, :], b_log * b_dscores, 0.0), 1)
        b_dy = tl.where(b_stretch[:, None] * b_p < _LIMIT, b_sharp * b_dscores / b_left, 0.0)
        b_dp, b_dstretch = b_stretch[:, None] * b_dy, tl.sum(b_dy * b_p, 1)
        b_slope = b_root * b_left_of_square
        b_droot += b_dstretch * b_left_of_square
        b_along = tl.where(
            b_norm > 1e-6, b_dstretch * (b_slope - b_stretch) / tl.maximum(b_norm * b_norm, 1e-12), 0.0
        )
        b_du = tl.dot(b_dp, b_points, input_precision=PRECISION) + b_along[:, None] * b_u
        b_dpoints += tl.dot(tl.trans(b_dp), b_u, input_precision=PRECISION)
        p_du = du + i_b.to(tl.int64) * db + i_h * dh + o_t[:, None].to(tl.int64) * dt + o_d[None, :]
        tl.store(p_du, b_du.to(du.dtype.element_ty), mask=(o_t[:, None] < time) & (o_d[None, :] < dim))
    i_slot = i_h * parts + i_p
    tl.store(dboundary + (i_slot * features + o_f[:, None]) * dim + o_d[None, :], b_dpoints, mask=m_points)
    tl.store(dsharpness + i_slot, tl.sum(b_dsharp, 0))
    tl.store(droot + i_slot, tl.sum(b_droot, 0))
