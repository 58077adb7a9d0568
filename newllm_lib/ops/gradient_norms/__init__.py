"""What a step needs of a gradient first: its norms, by row and by column, and its scale for clipping.

In plain torch that is some thirty small kernels for each matrix, most of them waited for longer than they
run; with Triton it is six, and the gradient is read twice.
"""

from __future__ import annotations

import torch

from newllm_lib.ops.common.dispatch import Operation, runs_triton
from newllm_lib.ops.gradient_norms import reference

_implementation = Operation(reference)


@_implementation.register(runs_triton)
def _triton():
    from newllm_lib.ops.gradient_norms import triton

    return triton


def squares(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums of squares of a matrix (rows, columns), float32: of its rows (rows,), its columns (columns,)."""
    return _implementation(x).squares(x)


def clip(
    known: torch.Tensor,
    place: int,
    square: torch.Tensor,
    max_norm: float,
    loss_scale: torch.Tensor | None = None,
    skipped: torch.Tensor | None = None,
) -> torch.Tensor:
    """Put a gradient's squared norm among the known ones, and say by how much to scale it.

    Args:
        known: (tensors,) float32 squared norms; known[place] becomes `square` (one element).
        max_norm: 0: nothing is clipped.
        loss_scale: a scalar by which the gradient was multiplied: it is divided out, also of `square`. A
            gradient that overflowed then leaves known[place] as it is.
        skipped: with `loss_scale`, (tensors,) float32: skipped[place] becomes 1 for such a gradient, else 0.

    Returns:
        (1,) float32: min(1, max_norm / norm of all), or NaN where that norm, or this gradient, is not finite.
    """
    return _implementation(known).clip(known, place, square, max_norm, loss_scale, skipped)


def second_moment(
    squares: tuple[torch.Tensor, torch.Tensor],
    row: torch.Tensor,
    column: torch.Tensor,
    scale: torch.Tensor,
    weight: float,
    unbias: float,
    numbers: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Update Adafactor's averages of a squared gradient in place; returns the gradient's divisor.

    Args:
        squares: as `squares` gives them for the gradient before it is scaled.
        row: the rows' averages, float32.
        column: the columns', float32.
        scale: (1,) of the gradient; if it is no finite number the averages stay.
        weight: of the new squares in the averages.
        unbias: what the averages' weights sum to.
        numbers: `stochastic_rounding.step_numbers` on the device, to take it from instead.

    Returns:
        (rows,), (columns,) by which the gradient's rows and columns are to be multiplied.
    """
    return _implementation(row).second_moment(squares, row, column, scale, weight, unbias, numbers)


def limited(x: torch.Tensor, factors: tuple[torch.Tensor, torch.Tensor], scale: torch.Tensor) -> torch.Tensor:
    """(1,): `scale`, divided by the root mean square of scale x_ij row_i column_j where that is above 1."""
    return _implementation(x).limited(x, factors, scale)
