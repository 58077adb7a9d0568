"""The cell of the sequential recurrence, gates -> next context, forward and backward, in plain torch.

Everything that one step does between its matrix products. `triton.py` has the same two functions as one kernel each.
They write into buffers that the caller owns, so that a CUDA graph can replay them. `compute` below is float32 (float64
for float64 inputs).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

_layer_norm_backward = torch.ops.aten.native_layer_norm_backward.default


def forward(gates, state, next_context, next_start, valid, norm_weight, norm_bias, eps: float) -> None:
    """state <- the context that the next step reads.

    Args:
        gates: (batch, 3 context): delta, forget, write.
        state: (batch, context), compute dtype: the context that this step read.
        next_context: (batch, context), filled with the new state in the dtype of the matrix products.
        next_start: (batch,) bool, whether the next step starts a document; valid: (batch,) bool. None if absent.
    """
    delta, forget, write = gates.to(state.dtype).chunk(3, -1)
    mixed = torch.sigmoid(write).mul_(delta).addcmul_(torch.sigmoid(forget), state)
    new = F.layer_norm(mixed, norm_weight.shape, norm_weight, norm_bias, eps)
    if valid is not None:
        new = torch.where(valid.unsqueeze(-1), new, state)
    if next_start is not None:
        new = new.masked_fill(next_start.unsqueeze(-1), 0.0)
    state.copy_(new)
    next_context.copy_(new)


def norm_gradients(rows: int, context: int, like: torch.Tensor) -> torch.Tensor:
    """A zeroed accumulator for the gradients of the norm's weight and bias: (any, 2, context), to be summed."""
    return torch.zeros(1, 2, context, dtype=torch.promote_types(like.dtype, torch.float32), device=like.device)


def backward(
    gates, context, grad_state, grad_context, next_start, valid, norm_weight, norm_bias, eps, grad_gates, grad_norm
) -> None:
    """The cell's gradient, from that of what it produced.

    Args:
        gates, next_start, valid: as in `forward`.
        context: (batch, context), what the step read (its state in the dtype of the matrix products).
        grad_state: (batch, context), compute dtype. In: the gradient of the produced context from outside the next
            step's matrix product. Out: the same for the context that this step read.
        grad_context: (batch, context), the gradient of the produced context through the next step's matrix product.
        grad_gates: (batch, 3 context), filled. grad_norm: as from `norm_gradients`, added to.
    """
    compute = grad_state.dtype
    total = grad_state + grad_context
    if next_start is not None:
        total = total.masked_fill(next_start.unsqueeze(-1), 0.0)
    into = total if valid is None else total.masked_fill(~valid.unsqueeze(-1), 0.0)
    delta, forget, write = gates.to(compute).chunk(3, -1)
    keep, share, before = torch.sigmoid(forget), torch.sigmoid(write), context.to(compute)
    mixed = (share * delta).addcmul_(keep, before)
    size = list(norm_weight.shape)
    _, mean, inverse = torch.native_layer_norm(mixed, size, norm_weight, norm_bias, eps)
    grad, to_weight, to_bias = _layer_norm_backward(
        into, mixed, size, mean, inverse, norm_weight, norm_bias, [True, True, True]
    )
    grad_norm[0, 0] += to_weight
    grad_norm[0, 1] += to_bias
    kept = grad * keep
    written = grad * share
    to_delta, to_forget, to_write = grad_gates.chunk(3, -1)
    to_delta.copy_(written)
    to_forget.copy_((1 - keep).mul_(kept).mul_(before))
    to_write.copy_((1 - share).mul_(written).mul_(delta))
    grad_state.copy_(kept if valid is None else torch.where(valid.unsqueeze(-1), kept, total))
