"""The step as one kernel: all is read and written once, and no temporary is as large as the tensor.

No tensor-core dot, so it runs from sm70 on. Elements are taken in blocks of 128 that share the momentum's
scale; a byte of 4-bit codes holds elements i and i + 64 of its block, so both halves are loaded as tensors of
their own.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from newllm_lib.ops.stochastic_rounding.reference import BLOCK, AdamStep, RoundedStep

_GROUP = 16  # blocks a program takes: 2,048 elements
_LOW_BITS = {torch.bfloat16: 16, torch.float16: 13}  # bits of float32 that a weight does not have
_SMALL_BLOCK = 1024  # elements of a small tensor that one program takes
# Philox's rounds: enough for every statistical test of it, which is a third of the kernel's time
ROUNDS: tl.constexpr = tl.constexpr(7)


@triton.jit
def _round(x, random, ROUND: tl.constexpr):
    """float32 -> the same with ROUND random low bits added and cut off: 16, and bfloat16 holds it exactly, or
    13 for float16, whose smallest numbers lie evenly; 0: as it is."""
    if ROUND > 0:
        noise = random.to(tl.uint32, bitcast=True) & ((1 << ROUND) - 1)
        bits = x.to(tl.uint32, bitcast=True) + noise
        cut = (bits & (0x100000000 - (1 << ROUND))).to(tl.float32, bitcast=True)
        if ROUND == 13:
            size = tl.abs(x)
            even = tl.floor(size * 16777216.0 + noise.to(tl.float32) / 8192.0) / 16777216.0
            cut = tl.where(size < 6.103515625e-05, tl.where(x < 0, -even, even), cut)  # 2^-14
            # what is beyond float16's largest becomes that; NaN stays
            cut = tl.where(cut > 65504.0, 65504.0, tl.where(cut < -65504.0, -65504.0, cut))
        x = cut
    return x


@triton.jit
def _value(code, scale, LEVELS: tl.constexpr):
    k = code.to(tl.float32) - (LEVELS + 1)
    return k * tl.abs(k) * (scale / (LEVELS * LEVELS))


@triton.jit
def _code(value, scale, random, LEVELS: tl.constexpr):
    size = tl.abs(value) / tl.maximum(scale, 1e-30)
    low = tl.floor(tl.sqrt(size) * LEVELS)
    up = (size * (LEVELS * LEVELS) - low * low) / (2 * low + 1)
    chance = (random.to(tl.uint32, bitcast=True) >> 8).to(tl.float32) * 5.9604645e-08  # 2^-24
    low = tl.minimum(low + tl.where(chance < up, 1.0, 0.0), LEVELS)
    return tl.where(value < 0, (LEVELS + 1) - low, (LEVELS + 1) + low).to(tl.uint8)


@triton.jit
def _update(direction, rows, columns, place, inside, width, scale, FACTORED: tl.constexpr):
    u = tl.load(direction + place, mask=inside, other=0.0).to(tl.float32) * scale
    if FACTORED:
        u *= tl.load(rows + place // width, mask=inside, other=0.0) * tl.load(
            columns + place % width, mask=inside, other=0.0
        )
    return u


@triton.jit
def _move(parameter, place, inside, m, random, step, keep, ROUND: tl.constexpr):
    old = tl.load(parameter + place, mask=inside, other=0.0).to(tl.float32)
    new = _round(old * keep - step * m, random, ROUND)
    tl.store(parameter + place, new.to(parameter.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["seed"])
def rounded_step(
    parameter,
    direction,
    first,
    scales,
    rows,
    columns,
    scale_at,
    numbers,
    numel,
    width,
    step,
    keep,
    beta,
    seed,
    BITS: tl.constexpr,
    FACTORED: tl.constexpr,
    ROUND: tl.constexpr,
    STORED: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """STORED: step, keep and what changes the seed are read from `numbers` (reference.Numbers)."""
    HALF: tl.constexpr = BLOCK // 2
    LEVELS: tl.constexpr = 7 if BITS == 4 else 127
    if STORED:
        step, keep = tl.load(numbers + 1), tl.load(numbers + 2)
        seed = seed ^ tl.load(numbers + 4).to(tl.int32)
    scale = tl.load(scale_at)
    # nothing is touched if the scale is no finite number
    limit = tl.where(tl.abs(scale) < float("inf"), numel, 0)
    block = tl.program_id(0).to(tl.int64) * GROUP + tl.arange(0, GROUP)[:, None]
    lane = tl.arange(0, HALF)[None, :]
    low, high = block * BLOCK + lane, block * BLOCK + HALF + lane
    low_in, high_in = low < limit, high < limit
    m_low = _update(direction, rows, columns, low, low_in, width, scale, FACTORED)
    m_high = _update(direction, rows, columns, high, high_in, width, scale, FACTORED)
    r0, r1, r2, r3 = tl.randint4x(seed, block * HALF + lane, n_rounds=ROUNDS)
    if BITS == 32:
        m_low = beta * tl.load(first + low, mask=low_in, other=0.0) + (1 - beta) * m_low
        m_high = beta * tl.load(first + high, mask=high_in, other=0.0) + (1 - beta) * m_high
        tl.store(first + low, m_low, mask=low_in)
        tl.store(first + high, m_high, mask=high_in)
    elif BITS > 0:
        there = block * BLOCK < limit
        old = tl.load(scales + block, mask=there, other=0.0)
        if BITS == 4:
            pair = tl.load(first + block * HALF + lane, mask=there, other=0x88)
            m_low = beta * _value(pair & 15, old, LEVELS) + (1 - beta) * m_low
            m_high = beta * _value(pair >> 4, old, LEVELS) + (1 - beta) * m_high
        else:
            m_low = (
                beta * _value(tl.load(first + low, mask=there, other=128), old, LEVELS) + (1 - beta) * m_low
            )
            m_high = (
                beta * _value(tl.load(first + high, mask=there, other=128), old, LEVELS) + (1 - beta) * m_high
            )
        new = tl.max(tl.maximum(tl.abs(m_low), tl.abs(m_high)), 1)[:, None]
        tl.store(scales + block, new, mask=there)
        code_low, code_high = _code(m_low, new, r2, LEVELS), _code(m_high, new, r3, LEVELS)
        if BITS == 4:
            tl.store(first + block * HALF + lane, code_low | (code_high << 4), mask=there)
        else:
            tl.store(first + low, code_low, mask=there)
            tl.store(first + high, code_high, mask=there)
    _move(parameter, low, low_in, m_low, r0, step, keep, ROUND)
    _move(parameter, high, high_in, m_high, r1, step, keep, ROUND)


def rounded_step_(
    parameter: Tensor,
    direction: Tensor,
    momentum: tuple[Tensor, ...],
    factors: tuple[Tensor, Tensor] | None,
    scale: Tensor,
    how: RoundedStep,
    bits: int,
) -> None:
    """As `reference.rounded_step_`; the parameter is contiguous."""
    direction = direction.contiguous()
    first, scales = (*momentum, scale, scale)[:2]
    rows, columns = factors or (scale, scale)
    blocks = triton.cdiv(parameter.numel(), BLOCK)
    with torch.cuda.device_of(parameter):
        rounded_step[(triton.cdiv(blocks, _GROUP),)](
            parameter,
            direction,
            first,
            scales,
            rows,
            columns,
            scale,
            scale if how.numbers is None else how.numbers,
            parameter.numel(),
            len(columns) if factors else 1,
            how.rate * how.correction,
            1.0 - how.decay,
            how.beta,
            how.seed,
            BITS=bits,
            FACTORED=factors is not None,
            ROUND=_LOW_BITS.get(parameter.dtype, 0),
            STORED=how.numbers is not None,
            GROUP=_GROUP,
            BLOCK=BLOCK,
            num_warps=8,
        )


@triton.jit(do_not_specialize=["seed"])
def adam_step(
    parameter,
    gradient,
    second,
    momentum,
    scale_at,
    numbers,
    numel,
    step,
    keep,
    beta,
    beta2,
    unbias,
    seed,
    ROUND: tl.constexpr,
    STORED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    scale = tl.load(scale_at)
    if STORED:
        step, keep, unbias = tl.load(numbers), tl.load(numbers + 2), tl.load(numbers + 3)
        seed = seed ^ tl.load(numbers + 4).to(tl.int32)
    limit = tl.where(tl.abs(scale) < float("inf"), numel, 0)
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < limit
    u = tl.load(gradient + place, mask=inside, other=0.0).to(tl.float32) * scale
    v = tl.load(second + place, mask=inside, other=0.0)
    v += (1 - beta2) * (u * u - v)
    m = tl.load(momentum + place, mask=inside, other=0.0)
    m = beta * m + (1 - beta) * (u / (tl.sqrt(v / unbias) + 1e-8))
    tl.store(second + place, v, mask=inside)
    tl.store(momentum + place, m, mask=inside)
    _move(parameter, place, inside, m, tl.randint(seed, place, n_rounds=ROUNDS), step, keep, ROUND)


def adam_step_(
    parameter: Tensor,
    gradient: Tensor,
    second: Tensor,
    momentum: Tensor,
    scale: Tensor,
    how: AdamStep,
) -> None:
    """As `reference.adam_step_`; the parameter is contiguous."""
    gradient = gradient.contiguous()
    with torch.cuda.device_of(parameter):
        adam_step[(triton.cdiv(parameter.numel(), _SMALL_BLOCK),)](
            parameter,
            gradient,
            second,
            momentum,
            scale,
            scale if how.numbers is None else how.numbers,
            parameter.numel(),
            how.rate / (1 - how.betas[0] ** how.step),
            1.0 - how.decay,
            *how.betas,
            1 - how.betas[1] ** how.step,
            how.seed,
            ROUND=_LOW_BITS.get(parameter.dtype, 0),
            STORED=how.numbers is not None,
            BLOCK=_SMALL_BLOCK,
        )
