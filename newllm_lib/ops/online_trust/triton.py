"""`online_trust` as one Triton kernel: a program reads a row from its first token to its last. No tensor-core dot.

Of each token's words it needs sums alone; they are taken block by block under a running maximum, as in online softmax.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from newllm_lib.ops.common.dispatch import on_its_device

_BLOCK = 2048
MOST_PARTS = 5


@triton.jit
def _block(settled, f0, f1, f2, f3, f4, d0, d1, d2, d3, d4, words, inside, PARTS: tl.constexpr):
    """A block of logits with the moved trust, and of each part."""
    x = tl.load(settled + words, mask=inside, other=float("-inf"))
    a = tl.load(f0 + words, mask=inside, other=0.0)
    b, c, e, g = a, a, a, a
    x += d0 * a
    if PARTS > 1:
        b = tl.load(f1 + words, mask=inside, other=0.0)
        x += d1 * b
    if PARTS > 2:
        c = tl.load(f2 + words, mask=inside, other=0.0)
        x += d2 * c
    if PARTS > 3:
        e = tl.load(f3 + words, mask=inside, other=0.0)
        x += d3 * e
    if PARTS > 4:
        g = tl.load(f4 + words, mask=inside, other=0.0)
        x += d4 * g
    return x, a, b, c, e, g


@triton.jit
def _moments(scale, p, total, square, f):
    return scale * total + tl.sum(p * f, 0), scale * square + tl.sum(p * f * f, 0)


@triton.jit
def _step(f, token, total, square, mass, moved, information, prior, keep):
    """One part's new d and I from the sums of f and f² under the unnormalised prediction."""
    mean = total / mass
    information = keep * information + tl.maximum(square / mass - mean * mean, 0.0)
    return moved + (tl.load(f + token) - mean) / (prior + information), information


@triton.jit
def _online_trust(
    logits, p0, p1, p2, p3, p4, first, q0, q1, q2, q3, q4, ids, newest, told, begins, moved, information, learned,
    moved_after, information_after, time, size, prior, keep, PARTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    at = row * PARTS
    d0, i0 = tl.load(moved + at), tl.load(information + at)
    d1, i1, d2, i2, d3, i3, d4, i4 = d0, i0, d0, i0, d0, i0, d0, i0
    if PARTS > 1:
        d1, i1 = tl.load(moved + at + 1), tl.load(information + at + 1)
    if PARTS > 2:
        d2, i2 = tl.load(moved + at + 2), tl.load(information + at + 2)
    if PARTS > 3:
        d3, i3 = tl.load(moved + at + 3), tl.load(information + at + 3)
    if PARTS > 4:
        d4, i4 = tl.load(moved + at + 4), tl.load(information + at + 4)
    for t in range(time):
        here = row * time + t
        token = tl.load(ids + here)
        place = tl.load(newest + here)
        if tl.load(told + here).to(tl.int32) != 0:
            offset = (row * time + place - 1) * size
            if place == 0:
                offset = row * size
            settled = logits + offset
            f0, f1, f2, f3, f4 = p0 + offset, p1 + offset, p2 + offset, p3 + offset, p4 + offset
            if place == 0:
                settled = first + offset
                f0, f1, f2, f3, f4 = q0 + offset, q1 + offset, q2 + offset, q3 + offset, q4 + offset
            top, mass = float("-inf"), 0.0
            t0, s0, t1, s1, t2, s2, t3, s3, t4, s4 = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
            for begin in range(0, size, BLOCK):
                words = begin + tl.arange(0, BLOCK)
                x, a, b, c, e, g = _block(settled, f0, f1, f2, f3, f4, d0, d1, d2, d3, d4, words, words < size, PARTS)
                higher = tl.maximum(top, tl.max(x, 0))
                scale, p = tl.exp(top - higher), tl.exp(x - higher)
                top, mass = higher, scale * mass + tl.sum(p, 0)
                t0, s0 = _moments(scale, p, t0, s0, a)
                if PARTS > 1:
                    t1, s1 = _moments(scale, p, t1, s1, b)
                if PARTS > 2:
                    t2, s2 = _moments(scale, p, t2, s2, c)
                if PARTS > 3:
                    t3, s3 = _moments(scale, p, t3, s3, e)
                if PARTS > 4:
                    t4, s4 = _moments(scale, p, t4, s4, g)
            d0, i0 = _step(f0, token, t0, s0, mass, d0, i0, prior, keep)
            if PARTS > 1:
                d1, i1 = _step(f1, token, t1, s1, mass, d1, i1, prior, keep)
            if PARTS > 2:
                d2, i2 = _step(f2, token, t2, s2, mass, d2, i2, prior, keep)
            if PARTS > 3:
                d3, i3 = _step(f3, token, t3, s3, mass, d3, i3, prior, keep)
            if PARTS > 4:
                d4, i4 = _step(f4, token, t4, s4, mass, d4, i4, prior, keep)
        if tl.load(begins + here).to(tl.int32) != 0:
            d0, i0, d1, i1, d2, i2, d3, i3, d4, i4 = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
        tl.store(learned + here * PARTS, d0)
        if PARTS > 1:
            tl.store(learned + here * PARTS + 1, d1)
        if PARTS > 2:
            tl.store(learned + here * PARTS + 2, d2)
        if PARTS > 3:
            tl.store(learned + here * PARTS + 3, d3)
        if PARTS > 4:
            tl.store(learned + here * PARTS + 4, d4)
    tl.store(moved_after + at, d0)
    tl.store(information_after + at, i0)
    if PARTS > 1:
        tl.store(moved_after + at + 1, d1)
        tl.store(information_after + at + 1, i1)
    if PARTS > 2:
        tl.store(moved_after + at + 2, d2)
        tl.store(information_after + at + 2, i2)
    if PARTS > 3:
        tl.store(moved_after + at + 3, d3)
        tl.store(information_after + at + 3, i3)
    if PARTS > 4:
        tl.store(moved_after + at + 4, d4)
        tl.store(information_after + at + 4, i4)


def online_trust(logits, parts, before, ids, newest, told, begins, moved, information, prior, keep):
    """As `reference.online_trust`, of at most `MOST_PARTS` parts."""
    first, first_parts = before
    numbers = ids, newest, told, begins
    return _operator(logits, parts, first, first_parts, *(x.contiguous() for x in numbers), moved, information, prior, keep)


@torch.library.custom_op("newllm::online_trust", mutates_args=())
def _operator(
    logits: Tensor, parts: list[Tensor], first: Tensor, first_parts: list[Tensor], ids: Tensor, newest: Tensor, told: Tensor,
    begins: Tensor, moved: Tensor, information: Tensor, prior: float, keep: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return _launched(logits, parts, first, first_parts, ids, newest, told, begins, moved, information, prior, keep)


@_operator.register_fake
def _(logits, parts, first, first_parts, ids, newest, told, begins, moved, information, prior, keep):
    return _outputs(logits, len(parts))


def _outputs(logits: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    batch, time, _ = logits.shape
    return logits.new_empty(batch, time, count), logits.new_empty(batch, count), logits.new_empty(batch, count)


@on_its_device
def _launched(logits, parts, first, first_parts, ids, newest, told, begins, moved, information, prior, keep):
    (batch, time, size), count = logits.shape, len(parts)
    outputs = _outputs(logits, count)
    _online_trust[(batch,)](
        logits.contiguous(), *_all(parts), first.contiguous(), *_all(first_parts), ids, newest, told, begins,
        moved.contiguous(), information.contiguous(), *outputs, time, size, prior, keep,
        PARTS=count, BLOCK=min(_BLOCK, triton.next_power_of_2(size)), num_warps=8,
    )  # fmt: skip
    return outputs


def _all(parts: list[Tensor]) -> list[Tensor]:
    parts = [part.contiguous() for part in parts]
    return parts + parts[:1] * (MOST_PARTS - len(parts))
