"""`add_norm` and `add_norm_conv` on the CPU: plain torch with gradients by hand, half the passes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from newllm_lib.ops.gated_scan.cpu import inverse_norm, through_the_norm


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, residual, weight, eps):
        ctx.set_materialize_grads(False)
        r = x if residual is None else x + residual
        inverse = inverse_norm(r, eps)
        ctx.save_for_backward(r, inverse, weight)
        ctx.has_residual = residual is not None
        return r.view_as(r) if residual is None else r, (r * inverse).mul_(weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dr, dn):
        if dn is None:
            return dr, dr if ctx.has_residual else None, None, None
        r, inverse, weight = ctx.saved_tensors
        dx, dweight = _norm_gradients(r, inverse, weight, dn, dr)
        return dx, dx if ctx.has_residual else None, dweight, None


def _norm_gradients(r, inverse, weight, dn, dr) -> tuple[Tensor, Tensor]:
    normal = r * inverse
    dweight = (dn * normal).flatten(0, -2).sum(0)
    dx = through_the_norm(dn * weight, normal, inverse)
    return dx if dr is None else dx.add_(dr), dweight


def _masks(doc_starts: Tensor | None, width: int) -> list[Tensor | None]:
    """For each tap (batch, time, 1): whether its token is of the same document; None: all are."""
    if doc_starts is None or not doc_starts.any():
        return [None] * width
    document = F.pad(doc_starts.cumsum(1), (width - 1, 0))
    time = doc_starts.shape[1]
    return [
        (document[:, width - 1 - k : width - 1 - k + time] == document[:, width - 1 :]).unsqueeze(-1)
        for k in range(width)
    ]


class _AddNormConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, residual, weight, conv_weight, doc_starts, conv_state, eps):
        ctx.set_materialize_grads(False)
        r = x if residual is None else x + residual
        inverse = inverse_norm(r, eps)
        batch, time, dim = r.shape
        behind = conv_weight.shape[1] - 1
        history = r.new_empty(batch, behind + time, dim)
        history[:, :behind] = 0.0 if conv_state is None else conv_state
        n = torch.mul(r, inverse, out=history[:, behind:]).mul_(weight)
        masks, filters = _masks(doc_starts, behind + 1), conv_weight.t().contiguous()
        u = n * (1 + filters[0])
        for k in range(1, behind + 1):
            past = history[:, behind - k : behind - k + time]
            u.addcmul_(past if masks[k] is None else past * masks[k], filters[k])
        ctx.save_for_backward(r, inverse, weight, filters, history, *masks[1:])
        ctx.has_residual, ctx.has_conv_state = residual is not None, conv_state is not None
        return r.view_as(r) if residual is None else r, u

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dr, du):
        if du is None:
            return dr, dr if ctx.has_residual else None, *(None,) * 5
        r, inverse, weight, filters, history, *masks = ctx.saved_tensors
        time, behind = r.shape[1], len(filters) - 1
        dhistory, dfilters = torch.empty_like(history), torch.empty_like(filters)
        dhistory[:, :behind] = 0.0
        torch.mul(du, 1 + filters[0], out=dhistory[:, behind:])
        dfilters[0] = (du * history[:, behind:]).sum((0, 1))
        for k in range(1, behind + 1):
            reached, reach = (
                slice(behind - k, behind - k + time),
                du if masks[k - 1] is None else du * masks[k - 1],
            )
            dhistory[:, reached].addcmul_(reach, filters[k])
            dfilters[k] = (reach * history[:, reached]).sum((0, 1))
        dx, dweight = _norm_gradients(r, inverse, weight, dhistory[:, behind:], dr)
        dconv_state = dhistory[:, :behind].clone() if ctx.has_conv_state else None
        return dx, dx if ctx.has_residual else None, dweight, dfilters.t(), None, dconv_state, None


def add_norm(x, residual, weight, eps):
    """As `ops.add_norm.add_norm`, for tensors of one dtype."""
    r, n = _AddNorm.apply(x, residual, weight, eps)
    return x if residual is None else r, n


def add_norm_conv(x, residual, weight, conv_weight, doc_starts, conv_state, eps):
    """As `ops.add_norm.add_norm_conv`, but for the new state, for tensors of one dtype."""
    r, u = _AddNormConv.apply(x, residual, weight, conv_weight, doc_starts, conv_state, eps)
    return x if residual is None else r, u
