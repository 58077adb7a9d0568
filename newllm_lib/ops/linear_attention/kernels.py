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
def _load(ptr, strides_b, strides_h, strides_t, batch, head, rows, columns, time, width, dtype: tl.constexpr):
    """A (rows, columns) tile of (batch, heads, time, width), zeros outside."""
    place = (
        ptr
        + batch.to(tl.int64) * strides_b
        + head * strides_h
        + rows[:, None].to(tl.int64) * strides_t
        + columns[None, :]
    )
    return tl.load(place, mask=(rows[:, None] < time) & (columns[None, :] < width), other=0.0).to(dtype)


@triton.jit
def _decays(log_decay, first, batch, row, chunk, rows, time, HAS_FIRST: tl.constexpr, CHUNK: tl.constexpr):
    """The chunk's running total of log decays; each token's first visible position; shares of the past that
    reach each token (before), of each token at the chunk's end (leaving), of the past there (kept)."""
    inside = rows < time
    g = tl.load(log_decay + row.to(tl.int64) * time + rows, mask=inside, other=0.0)
    total, end = tl.cumsum(g, 0), tl.sum(g, 0)
    before, leaving, kept = tl.exp(total), tl.exp(end - total), tl.exp(end)
    seen = tl.zeros_like(rows)
    if HAS_FIRST:
        begin = chunk * CHUNK
        seen = tl.load(first + batch.to(tl.int64) * time + rows, mask=inside, other=0)
        last = tl.load(first + batch.to(tl.int64) * time + tl.minimum(begin + CHUNK, time) - 1)
        before = tl.where(seen < begin, before, 0.0)
        leaving = tl.where(rows >= last, leaving, 0.0)
        kept = tl.where(last < begin, kept, 0.0)
    return total, seen, before, leaving, kept


@triton.jit
def _weights(total, seen, rows, HAS_FIRST: tl.constexpr):
    """(chunk, chunk): what each token still has of each one before it in its document."""
    visible = rows[None, :] <= rows[:, None]
    if HAS_FIRST:
        visible = visible & (rows[None, :] >= seen[:, None])
    return tl.where(visible, tl.exp(total[:, None] - total[None, :]), 0.0)


@triton.jit
def _slot(states, row, slot, chunks, dim, features, d, f):
    """Where the (d, f) tile of a slot's sum of v k' lies, its mask, and where the sum of k does."""
    base = states + (row.to(tl.int64) * (chunks + 1) + slot) * (dim + 1) * features
    return (
        base + d[:, None] * features + f[None, :],
        (d[:, None] < dim) & (f[None, :] < features),
        base + dim * features + f,
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
    chunk, row = tl.program_id(0), tl.program_id(1)
    batch, head = row // heads, row % heads
    rows, f, d = chunk * CHUNK + tl.arange(0, CHUNK), tl.arange(0, BLOCK_F), tl.arange(0, BLOCK_D)
    dtype = v.dtype.element_ty
    _, _, _, leaving, kept = _decays(log_decay, first, batch, row, chunk, rows, time, HAS_FIRST, CHUNK)
    keys = _load(k, kb, kh, kt, batch, head, rows, f, time, features, dtype) * leaving[:, None]
    values = _load(v, vb, vh, vt, batch, head, rows, d, time, dim, dtype)
    place, mask, line = _slot(states, row, chunk + 1, chunks, dim, features, d, f)
    tl.store(place, tl.dot(tl.trans(values), keys.to(dtype), input_precision=PRECISION), mask=mask)
    tl.store(line, tl.sum(keys, 0), mask=f < features)
    tl.store(keeps + row * chunks + chunk, kept)


@triton.jit
def walk(states, keeps, chunks, size, REVERSE: tl.constexpr, BLOCK: tl.constexpr):
    """state <- kept state + added, from the first slot to the last, or from the last to the first."""
    row = tl.program_id(1)
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = place < size
    base = states + row.to(tl.int64) * (chunks + 1) * size + place
    if REVERSE:
        state = tl.load(base + chunks * size, mask=mask)
    else:
        state = tl.load(base, mask=mask)
    for step in range(chunks):
        if REVERSE:
            chunk = chunks - 1 - step
            slot = chunk
        else:
            chunk = step
            slot = chunk + 1
        here = base + slot * size
        state = tl.load(keeps + row * chunks + chunk) * state + tl.load(here, mask=mask)
        tl.store(here, state, mask=mask)


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
    chunk, row = tl.program_id(0), tl.program_id(1)
    batch, head = row // heads, row % heads
    rows, f, d = chunk * CHUNK + tl.arange(0, CHUNK), tl.arange(0, BLOCK_F), tl.arange(0, BLOCK_D)
    dtype = v.dtype.element_ty
    total, seen, before, _, _ = _decays(log_decay, first, batch, row, chunk, rows, time, HAS_FIRST, CHUNK)
    queries = _load(q, qb, qh, qt, batch, head, rows, f, time, features, dtype)
    keys = _load(k, kb, kh, kt, batch, head, rows, f, time, features, dtype)
    values = _load(v, vb, vh, vt, batch, head, rows, d, time, dim, dtype)
    weights = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * _weights(
        total, seen, rows, HAS_FIRST
    )
    place, mask, line = _slot(states, row, chunk, chunks, dim, features, d, f)
    state, keys_sum = tl.load(place, mask=mask, other=0.0), tl.load(line, mask=f < features, other=0.0)
    sums = tl.dot(queries, tl.trans(state).to(dtype), input_precision=PRECISION) * before[:, None]
    sums = tl.dot(weights.to(dtype), values, sums, input_precision=PRECISION)
    count = tl.sum(weights, 1) + before * tl.sum(queries.to(tl.float32) * keys_sum[None, :], 1)
    count = tl.maximum(count, 1e-30)
    place = out + batch.to(tl.int64) * ob + head * oh + rows[:, None].to(tl.int64) * ot + d[None, :]
    tl.store(place, (sums / count[:, None]).to(dtype), mask=(rows[:, None] < time) & (d[None, :] < dim))
    tl.store(counts + row.to(tl.int64) * time + rows, count, mask=rows < time)


@triton.jit
def _upstream(dout, out, counts, dob, doh, dot, ob, oh, ot, batch, head, row, rows, d, time, dim):
    """dN (chunk, dim) and dD (chunk,), float32."""
    count = tl.load(counts + row.to(tl.int64) * time + rows, mask=rows < time, other=1.0)
    gradient = _load(dout, dob, doh, dot, batch, head, rows, d, time, dim, tl.float32)
    found = _load(out, ob, oh, ot, batch, head, rows, d, time, dim, tl.float32)
    inverse = tl.where(count > 1e-30, 1 / count, 0.0)  # a token that saw nothing learns nothing
    return gradient * inverse[:, None], -tl.sum(gradient * found, 1) * inverse


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
    dob,
    doh,
    dot,
    HAS_FIRST: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """What each chunk's tokens ask of the state before it, into its slot."""
    chunk, row = tl.program_id(0), tl.program_id(1)
    batch, head = row // heads, row % heads
    rows, f, d = chunk * CHUNK + tl.arange(0, CHUNK), tl.arange(0, BLOCK_F), tl.arange(0, BLOCK_D)
    dtype = out.dtype.element_ty
    _, _, before, _, _ = _decays(log_decay, first, batch, row, chunk, rows, time, HAS_FIRST, CHUNK)
    queries = _load(q, qb, qh, qt, batch, head, rows, f, time, features, dtype)
    dsums, dcount = _upstream(
        dout, out, counts, dob, doh, dot, ob, oh, ot, batch, head, row, rows, d, time, dim
    )
    place, mask, line = _slot(dstates, row, chunk, chunks, dim, features, d, f)
    tl.store(
        place,
        tl.dot(tl.trans((dsums * before[:, None]).to(dtype)), queries, input_precision=PRECISION),
        mask=mask,
    )
    tl.store(line, tl.sum((before * dcount)[:, None] * queries, 0), mask=f < features)


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
    dob,
    doh,
    dot,
    dqb,
    dqh,
    dqt,
    dkb,
    dkh,
    dkt,
    dvb,
    dvh,
    dvt,
    HAS_FIRST: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradients of a chunk's q, k, v and log decays."""
    chunk, row = tl.program_id(0), tl.program_id(1)
    batch, head = row // heads, row % heads
    rows, f, d = chunk * CHUNK + tl.arange(0, CHUNK), tl.arange(0, BLOCK_F), tl.arange(0, BLOCK_D)
    dtype = v.dtype.element_ty
    total, seen, before, leaving, _ = _decays(
        log_decay, first, batch, row, chunk, rows, time, HAS_FIRST, CHUNK
    )
    queries = _load(q, qb, qh, qt, batch, head, rows, f, time, features, dtype)
    keys = _load(k, kb, kh, kt, batch, head, rows, f, time, features, dtype)
    values = _load(v, vb, vh, vt, batch, head, rows, d, time, dim, dtype)
    dsums, dcount = _upstream(
        dout, out, counts, dob, doh, dot, ob, oh, ot, batch, head, row, rows, d, time, dim
    )
    rounded, decay = dsums.to(dtype), _weights(total, seen, rows, HAS_FIRST)

    dweights = (tl.dot(rounded, tl.trans(values), input_precision=PRECISION) + dcount[:, None]) * decay
    query_gradient = tl.dot(dweights.to(dtype), keys, input_precision=PRECISION)
    key_gradient = tl.dot(tl.trans(dweights).to(dtype), queries, input_precision=PRECISION)
    weights = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * decay
    value_gradient = tl.dot(tl.trans(weights).to(dtype), rounded, input_precision=PRECISION)

    place, mask, line = _slot(states, row, chunk, chunks, dim, features, d, f)
    state, keys_sum = tl.load(place, mask=mask, other=0.0), tl.load(line, mask=f < features, other=0.0)
    carried = (
        tl.dot(rounded, state.to(dtype), input_precision=PRECISION) + dcount[:, None] * keys_sum[None, :]
    )
    query_gradient += before[:, None] * carried

    place, mask, line = _slot(dstates, row, chunk + 1, chunks, dim, features, d, f)
    dstate, dkeys_sum = tl.load(place, mask=mask, other=0.0), tl.load(line, mask=f < features, other=0.0)
    later = dstate.to(dtype)
    key_gradient += leaving[:, None] * (tl.dot(values, later, input_precision=PRECISION) + dkeys_sum[None, :])
    value_gradient += leaving[:, None] * tl.dot(keys, tl.trans(later), input_precision=PRECISION)

    place, mask, line = _slot(states, row, chunk + 1, chunks, dim, features, d, f)
    after, keys_after = tl.load(place, mask=mask, other=0.0), tl.load(line, mask=f < features, other=0.0)
    beyond = tl.sum(tl.sum(after * dstate, 1), 0) + tl.sum(keys_after * dkeys_sum, 0)
    own = tl.sum(queries * query_gradient, 1) - tl.sum(keys * key_gradient, 1)
    pairs = beyond + tl.sum(own, 0) - tl.cumsum(own, 0) + own
    tl.store(dlog_decay + row.to(tl.int64) * time + rows, pairs, mask=rows < time)

    narrow, wide = (
        (rows[:, None] < time) & (f[None, :] < features),
        (rows[:, None] < time) & (d[None, :] < dim),
    )
    up, down = batch.to(tl.int64), rows[:, None].to(tl.int64)
    tl.store(dq + up * dqb + head * dqh + down * dqt + f[None, :], query_gradient.to(dtype), mask=narrow)
    tl.store(dk + up * dkb + head * dkh + down * dkt + f[None, :], key_gradient.to(dtype), mask=narrow)
    tl.store(dv + up * dvb + head * dvh + down * dvt + d[None, :], value_gradient.to(dtype), mask=wide)


# ---- the feature map: a tile of vectors of one head at a time, nothing kept but the features. The notation
# is `features`': p = u·ω, g = tanh(r|u|)/|u| with r = 2√c, y = g p = κ·ω, φ = softmax(-s log(1 - y)). The
# backward pass computes them again from u; what all vectors of a head ask of its boundary points is summed in
# registers, a part for each program.


_LIMIT = tl.constexpr(1 - 2.0**-20)


@triton.jit
def _vectors(u, ub, uh, ut, batch, head, rows, d, time, dim):
    place = u + batch.to(tl.int64) * ub + head * uh + rows[:, None].to(tl.int64) * ut + d[None, :]
    return tl.load(place, mask=(rows[:, None] < time) & (d[None, :] < dim), other=0.0).to(tl.float32)


@triton.jit
def _stretch(vectors, root):
    """|u|, 1 - tanh²(r|u|), g."""
    norm = tl.sqrt(tl.sum(vectors * vectors, 1))
    decayed = tl.exp(-2 * root * norm)
    tanh = (1 - decayed) / (1 + decayed)
    return (
        norm,
        4 * decayed / ((1 + decayed) * (1 + decayed)),
        tl.where(norm > 1e-6, tanh / tl.maximum(norm, 1e-6), root),
    )


@triton.jit
def _features(vectors, boundary, stretch, sharpness, f, features, PRECISION: tl.constexpr):
    """p, 1 - y (never 0), its logarithm and φ."""
    product = tl.dot(vectors, tl.trans(boundary), input_precision=PRECISION)
    left = 1 - tl.minimum(stretch[:, None] * product, _LIMIT)
    logs = tl.log(left)
    scores = tl.where((f < features)[None, :], -sharpness * logs, float("-inf"))
    powers = tl.exp(scores - tl.max(scores, 1)[:, None])
    return product, left, logs, powers / tl.sum(powers, 1)[:, None]


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
    row = tl.program_id(1)
    batch, head = row // heads, row % heads
    rows, f, d = (
        tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T),
        tl.arange(0, BLOCK_F),
        tl.arange(0, BLOCK_D),
    )
    vectors = _vectors(u, ub, uh, ut, batch, head, rows, d, time, dim)
    points = tl.load(
        boundary + (head * features + f[:, None]) * dim + d[None, :],
        mask=(f[:, None] < features) & (d[None, :] < dim),
        other=0.0,
    )
    _, _, stretch = _stretch(vectors, tl.load(root + head))
    _, _, _, found = _features(vectors, points, stretch, tl.load(sharpness + head), f, features, PRECISION)
    place = out + (row.to(tl.int64) * time + rows[:, None]) * features + f[None, :]
    tl.store(place, found.to(out.dtype.element_ty), mask=(rows[:, None] < time) & (f[None, :] < features))


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
    part, head = tl.program_id(0), tl.program_id(1)
    f, d = tl.arange(0, BLOCK_F), tl.arange(0, BLOCK_D)
    inside = (f[:, None] < features) & (d[None, :] < dim)
    points = tl.load(boundary + (head * features + f[:, None]) * dim + d[None, :], mask=inside, other=0.0)
    s, r = tl.load(sharpness + head), tl.load(root + head)
    point_gradient = tl.zeros([BLOCK_F, BLOCK_D], dtype=tl.float32)
    s_gradient = tl.zeros([BLOCK_T], dtype=tl.float32)
    r_gradient = tl.zeros([BLOCK_T], dtype=tl.float32)
    tiles = tl.cdiv(time, BLOCK_T)
    for tile in range(part, tiles * batches, parts):
        batch = tile // tiles
        rows = (tile % tiles) * BLOCK_T + tl.arange(0, BLOCK_T)
        vectors = _vectors(u, ub, uh, ut, batch, head, rows, d, time, dim)
        upstream = _vectors(dout, gb, gh, gt, batch, head, rows, f, time, features)
        norm, left_of_square, stretch = _stretch(vectors, r)
        product, left, logs, found = _features(vectors, points, stretch, s, f, features, PRECISION)
        dscores = found * (upstream - tl.sum(found * upstream, 1)[:, None])
        s_gradient -= tl.sum(tl.where((f < features)[None, :], logs * dscores, 0.0), 1)
        dy = tl.where(stretch[:, None] * product < _LIMIT, s * dscores / left, 0.0)
        dproduct, dstretch = stretch[:, None] * dy, tl.sum(dy * product, 1)
        slope = r * left_of_square
        r_gradient += dstretch * left_of_square
        along = tl.where(norm > 1e-6, dstretch * (slope - stretch) / tl.maximum(norm * norm, 1e-12), 0.0)
        gradient = tl.dot(dproduct, points, input_precision=PRECISION) + along[:, None] * vectors
        point_gradient += tl.dot(tl.trans(dproduct), vectors, input_precision=PRECISION)
        place = du + batch.to(tl.int64) * db + head * dh + rows[:, None].to(tl.int64) * dt + d[None, :]
        tl.store(place, gradient.to(du.dtype.element_ty), mask=(rows[:, None] < time) & (d[None, :] < dim))
    slot = head * parts + part
    tl.store(dboundary + (slot * features + f[:, None]) * dim + d[None, :], point_gradient, mask=inside)
    tl.store(dsharpness + slot, tl.sum(s_gradient, 0))
    tl.store(droot + slot, tl.sum(r_gradient, 0))
