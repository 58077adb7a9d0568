"""One optimizer's step on one tensor, in place, in little memory: momentum in 4 or 8 bits, weights rounded stochastically.

A bfloat16 weight of 0.02 moves in steps of 0.0001: an update smaller than half of that is lost whenever it is rounded to the
nearest value. Rounded up or down at random, in proportion to the distances, it arrives in expectation (Gupta et al., 2015, arXiv
1502.02551), and no float32 copy of the weights is needed.
"""

from __future__ import annotations

from newllm_lib.ops.backend import runs_triton
from newllm_lib.ops.rounded_step import reference
from newllm_lib.ops.rounded_step.reference import BLOCK, new_momentum, read_momentum, stochastic_round

__all__ = ["BLOCK", "new_momentum", "read_momentum", "rounded_step_", "stochastic_round", "weighted_square_sum"]


def rounded_step_(parameter, direction, momentum, factors, scale, **settings) -> None:
    """Step `parameter` in place; see `reference.rounded_step_` for the arguments. Triton on a GPU, plain torch elsewhere."""
    if runs_triton(parameter) and parameter.is_contiguous():
        from newllm_lib.ops.rounded_step import triton

        return triton.rounded_step_(parameter, direction.contiguous(), momentum, factors, scale, **settings)
    return reference.rounded_step_(parameter, direction, momentum, factors, scale, **settings)


def weighted_square_sum(x, factors):
    """Sum of (x_ij row_i column_j)^2 in float32, without a tensor of x's size."""
    if runs_triton(x):
        from newllm_lib.ops.rounded_step import triton

        return triton.weighted_square_sum(x.contiguous(), factors)
    return reference.weighted_square_sum(x, factors)
