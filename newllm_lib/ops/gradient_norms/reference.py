"""The norms in plain torch: what the kernels compute."""

from __future__ import annotations

import torch
from torch import Tensor

TINY = 1e-30  # keeps an average of zeros from being divided by


def squares(x: Tensor) -> tuple[Tensor, Tensor]:
    return tuple(torch.linalg.vector_norm(x, dim=dim, dtype=torch.float32).square_() for dim in (1, 0))


def clip(
    known: Tensor,
    place: int,
    square: Tensor,
    max_norm: float,
    loss_scale: Tensor | None = None,
    skipped: Tensor | None = None,
) -> Tensor:
    square = square.reshape(())
    if loss_scale is not None:
        square = square / loss_scale / loss_scale
        skipped[place] = ~square.isfinite()
        square, scaled = torch.where(square.isfinite(), square, known[place]), square * 0 + loss_scale
        return clip(known, place, square, max_norm) / scaled
    known[place] = square
    norm = known.sum().sqrt()
    limit = max_norm / (norm + 1e-6) if max_norm else torch.ones_like(norm)
    return torch.where(norm.isfinite(), limit.clamp(max=1.0), torch.nan).reshape(1)


def second_moment(squares, row, column, scale, weight, unbias, numbers=None):
    unbias = unbias if numbers is None else numbers[3]
    weight = weight * scale.isfinite()  # 0: the averages stay as they are
    for average, sums, count in ((row, squares[0], len(column)), (column, squares[1], len(row))):
        average.lerp_((sums * scale.square() / count).nan_to_num_().add_(TINY), weight)
    row, column = row / unbias, column / unbias
    return (row / row.mean().clamp_(min=TINY)).rsqrt_(), column.rsqrt_()


def limited(x, factors, scale):
    rows, columns = factors
    total = (x.float() * rows[:, None] * columns).square().sum().reshape(1)
    return scale / (total.div_(x.numel()).sqrt_() * scale).clamp_(min=1.0)
