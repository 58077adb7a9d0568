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
    o_r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    o_c = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    m_x = (o_r < rows)[:, None] & (o_c < columns)[None, :]
    b_x = tl.load(x + o_r.to(tl.int64)[:, None] * columns + o_c[None, :], mask=m_x, other=0.0).to(tl.float32)
    b_x = b_x * b_x
    tl.store(by_row + tl.program_id(1) * rows + o_r, tl.sum(b_x, 1), mask=o_r < rows)
    tl.store(by_column + tl.program_id(0) * columns + o_c, tl.sum(b_x, 0), mask=o_c < columns)


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
    b_mine, undo = tl.load(square), 1.0
    if SCALED:
        undo = 1.0 / tl.load(loss_scale)
        b_mine = b_mine * undo * undo
        finite = b_mine < float("inf")  # false for NaN
        tl.store(skipped + place, tl.where(finite, 0.0, 1.0))
        b_mine = tl.where(finite, b_mine, tl.load(known + place))
        undo = tl.where(finite, undo, float("nan"))
    b_sum = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, count, BLOCK):
        o_i = start + tl.arange(0, BLOCK)
        b_known = tl.load(known + o_i, mask=o_i < count, other=0.0)
        b_sum += tl.where(o_i == place, b_mine, b_known)
    norm = tl.sqrt(tl.sum(b_sum, 0))
    limit = 1.0
    if CLIPS:
        limit = tl.minimum(max_norm / (norm + 1e-6), 1.0)
    tl.store(known + place, b_mine)
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
def _averaged(average, sums, o_x, m_x, share, scale, weight, TINY: tl.constexpr):
    """The average after its update (not where the scale is no finite number), stored."""
    b_old = tl.load(average + o_x, mask=m_x, other=0.0)
    b_new = tl.load(sums + o_x, mask=m_x, other=0.0) * (scale * scale * share) + TINY
    b_new = tl.where(tl.abs(scale) < float("inf"), b_old + weight * (b_new - b_old), b_old)
    tl.store(average + o_x, b_new, mask=m_x)
    return b_new


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
        b_sum = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, rows, BLOCK):
            o_x = start + tl.arange(0, BLOCK)
            b_new = _averaged(row, row_sums, o_x, o_x < rows, 1.0 / columns, scale, weight, TINY)
            b_sum += tl.where(o_x < rows, b_new, 0.0)
        b_mean = tl.maximum(tl.sum(b_sum, 0) / rows / unbias, TINY)
        tl.debug_barrier()  # what one thread stored above another may load below
        for start in range(0, rows, BLOCK):
            o_x = start + tl.arange(0, BLOCK)
            b_x = tl.load(row + o_x, mask=o_x < rows, other=1.0)
            tl.store(row_factor + o_x, tl.rsqrt(b_x / unbias / b_mean), mask=o_x < rows)
    else:
        o_x = (tl.program_id(0) - 1) * BLOCK + tl.arange(0, BLOCK)
        b_x = _averaged(column, column_sums, o_x, o_x < columns, 1.0 / rows, scale, weight, TINY)
        tl.store(column_factor + o_x, tl.rsqrt(b_x / unbias), mask=o_x < columns)


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
    o_r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    o_c = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    m_r, m_c = o_r < rows, o_c < columns
    o_x = o_r.to(tl.int64)[:, None] * columns + o_c[None, :]
    b_x = tl.load(x + o_x, mask=m_r[:, None] & m_c[None, :], other=0.0).to(tl.float32)
    b_x *= tl.load(column_factor + o_c, mask=m_c, other=0.0)[None, :]
    b_x *= tl.load(row_factor + o_r, mask=m_r, other=0.0)[:, None]
    b_sum = tl.sum(tl.sum(b_x * b_x, 1), 0)
    tl.store(partial + tl.program_id(0) * tl.num_programs(1) + tl.program_id(1), b_sum)


@triton.jit
def limit_scale(partial, scale_at, out, count, numel, BLOCK: tl.constexpr):
    b_sum = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, count, BLOCK):
        o_i = start + tl.arange(0, BLOCK)
        b_sum += tl.load(partial + o_i, mask=o_i < count, other=0.0)
    scale = tl.load(scale_at)
    spread = tl.sqrt(tl.sum(b_sum, 0) / numel) * scale
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
