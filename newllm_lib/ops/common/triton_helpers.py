"""What several operations' kernels share: fast exponentials, rows in flight, a GPU's size.

Names in all kernels are those of flash-linear-attention: a tensor that is passed in keeps its plain name,
`p_` is a pointer into one, `b_` a block in registers, `o_` offsets, `m_` a mask, `i_` a program's index.
"""

from __future__ import annotations

import functools
import os

import torch
import triton
import triton.language as tl

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")  # which knows no instructions


@triton.jit
def exp2(x):
    """2^x by the special-function unit, 0 below 2^-126 (tl.exp2 spends three more instructions there)."""
    if INTERPRETED:
        return tl.exp2(x)
    return tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)) to 3e-7, as a squared reciprocal root: 5 instructions instead of 12."""
    root = tl.rsqrt(1.0 + exp2(x * -LOG2_E))
    return root * root


@triton.jit
def sigmoid_pair(x):
    """sigmoid(x) and 1 - sigmoid(x) in full precision: subtracting loses the digits of a gate near 1."""
    e = exp2(tl.minimum(x * -LOG2_E, 126.0, propagate_nan=tl.PropagateNan.ALL))  # at 128 it would be infinite
    root = tl.rsqrt(1.0 + e)
    keep = root * root
    return keep, e * keep


@triton.jit
def load_rows(p_row, stride_t, o_d, m_d, UNROLL: tl.constexpr, STEP: tl.constexpr):
    """UNROLL rows from `row` on, forward or backward (STEP 1 or -1), as a tuple of float32 vectors."""
    b_rows = ()
    for u in tl.static_range(UNROLL):
        b_rows = b_rows + (tl.load(p_row + u * STEP * stride_t + o_d, mask=m_d, other=0.0).to(tl.float32),)
    return b_rows


@triton.jit
def load_flags(flags, o_flag, STORED: tl.constexpr, UNROLL: tl.constexpr, STEP: tl.constexpr):
    """The bytes at `place` and after (or before) it, for UNROLL steps: which are set? None: all."""
    m_found = ()
    for u in tl.static_range(UNROLL):
        if STORED:
            m_found = m_found + (tl.load(flags + o_flag + u * STEP) != 0,)
        else:
            m_found = m_found + (True,)
    return m_found


@functools.cache
def multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def flag_bytes(flags: torch.Tensor | None) -> torch.Tensor | None:
    return None if flags is None else flags.contiguous().view(torch.uint8)


def rows_together(x: torch.Tensor) -> torch.Tensor:
    """x itself if its last dimension lies without gaps, else a copy."""
    return x if x.stride(-1) == 1 else x.contiguous()


def strided_like(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """x itself if it lies in memory as `like` does, else a copy that does."""
    return x if x.stride() == like.stride() else torch.empty_like(like).copy_(x)


def row_tile(dim: int, elements: int) -> dict[str, int]:
    """Of kernels that take whole rows of `dim` channels: rows for about `elements`, and warps."""
    block = triton.next_power_of_2(dim)
    return dict(ROWS=max(1, elements // block), BLOCK_DIM=block, num_warps=4 if block <= 4096 else 8)


def strides(*tensors: torch.Tensor) -> list[int]:
    """Strides of tensors (batch, heads, time, dim) but for the last, which is 1."""
    return [stride for x in tensors for stride in x.stride()[:3]]
