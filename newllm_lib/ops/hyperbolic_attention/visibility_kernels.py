"""`visibility` on a GPU: one small kernel each, where plain torch starts a dozen."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from newllm_lib.ops.common.dispatch import on_its_device

_BLOCK = 1024  # positions at a time


@triton.jit
def _larger(a, b):
    return tl.maximum(a, b)


@triton.jit(do_not_specialize=["time", "window"])
def find_first(starts, first, time, window, BLOCK: tl.constexpr):
    """One program a row: the last document start so far, carried from block to block, or where the window begins."""
    row = tl.program_id(0).to(tl.int64) * time
    carried = 0
    for begin in range(0, time, BLOCK):
        place = begin + tl.arange(0, BLOCK)
        starts_here = tl.load(starts + row + place, mask=place < time, other=0) != 0
        start = tl.associative_scan(tl.where(starts_here, place, 0), 0, _larger)
        start = tl.maximum(start, carried)
        carried = tl.max(start, 0)
        tl.store(first + row + place, tl.maximum(start, place - (window - 1)), mask=place < time)


@triton.jit(do_not_specialize=["time"])
def find_last(first, last, time, STEPS: tl.constexpr, BLOCK: tl.constexpr):
    """How many positions' first is not behind each position, by bisection (first never falls), less one."""
    row = tl.program_id(0).to(tl.int64) * time
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    low, high = tl.zeros((BLOCK,), tl.int32), tl.zeros((BLOCK,), tl.int32) + time
    for _ in range(STEPS):
        open_ = low < high
        middle = (low + high) // 2
        seen = tl.load(first + row + middle, mask=open_, other=0) <= place
        low, high = tl.where(open_ & seen, middle + 1, low), tl.where(open_ & (seen == 0), middle, high)
    tl.store(last + row + place, low - 1, mask=place < time)


@on_its_device
def first_visible(starts: Tensor, window: int) -> Tensor:
    """As `visibility.first_visible`, for starts (batch, time) on a GPU."""
    batch, time = starts.shape
    first = torch.empty(batch, time, dtype=torch.int32, device=starts.device)
    find_first[(batch,)](starts.contiguous().view(torch.uint8), first, time, window, BLOCK=_BLOCK, num_warps=4)
    return first


@on_its_device
def last_seeing(first: Tensor) -> Tensor:
    """As `visibility.last_seeing`, for first (batch, time) without gaps."""
    batch, time = first.shape
    last = torch.empty_like(first)
    grid = batch, triton.cdiv(time, _BLOCK)
    find_last[grid](first, last, time, STEPS=time.bit_length(), BLOCK=_BLOCK, num_warps=4)
    return last
