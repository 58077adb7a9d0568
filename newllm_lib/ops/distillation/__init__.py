"""What a student learns from a teacher and from the text at once, without ever holding all logits of either.

    (1 - share) * CE(student, label) + share * T^2 * KL(softmax(teacher / T) || softmax(student / T))

(Hinton et al., 2015, arXiv 1503.02531), averaged over the labels that count. A chunk of tokens at a time both
heads give their logits, the gradient of the student's is formed at once (it is known in closed form), and
only its products are kept.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from newllm_lib.ops.linear_cross_entropy import IGNORE

CHUNK_ELEMENTS = 1 << 24  # logits of one model held at a time: 64 MiB in float32


def distillation_loss(
    hidden: Tensor,
    head: Tensor,
    teacher_hidden: Tensor,
    teacher_head: Tensor,
    labels: Tensor,
    share: float,
    temperature: float,
    tokens: Tensor | int | None = None,
) -> Tensor:
    """The loss above, in nats.

    Args:
        hidden: (..., dim) of the student.
        teacher_hidden: (..., teacher_dim).
        head: (vocabulary, dim) of the student.
        teacher_head: (known, teacher_dim): the teacher knows the first `known` words of the vocabulary.
        labels: (...), already shifted; `IGNORE`: not predicted.
        tokens: divide the sum by this instead of the number of counted labels (for gradient accumulation).
    """
    labels = labels.reshape(-1)
    counted = labels != IGNORE
    rows, teacher_rows = (x.reshape(-1, x.shape[-1]) for x in (hidden, teacher_hidden))
    total = _Summed.apply(
        rows, head, teacher_rows.detach(), teacher_head.detach(), labels, counted, share, temperature
    )
    return total / torch.as_tensor(
        counted.sum() if tokens is None else tokens, device=total.device
    ).clamp_min(1)


class _Summed(torch.autograd.Function):
    """The summed loss (float32)."""

    @staticmethod
    def forward(ctx, hidden, head, teacher_hidden, teacher_head, labels, counted, share, temperature):
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        weight, teacher_weight = head.to(dtype), teacher_head.to(dtype)
        known, step = teacher_weight.shape[0], max(1, CHUNK_ELEMENTS // head.shape[0])
        grad_hidden, grad_head = torch.empty_like(hidden), torch.zeros_like(head, dtype=torch.float32)
        total = torch.zeros((), device=hidden.device, dtype=torch.float32)
        with torch.autocast(kind, enabled=False):
            for start in range(0, hidden.shape[0], step):
                part = slice(start, start + step)
                rows, counts = hidden[part].to(dtype), counted[part, None]
                logits = (rows @ weight.T).float()
                wanted = torch.zeros_like(logits)
                theirs = (teacher_hidden[part].to(dtype) @ teacher_weight.T).float()
                wanted[:, :known] = torch.log_softmax(theirs / temperature, -1)
                teacher = torch.zeros_like(logits)
                teacher[:, :known] = wanted[:, :known].exp()
                mine, soft = torch.log_softmax(logits, -1), torch.log_softmax(logits / temperature, -1)
                target = labels[part].clamp_min(0)
                entropy = F.nll_loss(mine, target, reduction="none")
                apart = (teacher * (wanted - soft)).sum(-1)
                total += (((1 - share) * entropy + share * temperature**2 * apart) * counts[:, 0]).sum()
                plain = mine.exp_()
                plain[torch.arange(len(target), device=target.device), target] -= 1.0
                gradient = (1 - share) * plain + share * temperature * (soft.exp_() - teacher)
                gradient = (gradient * counts).to(dtype)
                grad_hidden[part] = (gradient @ weight).to(hidden.dtype)
                grad_head += gradient.T @ rows
        ctx.save_for_backward(grad_hidden, grad_head.to(head.dtype))
        return total

    @staticmethod
    def backward(ctx, grad_total):
        grad_hidden, grad_head = ctx.saved_tensors
        return (
            grad_hidden * grad_total.to(grad_hidden.dtype),
            grad_head * grad_total,
            None,
            None,
            None,
            None,
            None,
            None,
        )
