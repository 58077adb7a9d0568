"""Rotation and attention on one packed projection [q, k, v], with no tensor of its size beside it.

Queries and keys are rotated where they lie, and the three gradients are written side by side, as the projection's own gradient:
nothing is cut apart, copied or joined.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from newllm_lib.ops.common.dispatch import on_its_device
from newllm_lib.ops.hyperbolic_attention import triton as kernels


@triton.jit
def turn(qkv, cos, sin, time, scale, SIGN: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr,
         BLOCK_HEADS: tl.constexpr, BLOCK_HALF: tl.constexpr):  # fmt: skip
    """Rotate the queries (program 0 of axis 1) or keys (1) of one token in place, by SIGN times their angles, times `scale`."""
    row = tl.program_id(0).to(tl.int64)
    head, i = tl.arange(0, BLOCK_HEADS)[:, None], tl.arange(0, BLOCK_HALF)[None, :]
    inside = (head < HEADS) & (i < HALF)
    one = qkv + (row * 3 + tl.program_id(1)) * (HEADS * 2 * HALF) + head * (2 * HALF) + i
    two = one + HALF
    angle = (row % time) * HALF + i
    c = tl.load(cos + angle, mask=i < HALF, other=0.0) * scale
    s = tl.load(sin + angle, mask=i < HALF, other=0.0) * (SIGN * scale)
    x, y = tl.load(one, mask=inside, other=0.0).to(tl.float32), tl.load(two, mask=inside, other=0.0).to(tl.float32)
    tl.store(one, (x * c - y * s).to(qkv.dtype.element_ty), mask=inside)
    tl.store(two, (y * c + x * s).to(qkv.dtype.element_ty), mask=inside)


@on_its_device
def _turn_(qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, scale: float, sign: int) -> None:
    batch, time, width = qkv.shape
    half = width // (6 * heads)
    sizes = dict(HEADS=heads, HALF=half, BLOCK_HEADS=triton.next_power_of_2(heads), BLOCK_HALF=triton.next_power_of_2(half))
    turn[(batch * time, 2)](qkv, cos, sin, time, scale, SIGN=sign, num_warps=4, **sizes)


def _parts(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v (batch, heads, time, dim), views."""
    return tuple(x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in qkv.chunk(3, -1))


class _PackedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, qkv, cos, sin, beta, curvature, starts, window: int, heads: int, scale: float):
        _turn_(qkv, cos, sin, heads, scale, 1)
        q, k, v = _parts(qkv, heads)
        out = qkv.new_empty(*qkv.shape[:2], qkv.shape[2] // 3)
        beta, curvature = beta.contiguous(), curvature.contiguous()
        by_head = out.unflatten(-1, (heads, -1)).transpose(1, 2)
        _, *numbers = kernels.forward(q, k, v, beta, curvature, window, starts, out=by_head)
        ctx.save_for_backward(qkv, cos, sin, beta, curvature, starts, out, *numbers)
        ctx.settings = window, heads, scale
        return out

    @staticmethod
    def backward(ctx, dout):
        qkv, cos, sin, beta, curvature, starts, out, *numbers = ctx.saved_tensors
        window, heads, scale = ctx.settings
        dqkv = torch.empty_like(qkv)
        out, dout = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (out, dout))
        *_, dbeta, dcurvature = kernels.backward(
            *_parts(qkv, heads), beta, curvature, window, starts, out, *numbers, dout, into=_parts(dqkv, heads)
        )
        _turn_(dqkv, cos, sin, heads, scale, -1)
        return dqkv, None, None, dbeta, dcurvature, None, None, None, None


def packed_attention_(
    qkv: Tensor, rotation: tuple[Tensor, Tensor], beta: Tensor, curvature: Tensor, *, window: int, heads: int, scale: float,
    starts: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """`hyperbolic_attention` of queries and keys rotated by their position and scaled.

    Args:
        qkv: (batch, time, 3 heads dim), contiguous; it is used up: its queries and keys are rotated in place.
        rotation: cos and sin (time, dim / 2), float32. scale: of the rotated queries and keys.
        beta, curvature, window, starts: as for `hyperbolic_attention`.
    Returns:
        (batch, time, heads dim).
    """
    cos, sin = (x.contiguous() for x in rotation)
    return _PackedAttention.apply(qkv.contiguous(), cos, sin, beta, curvature, starts, window, heads, scale)
