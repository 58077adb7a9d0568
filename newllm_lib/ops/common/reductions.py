"""A parameter's gradient from partial sums, a row from each program (torch is slow at many short rows)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from newllm_lib.ops.common.dispatch import on_device_of_first_argument

_ROWS, _WARPS = 256, 8


@triton.jit
def sum_partials(partials, out, rows, columns, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr):
    o_c = tl.program_id(0) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    b_sum = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
    for start in range(0, rows, BLOCK_ROWS):
        o_r = start + tl.arange(0, BLOCK_ROWS)
        m_x = (o_r < rows)[:, None] & (o_c < columns)[None, :]
        b_sum += tl.load(partials + o_r[:, None] * columns + o_c[None, :], mask=m_x, other=0.0)
    tl.store(out + o_c, tl.sum(b_sum, 0), mask=o_c < columns)


@on_device_of_first_argument
def sum_rows(partials: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """(rows, columns) float32 -> (columns,) in the dtype of `like`, always in the same order."""
    out = torch.empty(partials.shape[1], dtype=like.dtype, device=partials.device)
    block_rows, block_columns = (_ROWS, 8) if partials.shape[0] >= 128 else (16, 64)
    grid = (triton.cdiv(partials.shape[1], block_columns),)
    sum_partials[grid](
        partials.contiguous(),
        out,
        *partials.shape,
        BLOCK_ROWS=block_rows,
        BLOCK_COLUMNS=block_columns,
        num_warps=_WARPS,
    )
    return out
