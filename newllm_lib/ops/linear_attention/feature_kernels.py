"""Triton kernels of the hyperbolic feature map: a tile of vectors of one head at a time, nothing kept but the features.

The notation is that of `features`: p = u·ω, g = tanh(r|u|)/|u| with r = 2√c, y = g p = κ·ω, φ = softmax(-s log(1 - y)). The
backward pass computes them again from u; what all vectors of a head ask of its boundary points is summed in registers, a part for
each program.
"""

from __future__ import annotations

import triton
import triton.language as tl

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
    return norm, 4 * decayed / ((1 + decayed) * (1 + decayed)), tl.where(norm > 1e-6, tanh / tl.maximum(norm, 1e-6), root)


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
    u, boundary, sharpness, root, out, heads, time, features, dim, ub, uh, ut,
    BLOCK_T: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """(batch, heads, time, features), contiguous, in out's dtype."""
    row = tl.program_id(1)
    batch, head = row // heads, row % heads
    rows, f, d = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_F), tl.arange(0, BLOCK_D)
    vectors = _vectors(u, ub, uh, ut, batch, head, rows, d, time, dim)
    points = tl.load(
        boundary + (head * features + f[:, None]) * dim + d[None, :], mask=(f[:, None] < features) & (d[None, :] < dim), other=0.0
    )
    _, _, stretch = _stretch(vectors, tl.load(root + head))
    _, _, _, found = _features(vectors, points, stretch, tl.load(sharpness + head), f, features, PRECISION)
    place = out + (row.to(tl.int64) * time + rows[:, None]) * features + f[None, :]
    tl.store(place, found.to(out.dtype.element_ty), mask=(rows[:, None] < time) & (f[None, :] < features))


@triton.jit
def features_backward(
    u, boundary, sharpness, root, dout, du, dboundary, dsharpness, droot, batches, heads, time, features, dim, parts,
    ub, uh, ut, gb, gh, gt, db, dh, dt,
    BLOCK_T: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """du; a part of the other gradients: dboundary (heads, parts, features, dim), dsharpness and droot (heads, parts)."""
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
