"""The step in plain torch: what the kernel computes, with random bits of torch's own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 128  # elements of the flattened tensor that share one scale
_LEVELS = {4: 7, 8: 127}  # codes on each side of zero


@dataclass(frozen=True)
class RoundedStep:
    """How a tensor is stepped.

    Args:
        seed: of the random bits, different in every step and tensor.
        numbers: `step_numbers` on the parameter's device: what changes from step to step, in place of rate,
            correction and decay, and mixed into the seed. A recorded step reads it where it lies.
    """

    rate: float
    decay: float
    beta: float
    correction: float
    seed: int
    numbers: Tensor | None = None


@dataclass(frozen=True)
class AdamStep:
    """How a small tensor is stepped; as `RoundedStep`, and `step` counts from 1."""

    rate: float
    decay: float
    betas: tuple[float, float]
    step: int
    seed: int
    numbers: Tensor | None = None


def rounded_step_(
    parameter: Tensor,
    direction: Tensor,
    momentum: tuple[Tensor, ...],
    factors: tuple[Tensor, Tensor] | None,
    scale: Tensor,
    how: RoundedStep,
    bits: int,
) -> None:
    """m = beta m + (1 - beta) u, parameter = parameter (1 - decay) - rate correction m, u = scale
    direction_ij row_i column_j.

    Args:
        parameter: any shape, float32, or bfloat16 or float16 (rounded stochastically).
        direction: its gradient, of the same shape.
        momentum: what `new_momentum` made (empty with bits 0: then m = u). Rounded stochastically too.
        factors: (rows,), (columns,) of the parameter seen as (rows, columns = last dimension), or None for
            ones.
        scale: (1,) float32 on the parameter's device; if it is no finite number nothing changes.
        bits: of the momentum: 0, 4, 8 or 32.
    """
    if not bool(torch.isfinite(scale)):
        return
    rate, decay, beta, correction, seed = how.rate, how.decay, how.beta, how.correction, how.seed
    if how.numbers is not None:
        _, rate, keep, _, count = how.numbers.tolist()
        correction, decay, seed = 1.0, 1.0 - keep, seed ^ int(count)
    generator = torch.Generator(parameter.device).manual_seed(seed)
    update = direction.float() * scale
    if factors is not None:
        rows, columns = factors
        update = (update.reshape(len(rows), len(columns)) * rows[:, None] * columns).reshape(parameter.shape)
    if bits:
        update = read_momentum(momentum, parameter.shape, bits).lerp_(update, 1 - beta)
        _write_momentum(momentum, update, bits, generator)
    new = parameter.float() * (1 - decay) - rate * correction * update
    half = parameter.dtype in (torch.bfloat16, torch.float16)
    parameter.copy_(stochastic_round(new, generator, parameter.dtype) if half else new)


def adam_step_(
    parameter: Tensor,
    gradient: Tensor,
    second: Tensor,
    momentum: Tensor,
    scale: Tensor,
    how: AdamStep,
) -> None:
    """The step of a small tensor whose moments are kept whole, in float32: the gradient over the root of its
    second moment goes into the momentum. Arguments as above.
    """
    if not bool(torch.isfinite(scale)):
        return
    rate, decay, (beta, beta2), seed = how.rate, how.decay, how.betas, how.seed
    unbias, correction = 1 - beta2**how.step, 1 / (1 - beta**how.step)
    if how.numbers is not None:
        rate, _, keep, unbias, count = how.numbers.tolist()
        correction, decay, seed = 1.0, 1.0 - keep, seed ^ int(count)
    update = gradient.float() * scale
    second.lerp_(update.square(), 1 - beta2)
    direction = update / ((second / unbias).sqrt_() + 1e-8)
    rounded = RoundedStep(rate, decay, beta, correction, seed)
    rounded_step_(parameter, direction, (momentum,), None, torch.ones_like(scale), rounded, bits=32)


def step_numbers(rate: float, decay: float, betas: tuple[float, float], step: int, bits: int) -> list[float]:
    """What changes from step to step: rate of small tensors, rate of matrices, keep, unbias of the second
    moment, and the step itself, hashed to 24 bits, which float32 holds exactly."""
    unbiased = rate / (1 - betas[0] ** step)
    count = (step * 0x9E3779B1 & 0xFFFFFFFF) >> 8
    return [unbiased, unbiased if bits else rate, 1.0 - decay, 1 - betas[1] ** step, float(count)]


def stochastic_round(
    x: Tensor, generator: torch.Generator | None = None, dtype: torch.dtype = torch.bfloat16
) -> Tensor:
    """float32 to bfloat16 or float16, unbiased: add random low bits, then cut them off.

    float16's smallest numbers lie evenly, 2^-24 apart; what is beyond its largest becomes that.
    """
    low = 16 if dtype == torch.bfloat16 else 13  # bits of float32 that the other does not have
    noise = torch.randint(0, 1 << low, x.shape, dtype=torch.int32, device=x.device, generator=generator)
    cut = (x.contiguous().view(torch.int32) + noise).bitwise_and_(-(1 << low)).view(torch.float32)
    if dtype == torch.float16:
        even = (x.abs() * 2.0**24 + noise * 2.0**-13).floor_() * 2.0**-24 * x.sign()
        cut = torch.where(x.abs() < 2.0**-14, even, cut).clamp_(-65504.0, 65504.0)
    return cut.to(dtype)


def new_momentum(parameter: Tensor, bits: int) -> tuple[Tensor, ...]:
    """Zero momentum: () for 0 bits, float32 for 32, else uint8 codes and a scale each `BLOCK`."""
    if bits == 0:
        return ()
    if bits == 32:
        return (torch.zeros_like(parameter, dtype=torch.float32, memory_format=torch.contiguous_format),)
    blocks = -(-parameter.numel() // BLOCK)
    codes = torch.full(
        (blocks * BLOCK * bits // 8,), 0x88 if bits == 4 else 128, dtype=torch.uint8, device=parameter.device
    )
    return codes, torch.zeros(blocks, dtype=torch.float32, device=parameter.device)


def read_momentum(momentum: tuple[Tensor, ...], shape: torch.Size, bits: int) -> Tensor:
    """The momentum as float32: code k is sign(k) (k / levels)^2 times its block's scale, fine near zero."""
    if bits == 32:
        return momentum[0].clone()
    codes, scales = momentum
    if bits == 4:  # a byte holds elements i and i + BLOCK / 2 of its block
        pairs = codes.view(-1, BLOCK // 2)
        k = torch.cat([pairs & 15, pairs >> 4], 1).float() - 8
    else:
        k = codes.view(-1, BLOCK).float() - 128
    values = k.sign() * (k / _LEVELS[bits]).square() * scales[:, None]
    return values.flatten()[: shape.numel()].view(shape)


def _write_momentum(
    momentum: tuple[Tensor, ...], values: Tensor, bits: int, generator: torch.Generator
) -> None:
    if bits == 32:
        momentum[0].copy_(values)
        return
    codes, scales = momentum
    padded = values.new_zeros(len(scales) * BLOCK)
    padded[: values.numel()] = values.flatten()
    blocks = padded.view(-1, BLOCK)
    scales.copy_(blocks.abs().amax(1))
    levels = _LEVELS[bits]
    size = blocks.abs() / scales.clamp_min(1e-30)[:, None]
    low = (size.sqrt() * levels).floor_()
    up = (size * levels**2 - low.square()) / (2 * low + 1)  # share of the way to the next level
    low += torch.rand(blocks.shape, generator=generator, device=values.device) < up
    k = blocks.sign() * low.clamp_(max=levels)
    if bits == 4:
        first, second = (k + 8).to(torch.uint8).chunk(2, 1)
        codes.copy_((first | (second << 4)).flatten())
    else:
        codes.copy_((k + 128).to(torch.uint8).flatten())
