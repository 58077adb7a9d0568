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
def _update(direction, rows, columns, o_x, m_x, width, scale, FACTORED: tl.constexpr):
    b_u = tl.load(direction + o_x, mask=m_x, other=0.0).to(tl.float32) * scale
    if FACTORED:
        b_u *= tl.load(rows + o_x // width, mask=m_x, other=0.0) * tl.load(
            columns + o_x % width, mask=m_x, other=0.0
        )
    return b_u


@triton.jit
def _move(parameter, o_x, m_x, b_m, random, step, keep, ROUND: tl.constexpr):
    b_old = tl.load(parameter + o_x, mask=m_x, other=0.0).to(tl.float32)
    b_new = _round(b_old * keep - step * b_m, random, ROUND)
    tl.store(parameter + o_x, b_new.to(parameter.dtype.element_ty), mask=m_x)


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
    b_scale = tl.load(scale_at)
    # nothing is touched if the scale is no finite number
    limit = tl.where(tl.abs(b_scale) < float("inf"), numel, 0)
    o_block = tl.program_id(0).to(tl.int64) * GROUP + tl.arange(0, GROUP)[:, None]
    o_i = tl.arange(0, HALF)[None, :]
    o_low, o_high = o_block * BLOCK + o_i, o_block * BLOCK + HALF + o_i
    m_low, m_high = o_low < limit, o_high < limit
    b_low = _update(direction, rows, columns, o_low, m_low, width, b_scale, FACTORED)
    b_high = _update(direction, rows, columns, o_high, m_high, width, b_scale, FACTORED)
    b_r0, b_r1, b_r2, b_r3 = tl.randint4x(seed, o_block * HALF + o_i, n_rounds=ROUNDS)
    if BITS == 32:
        b_low = beta * tl.load(first + o_low, mask=m_low, other=0.0) + (1 - beta) * b_low
        b_high = beta * tl.load(first + o_high, mask=m_high, other=0.0) + (1 - beta) * b_high
        tl.store(first + o_low, b_low, mask=m_low)
        tl.store(first + o_high, b_high, mask=m_high)
    elif BITS > 0:
        m_block = o_block * BLOCK < limit
        b_old = tl.load(scales + o_block, mask=m_block, other=0.0)
        if BITS == 4:
            b_pair = tl.load(first + o_block * HALF + o_i, mask=m_block, other=0x88)
            b_low = beta * _value(b_pair & 15, b_old, LEVELS) + (1 - beta) * b_low
            b_high = beta * _value(b_pair >> 4, b_old, LEVELS) + (1 - beta) * b_high
        else:
            b_low = (
                beta * _value(tl.load(first + o_low, mask=m_block, other=128), b_old, LEVELS)
                + (1 - beta) * b_low
            )
            b_high = (
                beta * _value(tl.load(first + o_high, mask=m_block, other=128), b_old, LEVELS)
                + (1 - beta) * b_high
            )
        b_new = tl.max(tl.maximum(tl.abs(b_low), tl.abs(b_high)), 1)[:, None]
        tl.store(scales + o_block, b_new, mask=m_block)
        b_code_low, b_code_high = _code(b_low, b_new, b_r2, LEVELS), _code(b_high, b_new, b_r3, LEVELS)
        if BITS == 4:
            tl.store(first + o_block * HALF + o_i, b_code_low | (b_code_high << 4), mask=m_block)
        else:
            tl.store(first + o_low, b_code_low, mask=m_block)
            tl.store(first + o_high, b_code_high, mask=m_block)
    _move(parameter, o_low, m_low, b_low, b_r0, step, keep, ROUND)
    _move(parameter, o_high, m_high, b_high, b_r1, step, keep, ROUND)


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
    b_scale = tl.load(scale_at)
    if STORED:
        step, keep, unbias = tl.load(numbers), tl.load(numbers + 2), tl.load(numbers + 3)
        seed = seed ^ tl.load(numbers + 4).to(tl.int32)
    limit = tl.where(tl.abs(b_scale) < float("inf"), numel, 0)
    o_x = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m_x = o_x < limit
    b_u = tl.load(gradient + o_x, mask=m_x, other=0.0).to(tl.float32) * b_scale
    b_v = tl.load(second + o_x, mask=m_x, other=0.0)
    b_v += (1 - beta2) * (b_u * b_u - b_v)
    b_m = tl.load(momentum + o_x, mask=m_x, other=0.0)
    b_m = beta * b_m + (1 - beta) * (b_u / (tl.sqrt(b_v / unbias) + 1e-8))
    tl.store(second + o_x, b_v, mask=m_x)
    tl.store(momentum + o_x, b_m, mask=m_x)
    _move(parameter, o_x, m_x, b_m, tl.randint(seed, o_x, n_rounds=ROUNDS), step, keep, ROUND)


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
