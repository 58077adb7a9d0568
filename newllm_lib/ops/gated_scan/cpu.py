"""`gated_scan` on the CPU: plain torch with its gradient by hand, in a third of autograd's passes.

With x the forget gate's input, s = silu(input), a = sigmoid(x), b = sigmoid(-x) and g the gradient by the
context's scan:

    c_t = a_t c_{t-1} + b_t s_t      d input = g b silu'(input)      d x = g (c_{t-1} - s) a b

A document's start (a = 0, b = 1) and padding (a = 1, b = 0) need no case of their own: there a b is 0.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from newllm_lib.ops.common.linear_scan import scan

_silu_gradient = torch.ops.aten.silu_backward


def _gates(forget, bias, doc_starts, mask) -> tuple[Tensor, Tensor]:
    x = forget.clone(memory_format=torch.contiguous_format) if bias is None else forget + bias
    share = torch.neg(x).sigmoid_()  # 1 - keep would lose the digits of a gate near 1
    keep = x.sigmoid_()
    if doc_starts is not None and doc_starts.any():
        keep.masked_fill_(doc_starts.unsqueeze(-1), 0.0)
        share.masked_fill_(doc_starts.unsqueeze(-1), 1.0)
    if mask is not None and not mask.all():
        keep.masked_fill_(~mask.unsqueeze(-1), 1.0)
        share.masked_fill_(~mask.unsqueeze(-1), 0.0)
    return keep, share


def inverse_norm(x: Tensor, eps: float) -> Tensor:
    """1 / sqrt(mean(x^2) + eps) over the last dimension, which stays with size 1."""
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()


def through_the_norm(gradient: Tensor, normal: Tensor, inverse: Tensor) -> Tensor:
    """The gradient of x by that of its normalised form (which is overwritten): normal = x * inverse."""
    share = (gradient * normal).sum(-1, keepdim=True).div_(-normal.shape[-1])
    return gradient.addcmul_(normal, share).mul_(inverse)


class _GatedScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, projection, bias, weight, doc_starts, mask, initial, eps):
        ctx.set_materialize_grads(False)
        input, forget, gate = projection.chunk(3, -1)
        keep, share = _gates(forget, bias, doc_starts, mask)
        written = F.silu(input)
        c = scan(keep, share * written, initial)
        inverse = inverse_norm(c, eps)
        y = F.silu(gate).mul_(weight).mul_(c).mul_(inverse)
        ctx.save_for_backward(projection, weight, keep, share, written, c, inverse, initial)
        ctx.has_bias = bias is not None
        return y, c, c[:, -1].clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy, dc, dfinal):
        projection, weight, keep, share, written, c, inverse, initial = ctx.saved_tensors
        input, _, gate = projection.chunk(3, -1)
        gradient, dweight = torch.empty_like(projection), None
        dinput, dforget, dgate = gradient.chunk(3, -1)
        if dy is None:
            dgate.zero_()
            dc = torch.zeros_like(c) if dc is None else dc
        else:
            opened, normal = F.silu(gate), c * inverse
            product = dy * normal
            dweight = torch.mul(product, opened).sum((0, 1))
            dgate.copy_(_silu_gradient(product.mul_(weight), gate))
            from_readout = through_the_norm(opened.mul_(weight).mul_(dy), normal, inverse)
            dc = from_readout if dc is None else from_readout.add_(dc)
        g = scan(keep, dc, torch.zeros_like(initial) if dfinal is None else dfinal, True)
        dinput.copy_(_silu_gradient(g * share, input))
        dx = torch.neg(written)
        dx[:, 0] += initial
        dx[:, 1:] += c[:, :-1]
        dforget.copy_(dx.mul_(g).mul_(keep).mul_(share))
        dbias = dx.sum((0, 1)) if ctx.has_bias else None
        return gradient, dbias, dweight, None, None, g[:, 0] * keep[:, 0], None


def gated_scan(projection, forget_bias, norm_weight, doc_starts, mask, initial_state, eps):
    """As `gated_scan.gated_scan`, where `runs_cpu_kernel` says so; the state in the projection's dtype."""
    if initial_state is None:
        initial_state = projection.new_zeros(projection.shape[0], projection.shape[2] // 3)
    return _GatedScan.apply(projection, forget_bias, norm_weight, doc_starts, mask, initial_state, eps)
