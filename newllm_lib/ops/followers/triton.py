"""`followers` as one Triton kernel: a program compares one token with the places before it; those that match are few."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from newllm_lib.ops.common.dispatch import on_its_device

_BLOCK = 1024


@triton.jit
def _followers(words, place, first, one, two, time, length, size, reach, log2_keep, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    text = words + (row // time) * length
    here, begin = tl.load(place + row), tl.load(first + row)
    now = tl.load(text + here, mask=here >= 0, other=0)
    earlier = tl.load(text + here - 1, mask=here > begin, other=0)
    lowest = tl.where(now > 0, tl.maximum(begin + 1, here - reach + 2), here + 1)
    for start in range(lowest, here + 1, BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside = at <= here
        word = tl.load(text + at, mask=inside, other=1) - 1
        same = inside & (tl.load(text + at - 1, mask=inside, other=0) == now)
        share = tl.exp2((here - at).to(tl.float32) * log2_keep)
        tl.atomic_add(one + row * size + word, share, mask=same)
        two_before = tl.load(text + at - 2, mask=inside & (at > tl.maximum(begin + 1, here - reach + 2)), other=0)
        further = same & (two_before == earlier) & (two_before > 0)
        tl.atomic_add(two + row * size + word, share, mask=further)


def followers(words, place, first, reach, keep, size):
    """As `reference.followers`."""
    return _operator(words.contiguous(), place.contiguous(), first.contiguous(), reach, keep, size)


@torch.library.custom_op("newllm::followers", mutates_args=())
def _operator(words: Tensor, place: Tensor, first: Tensor, reach: int, keep: float, size: int) -> tuple[Tensor, Tensor]:
    return _launched(words, place, first, reach, keep, size)


@_operator.register_fake
def _(words, place, first, reach, keep, size):
    return _outputs(words, place, size)


def _outputs(words: Tensor, place: Tensor, size: int) -> tuple[Tensor, Tensor]:
    batch, time = place.shape
    one = torch.zeros(batch, time, size, device=words.device)
    return one, torch.zeros_like(one)


@on_its_device
def _launched(words, place, first, reach, keep, size):
    outputs = _outputs(words, place, size)
    time, length = place.shape[1], words.shape[1]
    _followers[(place.numel(),)](
        words, place, first, *outputs, time, length, size, reach, math.log2(max(keep, 1e-30)), BLOCK=_BLOCK, num_warps=4
    )
    return outputs
