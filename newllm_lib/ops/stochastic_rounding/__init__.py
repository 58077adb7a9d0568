"""One optimizer's step on one tensor, in place: momentum in 4 or 8 bits, stochastic rounding.

A bfloat16 weight of 0.02 moves in steps of 0.0001: an update smaller than half of that is lost whenever it is
rounded to the nearest value. Rounded up or down at random, in proportion to the distances, it arrives in
expectation (Gupta et al., 2015, arXiv 1502.02551), and no float32 copy of the weights is needed. float16,
with three bits more, moves in steps of 0.000015 there.
"""

from __future__ import annotations

from newllm_lib.ops.common.dispatch import Operation, runs_triton
from newllm_lib.ops.stochastic_rounding import reference
from newllm_lib.ops.stochastic_rounding.reference import (
    BLOCK,
    AdamStep,
    RoundedStep,
    new_momentum,
    read_momentum,
    step_numbers,
    stochastic_round,
)

__all__ = [
    "BLOCK",
    "AdamStep",
    "RoundedStep",
    "adam_step_",
    "new_momentum",
    "read_momentum",
    "rounded_step_",
    "step_numbers",
    "stochastic_round",
]


_implementation = Operation(reference)


@_implementation.register(lambda parameter: runs_triton(parameter) and parameter.is_contiguous())
def _triton():
    from newllm_lib.ops.stochastic_rounding import triton

    return triton


def rounded_step_(parameter, direction, momentum, factors, scale, how: RoundedStep, bits: int) -> None:
    """Step `parameter` in place; arguments as `reference.rounded_step_`. Triton on a GPU, else torch."""
    _implementation(parameter).rounded_step_(parameter, direction, momentum, factors, scale, how, bits)


def adam_step_(parameter, gradient, second, momentum, scale, how: AdamStep) -> None:
    """Step a small tensor with unrounded moments in place; arguments as `reference.adam_step_`."""
    _implementation(parameter).adam_step_(parameter, gradient, second, momentum, scale, how)
