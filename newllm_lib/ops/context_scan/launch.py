"""Launches the scan's kernels: how many chunks of time, in how many passes. For `context_scan` and `gated_scan`."""

from __future__ import annotations

import functools

import torch
import triton

from newllm_lib.ops.backend import on_its_device
from newllm_lib.ops.context_scan import kernels

# BLOCK_DIM: channels a program, two for each thread of its one warp, so that half precision is read in 4-byte words.
# UNROLL: time steps whose inputs are in flight at once. The backward pass reads four tensors: with 8 steps of each, its
# registers let too few programs run together.
FORWARD = dict(BLOCK_DIM=64, UNROLL=8, num_warps=1)
BACKWARD = dict(BLOCK_DIM=64, UNROLL=4, num_warps=1)
MIN_CHUNK = 32  # time steps; shorter chunks cost more in summaries than they win
FULL = 16  # programs a multiprocessor above which cutting time does not pay: it reads the inputs twice


@functools.cache
def multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def count_chunks(programs: int, time: int, device: torch.device) -> int:
    """Chunks of time for about FULL programs a multiprocessor; 1 where batch x dim gives nearly as many by itself."""
    wanted = FULL * multiprocessors(device)
    if 2 * programs > wanted:
        return 1
    return max(1, min(wanted // programs, time // MIN_CHUNK))


def flag_bytes(flags: torch.Tensor | None) -> torch.Tensor | None:
    return None if flags is None else flags.contiguous().view(torch.uint8)


def strides(x: torch.Tensor) -> tuple[int, int, int]:
    """Strides of (batch, time, dim), with 1 for a dim of one channel whatever torch calls its stride."""
    return x.stride(0), x.stride(1), x.stride(2) if x.shape[2] > 1 else 1


class _Plan:
    """Grid and chunking of one scan, and the constants that every pass takes."""

    def __init__(self, x, bias, starts, valid, gated: bool, tile: dict[str, int]):
        self.batch, self.time, self.dim = x.shape
        blocks = self.batch * triton.cdiv(self.dim, tile["BLOCK_DIM"])
        self.chunks = count_chunks(blocks, self.time, x.device)
        self.length = triton.cdiv(self.time, self.chunks)
        self.chunks = triton.cdiv(self.time, self.length)  # none is empty
        self.grid = (blocks, self.chunks)
        self.sizes = self.time, self.dim, self.chunks, self.length
        self.constants = dict(
            GATED=gated, HAS_BIAS=bias is not None, HAS_STARTS=starts is not None, HAS_VALID=valid is not None,
            **tile,
        )  # fmt: skip


def _scan_summaries(product, end, outer):
    """Exit state of every chunk, from what each does to its entry: the same scan over (batch, chunks, dim)."""
    return forward(product, end, None, None, None, outer, gated=False)[0]


@on_its_device
def forward(x, y, bias, starts, valid, initial, gated: bool):
    """c (batch, time, dim) in y's dtype and the final state (batch, dim); sizes as in `kernels`, None if absent."""
    plan = _Plan(x, bias, starts, valid, gated, FORWARD)
    starts, valid = flag_bytes(starts), flag_bytes(valid)
    c = torch.empty(x.shape, dtype=y.dtype, device=y.device)
    final = torch.empty(plan.batch, plan.dim, dtype=torch.float32, device=y.device)
    arguments = (*plan.sizes, *strides(x), *strides(y))
    exits = final
    if plan.chunks > 1:
        product = torch.empty(plan.batch, plan.chunks, plan.dim, dtype=torch.float32, device=y.device)
        end = torch.empty_like(product)
        kernels.scan_forward[plan.grid](
            x, y, bias, starts, valid, None, product, c, product, end, *arguments,
            HAS_INITIAL=False, SUMMARY=True, **plan.constants,
        )  # fmt: skip
        exits = _scan_summaries(product, end, initial)
    kernels.scan_forward[plan.grid](
        x, y, bias, starts, valid, initial, exits, c, final, final, *arguments,
        HAS_INITIAL=initial is not None, SUMMARY=False, **plan.constants,
    )  # fmt: skip
    return c, final


@on_its_device
def backward(x, y, bias, starts, valid, initial, c, dc, dfinal, dx, dy, gated: bool):
    """Fills dx, dy (batch, time, dim, any strides); returns (float32) d bias in partial sums (any, dim) or None, and d initial.

    dc, dfinal: gradients of c and of the final state, None where there is none. d initial: (batch, dim).
    """
    plan = _Plan(x, bias, starts, valid, gated, BACKWARD)
    starts, valid = flag_bytes(starts), flag_bytes(valid)
    dfinal = None if dfinal is None else dfinal.float().contiguous()
    dinitial = torch.empty(plan.batch, plan.dim, dtype=torch.float32, device=x.device)
    dc_ = c if dc is None else dc
    dbias = None
    if bias is not None:
        dbias = torch.empty(plan.batch, plan.chunks, plan.dim, dtype=torch.float32, device=x.device)
    exits = dinitial
    if plan.chunks > 1:
        product = torch.empty(plan.batch, plan.chunks, plan.dim, dtype=torch.float32, device=x.device)
        end = torch.empty_like(product)
        kernels.scan_backward_summary[plan.grid](
            x, bias, starts, valid, dc_, product, end, *plan.sizes, *strides(x), *strides(dc_),
            HAS_DC=dc is not None, **plan.constants,
        )  # fmt: skip
        exits = _scan_summaries(product.flip(1), end.flip(1), dfinal).flip(1).contiguous()
    kernels.scan_backward[plan.grid](
        x, y, bias, starts, valid, initial, c, dc_, dfinal, exits, dx, dy, dbias, dinitial,
        *plan.sizes, *strides(x), *strides(y), *strides(dc_), *strides(dx), *strides(dy),
        HAS_INITIAL=initial is not None, HAS_DC=dc is not None, HAS_DFINAL=dfinal is not None, **plan.constants,
    )  # fmt: skip
    return None if dbias is None else dbias.flatten(0, 1), dinitial
