"""Head and cross-entropy together, a chunk of tokens at a time, in plain torch.

The gradient of a chunk's logits is softmax minus one-hot, known as soon as the logits are; so the forward pass forms the
gradients of the hidden states and of the head at once and keeps only those. The idea is that of Liger-Kernel's fused linear
cross-entropy (Hsu et al., 2024, arXiv 2410.10989).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

IGNORE = -100  # label of a position that is not predicted
CHUNK_ELEMENTS = 1 << 25  # logits held at a time: 128 MiB in float32


def _autocast_dtype(hidden: torch.Tensor) -> torch.dtype:
    """The dtype the matrix products would have under autocast; custom functions are not autocast by themselves."""
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, labels, compute_dtype):
        tokens = hidden.shape[0]
        head = weight.to(compute_dtype)
        keep_gradients = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        grad_hidden = torch.empty_like(hidden) if keep_gradients else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if keep_gradients else None
        total = torch.zeros((), device=hidden.device, dtype=torch.float32)
        step = max(1, CHUNK_ELEMENTS // weight.shape[0])
        for start in range(0, tokens, step):
            chunk, target = hidden[start : start + step].to(compute_dtype), labels[start : start + step]
            log_probability = torch.log_softmax((chunk @ head.T).float(), -1)
            total += F.nll_loss(log_probability, target, ignore_index=IGNORE, reduction="sum")
            if keep_gradients:
                grad_logits = log_probability.exp_()
                counted = target != IGNORE
                grad_logits[torch.arange(len(target), device=target.device), target.clamp_min(0)] -= 1.0
                grad_logits *= counted.unsqueeze(1)
                grad_logits = grad_logits.to(compute_dtype)
                grad_hidden[start : start + step] = (grad_logits @ head).to(hidden.dtype)
                grad_weight += grad_logits.T @ chunk
        if keep_gradients:
            ctx.save_for_backward(grad_hidden, grad_weight.to(weight.dtype))
        return total

    @staticmethod
    def backward(ctx, grad):
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grad.to(grad_hidden.dtype), grad_weight * grad.to(grad_weight.dtype), None, None


def linear_cross_entropy(
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, tokens: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Mean cross-entropy, in nats, of `hidden @ weight.T` against `labels`.

    Args:
        hidden: (..., dim). weight: (vocabulary, dim). labels: (...), already shifted; `IGNORE` marks what is not predicted.
        tokens: divide the sum by this instead of the number of counted labels (for gradient accumulation).
    """
    labels = labels.reshape(-1)
    total = _LinearCrossEntropy.apply(hidden.reshape(-1, hidden.shape[-1]), weight, labels, _autocast_dtype(hidden))
    count = (labels != IGNORE).sum().clamp_min(1) if tokens is None else tokens
    return total / count
