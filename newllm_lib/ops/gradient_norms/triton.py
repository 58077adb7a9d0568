"""The norms on a GPU: tiles of whole cache lines, and partial sums in a fixed order.

No tensor-core dot, so it runs from sm70 on.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from newllm_lib.ops.common.dispatch import on_device_of_first_argument
from newllm_lib.ops.common.reductions import sum_rows
from newllm_lib.ops.gradient_norms.reference import TINY

_ROWS, _COLUMNS = 64, 256  # of a tile
_VECTOR = 1024  # elements of a vector that one program holds at a time


@triton.jit
def tile_squares(x, by_row, by_column, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """by_row (tiles across, rows), by_column (tiles down, columns): each tile's share."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    value = tl.load(x + row.to(tl.int64)[:, None] * columns + column[None, :], mask=inside, other=0.0).to(
        tl.float32
    )
    value = value * value
    tl.store(by_row + tl.program_id(1) * rows + row, tl.sum(value, 1), mask=row < rows)
    tl.store(by_column + tl.program_id(0) * columns + column, tl.sum(value, 0), mask=column < columns)


@on_device_of_first_argument
def squares(x: Tensor) -> tuple[Tensor, Tensor]:
    """As `gradient_norms.squares`."""
    x, (rows, columns) = x.contiguous(), x.shape
    down, across = triton.cdiv(rows, _ROWS), triton.cdiv(columns, _COLUMNS)
    by_row = torch.empty(across, rows, device=x.device, dtype=torch.float32)
    by_column = torch.empty(down, columns, device=x.device, dtype=torch.float32)
    tile_squares[(down, across)](
        x, by_row, by_column, rows, columns, ROWS=_ROWS, COLUMNS=_COLUMNS, num_warps=8
    )
    return sum_rows(by_row, by_row), sum_rows(by_column, by_column)


@triton.jit(do_not_specialize=["place"])
def clip_scale(
    known,
    square,
    loss_scale,
    skipped,
    scale,
    place,
    count,
    max_norm,
    CLIPS: tl.constexpr,
    SCALED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    mine, undo = tl.load(square), 1.0
    if SCALED:
        undo = 1.0 / tl.load(loss_scale)
        mine = mine * undo * undo
        finite = mine < float("inf")  # false for NaN
        tl.store(skipped + place, tl.where(finite, 0.0, 1.0))
        mine = tl.where(finite, mine, tl.load(known + place))
        undo = tl.where(finite, undo, float("nan"))
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, count, BLOCK):
        index = start + tl.arange(0, BLOCK)
        value = tl.load(known + index, mask=index < count, other=0.0)
        total += tl.where(index == place, mine, value)
    norm = tl.sqrt(tl.sum(total, 0))
    limit = 1.0
    if CLIPS:
        limit = tl.minimum(max_norm / (norm + 1e-6), 1.0)
    tl.store(known + place, mine)
    tl.store(scale, tl.where(norm < float("inf"), limit * undo, float("nan")))


@on_device_of_first_argument
def clip(
    known: Tensor,
    place: int,
    square: Tensor,
    max_norm: float,
    loss_scale: Tensor | None = None,
    skipped: Tensor | None = None,
) -> Tensor:
    """As `gradient_norms.clip`."""
    scale, scaled = torch.empty(1, device=known.device, dtype=torch.float32), loss_scale is not None
    clip_scale[(1,)](
        known,
        square,
        loss_scale if scaled else known,
        skipped if scaled else known,
        scale,
        place,
        len(known),
        max_norm,
        CLIPS=max_norm > 0,
        SCALED=scaled,
        BLOCK=_VECTOR,
        num_warps=4,
    )
    return scale


@triton.jit
def _averaged(average, sums, place, inside, share, scale, weight, TINY: tl.constexpr):
    """The average after its update (not where the scale is no finite number), stored."""
    old = tl.load(average + place, mask=inside, other=0.0)
    new = tl.load(sums + place, mask=inside, other=0.0) * (scale * scale * share) + TINY
    new = tl.where(tl.abs(scale) < float("inf"), old + weight * (new - old), old)
    tl.store(average + place, new, mask=inside)
    return new


@triton.jit(do_not_specialize=["weight", "unbias"])
def moment(
    row_sums,
    column_sums,
    row,
    column,
    row_factor,
    column_factor,
    scale_at,
    numbers,
    rows,
    columns,
    weight,
    unbias,
    TINY: tl.constexpr,
    STORED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program for the rows, whose mean it needs, and others for a block of columns each."""
    scale = tl.load(scale_at)
    if STORED:
        unbias = tl.load(numbers + 3)
    if tl.program_id(0) == 0:
        total = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, rows, BLOCK):
            place = start + tl.arange(0, BLOCK)
            new = _averaged(row, row_sums, place, place < rows, 1.0 / columns, scale, weight, TINY)
            total += tl.where(place < rows, new, 0.0)
        mean = tl.maximum(tl.sum(total, 0) / rows / unbias, TINY)
        tl.debug_barrier()  # what one thread stored above another may load below
        for start in range(0, rows, BLOCK):
            place = start + tl.arange(0, BLOCK)
            value = tl.load(row + place, mask=place < rows, other=1.0)
            tl.store(row_factor + place, tl.rsqrt(value / unbias / mean), mask=place < rows)
    else:
        place = (tl.program_id(0) - 1) * BLOCK + tl.arange(0, BLOCK)
        value = _averaged(column, column_sums, place, place < columns, 1.0 / rows, scale, weight, TINY)
        tl.store(column_factor + place, tl.rsqrt(value / unbias), mask=place < columns)


def second_moment(squares, row, column, scale, weight, unbias, numbers=None):
    """As `gradient_norms.second_moment`."""
    factors = torch.empty_like(row), torch.empty_like(column)
    with torch.cuda.device_of(row):
        moment[(1 + triton.cdiv(len(column), _VECTOR),)](
            *squares,
            row,
            column,
            *factors,
            scale,
            scale if numbers is None else numbers,
            len(row),
            len(column),
            weight,
            unbias,
            TINY=TINY,
            STORED=numbers is not None,
            BLOCK=_VECTOR,
            num_warps=8,
        )
    return factors


@triton.jit
def tile_weighted(
    x, row_factor, column_factor, partial, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    row_in, column_in = row < rows, column < columns
    place = row.to(tl.int64)[:, None] * columns + column[None, :]
    value = tl.load(x + place, mask=row_in[:, None] & column_in[None, :], other=0.0).to(tl.float32)
    value *= tl.load(column_factor + column, mask=column_in, other=0.0)[None, :]
    value *= tl.load(row_factor + row, mask=row_in, other=0.0)[:, None]
    total = tl.sum(tl.sum(value * value, 1), 0)
    tl.store(partial + tl.program_id(0) * tl.num_programs(1) + tl.program_id(1), total)


@triton.jit
def limit_scale(partial, scale_at, out, count, numel, BLOCK: tl.constexpr):
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, count, BLOCK):
        index = start + tl.arange(0, BLOCK)
        total += tl.load(partial + index, mask=index < count, other=0.0)
    scale = tl.load(scale_at)
    spread = tl.sqrt(tl.sum(total, 0) / numel) * scale
    tl.store(out, tl.where(spread > 1.0, scale / spread, scale))


@on_device_of_first_argument
def limited(x: Tensor, factors: tuple[Tensor, Tensor], scale: Tensor) -> Tensor:
    """As `gradient_norms.limited`."""
    x, (rows, columns) = x.contiguous(), x.shape
    grid = triton.cdiv(rows, _ROWS), triton.cdiv(columns, _COLUMNS)
    partial = torch.empty(grid[0] * grid[1], device=x.device, dtype=torch.float32)
    tile_weighted[grid](x, *factors, partial, rows, columns, ROWS=_ROWS, COLUMNS=_COLUMNS, num_warps=8)
    out = torch.empty_like(scale)
    limit_scale[(1,)](partial, scale, out, len(partial), x.numel(), BLOCK=_VECTOR, num_warps=8)
    return out
