"""What several operations' kernels share: fast exponentials, rows in flight, strides, a GPU's size."""

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
def load_rows(row, stride_time, stride_dim, dims, mask, UNROLL: tl.constexpr, STEP: tl.constexpr):
    """UNROLL rows from `row` on, forward or backward (STEP 1 or -1), as a tuple of float32 vectors."""
    rows = ()
    for u in tl.static_range(UNROLL):
        rows = rows + (
            tl.load(row + u * STEP * stride_time + dims * stride_dim, mask=mask, other=0.0).to(tl.float32),
        )
    return rows


@triton.jit
def load_flags(flags, place, STORED: tl.constexpr, UNROLL: tl.constexpr, STEP: tl.constexpr):
    """The bytes at `place` and after (or before) it, for UNROLL steps: which are set? None: all."""
    found = ()
    for u in tl.static_range(UNROLL):
        if STORED:
            found = found + (tl.load(flags + place + u * STEP) != 0,)
        else:
            found = found + (True,)
    return found


@functools.cache
def multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def flag_bytes(flags: torch.Tensor | None) -> torch.Tensor | None:
    return None if flags is None else flags.contiguous().view(torch.uint8)


def strides(x: torch.Tensor) -> tuple[int, int, int]:
    """Strides of (batch, time, dim), with 1 for a dim of one channel whatever torch calls its stride."""
    return x.stride(0), x.stride(1), x.stride(2) if x.shape[2] > 1 else 1
