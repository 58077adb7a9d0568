"""The MLP with squared ReLU on any GPU that Triton knows: the products are cuBLAS's, one kernel lies between.

Only the squares s = relu(h)^2 are kept for the backward pass, as in `triton.py`. No tensor-core dot, so it
runs from sm70 on. Plain torch would write relu(h) too, and three tensors of that size on the way back.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from newllm_lib.ops.common.dispatch import on_device_of_first_argument

_TILE = 2048  # elements a program


@triton.jit
def relu2_forward(h, out, count, BLOCK: tl.constexpr):
    """out = relu(h)^2."""
    o_x = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    b_x = tl.load(h + o_x, mask=o_x < count, other=0.0).to(tl.float32)
    b_x = tl.maximum(b_x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    tl.store(out + o_x, (b_x * b_x).to(out.dtype.element_ty), mask=o_x < count)


@triton.jit
def relu2_backward(upstream, squares, out, count, BLOCK: tl.constexpr):
    """out = upstream * 2 sqrt(squares)."""
    o_x = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    b_s = tl.load(squares + o_x, mask=o_x < count, other=0.0).to(tl.float32)
    b_g = tl.load(upstream + o_x, mask=o_x < count, other=0.0).to(tl.float32)
    tl.store(out + o_x, (b_g * 2.0 * tl.sqrt(b_s)).to(out.dtype.element_ty), mask=o_x < count)


@on_device_of_first_argument
def _elementwise(x: Tensor, kernel, *others: Tensor) -> Tensor:
    """What the kernel makes of tensors of one size without gaps."""
    out = torch.empty_like(x)
    kernel[(triton.cdiv(x.numel(), _TILE),)](x, *others, out, x.numel(), BLOCK=_TILE, num_warps=8)
    return out


class _Relu2(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h: Tensor) -> Tensor:
        squares = _elementwise(h.contiguous(), relu2_forward)
        ctx.save_for_backward(squares)
        return squares

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream: Tensor) -> Tensor:
        return _elementwise(upstream.contiguous(), relu2_backward, *ctx.saved_tensors)


def relu2_mlp(x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Sizes as in `relu2_mlp.relu2_mlp`, all three of one dtype."""
    return F.linear(_Relu2.apply(F.linear(x, up)), down)
