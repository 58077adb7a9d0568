"""The loss by all logits at once, gradients by autograd: what an exported model's program does."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from newllm_lib.ops.linear_cross_entropy.reference import IGNORE


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, tokens: Tensor | int | None = None
) -> Tensor:
    """As `chunked.linear_cross_entropy`; computed in float32 (float64 for float64)."""
    logits = F.linear(hidden, weight).flatten(0, -2)
    logits, labels = logits.to(torch.promote_types(logits.dtype, torch.float32)), labels.reshape(-1)
    total = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")
    count = (labels != IGNORE).sum() if tokens is None else torch.as_tensor(tokens, device=total.device)
    return total / count.clamp_min(1)
