"""A chunk's loss and the gradient by its logits in plain torch, and what every version of the loss shares."""

from __future__ import annotations

import torch
from torch import Tensor

IGNORE = -100  # label of a position that is not predicted


def by_torch(logits: Tensor, target: Tensor, losses: Tensor) -> Tensor:
    """The gradient of the summed loss by the logits (rows, vocabulary); fills `losses` (rows,)."""
    dtype, logits = logits.dtype, logits.to(torch.promote_types(logits.dtype, torch.float32))
    gradient, label, ignored = (
        torch.softmax(logits, -1),
        target.clamp_min(0).unsqueeze(1),
        (target == IGNORE).unsqueeze(1),
    )
    probability = gradient.gather(1, label)
    # to ask a GPU what it has found would be to wait for it
    loss, waits = -probability.log(), logits.device.type != "cpu"
    if waits or (probability < 1e-30).any():  # of a probability near float32's end the digits are lost
        exact = torch.logsumexp(logits, -1, True) - logits.gather(1, label)
        loss = torch.where(probability < 1e-30, exact, loss)
    losses.copy_(loss.masked_fill_(ignored, 0.0).squeeze(1))
    gradient.scatter_add_(1, label, torch.full_like(probability, -1.0))
    if waits or ignored.any():  # a pass over all of it
        gradient.masked_fill_(ignored, 0.0)
    return gradient.to(dtype)


def add_product_(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b in total's float32, whatever the factors' dtype: a sum in fp16 could overflow."""
    if total.is_cuda and a.dtype != total.dtype:
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    elif a.dtype == total.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b


def aligned_rows(like: Tensor, columns: int) -> Tensor:
    """Room for (rows of `like`, columns), each row at a multiple of 16 bytes: matrix products with 50,257
    columns side by side take several times as long."""
    step = 16 // like.element_size()
    return like.new_empty(like.shape[0], -(-columns // step) * step)[:, :columns]
