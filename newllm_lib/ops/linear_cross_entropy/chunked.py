"""Head and cross-entropy together, a chunk of tokens at a time: the logits of a whole batch never exist.

The gradient of a chunk's logits is softmax minus one-hot, known as soon as the logits are; so the forward
pass forms the gradients of the hidden states and of the head at once and keeps only those. The idea is that
of Liger-Kernel's fused linear cross-entropy (Hsu et al., 2024, arXiv 2410.10989). Where Triton has the tensor
cores, and the model is small, the logits leave their product as exponentials (`exponentials.py`); on other
GPUs one kernel turns a chunk's logits into their gradient in place (`triton.py`); elsewhere plain torch does.
A custom operator wraps it: one node for torch.compile.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from newllm_lib.ops.common.dispatch import autocast_dtype, runs_triton, runs_triton_dot
from newllm_lib.ops.linear_cross_entropy.reference import IGNORE, add_product_, aligned_rows, by_torch

CHUNK_ELEMENTS = 1 << 25  # logits held at a time without a kernel: 128 MiB in float32
KERNEL_CHUNK_ELEMENTS = 1 << 27  # with a kernel, which needs them once and in half precision: 256 MiB
SCORED_ROW = 1 << 14  # words: a program of `row_scores` holds a row in its registers
EXPONENTIALS_MAX_DIM = 256  # channels of some rows and of some words that lie in shared memory together


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, tokens: Tensor | int | None = None
) -> Tensor:
    """Mean cross-entropy, in nats, of `hidden @ weight.T` against `labels`.

    Args:
        hidden: (..., dim).
        weight: (vocabulary, dim).
        labels: (...), already shifted; `IGNORE` marks what is not predicted.
        tokens: divide the sum by this instead of the number of counted labels (for gradient accumulation).
    """
    labels = labels.reshape(-1)
    rows = hidden.reshape(-1, hidden.shape[-1])
    gradients = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    dtype = autocast_dtype(hidden)
    total, *_ = _summed(rows.to(dtype), weight, labels, dtype, gradients)
    count = (labels != IGNORE).sum() if tokens is None else torch.as_tensor(tokens, device=total.device)
    return total / count.clamp_min(1)  # a batch in which nothing is predicted has loss 0


@torch.library.custom_op("newllm::linear_cross_entropy", mutates_args=())
def _summed(
    hidden: Tensor, weight: Tensor, labels: Tensor, dtype: torch.dtype, gradients: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Summed loss (float32); gradients of hidden (tokens, dim; of `dtype`) and weight (vocabulary, dim), both
    empty without `gradients`; factors (tokens,) that the rows of the first are still to be multiplied by,
    empty if there are none."""
    vocabulary = weight.shape[0]
    head = weight.to(dtype)
    by_exponentials = gradients and _takes_exponentials(head)
    kernel = runs_triton(head) and vocabulary <= max_vocabulary()
    if kernel and not by_exponentials:
        head = whole_eights(head)
    losses, factors = (
        torch.empty(hidden.shape[0], device=hidden.device, dtype=torch.float32) for _ in range(2)
    )
    grad_hidden = torch.empty_like(hidden) if gradients else hidden.new_empty(0)
    grad_weight = torch.zeros_like(head, dtype=torch.float32) if gradients else weight.new_empty(0)
    step = max(1, (KERNEL_CHUNK_ELEMENTS if kernel else CHUNK_ELEMENTS) // vocabulary)
    for start in range(0, hidden.shape[0], step):
        part = slice(start, start + step)
        if by_exponentials:
            grad_logits, inputs = _by_exponentials(
                hidden[part], head, labels[part], losses[part], factors[part]
            )
        else:
            grad_logits, inputs = logits_of(hidden[part], head), hidden[part]
            if kernel:
                by_kernel(grad_logits[:, :vocabulary], labels[part], losses[part])
                grad_logits[:, vocabulary:] = 0
            else:
                grad_logits = by_torch(grad_logits, labels[part], losses[part])
        if gradients:
            torch.mm(grad_logits, head, out=grad_hidden[part])
            add_product_(grad_weight, grad_logits.T, inputs)
    grad_weight = grad_weight[:vocabulary].to(weight.dtype)
    return losses.sum(), grad_hidden, grad_weight, factors if by_exponentials else factors[:0].clone()


def whole_eights(head: Tensor) -> Tensor:
    """The rows of head (words, dim), and rows of zeros up to a multiple of eight: matrix products with a side
    of 50,257 take several times as long, also where their rows begin at 16 bytes."""
    missing = -head.shape[0] % 8
    return torch.cat([head, head.new_zeros(missing, head.shape[1])]) if missing else head


def logits_of(hidden: Tensor, head: Tensor) -> Tensor:
    """hidden @ head.T (rows, vocabulary), in rows that begin at a multiple of 16 bytes."""
    return torch.mm(hidden, head.T, out=aligned_rows(hidden, head.shape[0]))


def _takes_exponentials(head: Tensor) -> bool:
    return runs_triton_dot(head) and head.dtype == torch.bfloat16 and head.shape[1] <= EXPONENTIALS_MAX_DIM


def _by_exponentials(
    hidden: Tensor, head: Tensor, labels: Tensor, losses: Tensor, factors: Tensor
) -> tuple[Tensor, Tensor]:
    from newllm_lib.ops.linear_cross_entropy.exponentials import softmax_factors

    return softmax_factors(hidden, head, labels, IGNORE, losses, factors)


def by_kernel(logits: Tensor, target: Tensor, losses: Tensor) -> Tensor:
    """As `by_torch`; the gradient overwrites the logits."""
    from newllm_lib.ops.linear_cross_entropy.triton import softmax_gradient_

    softmax_gradient_(logits, target, IGNORE, losses)
    return logits


def row_scores(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Of logits (rows, vocabulary) against labels (rows,), where nothing is learned.

    Returns:
        losses (rows,) in nats, float32; hits (rows,) bool: the label is the first of the most probable.
    """
    if runs_triton(logits) and logits.shape[1] <= SCORED_ROW and logits.stride(1) == 1:
        from newllm_lib.ops.linear_cross_entropy.triton import row_scores

        return row_scores(logits, labels)
    losses = F.cross_entropy(logits.float(), labels, reduction="none")
    return losses, logits.argmax(1) == labels


def max_vocabulary() -> int:
    """The widest rows that the kernel takes."""
    from newllm_lib.ops.linear_cross_entropy.triton import MAX_VOCABULARY

    return MAX_VOCABULARY


@_summed.register_fake
def _(hidden, weight, labels, dtype, gradients):
    shapes = (hidden.shape, weight.shape) if gradients else ((0,), (0,))
    rows = hidden.shape[0] if gradients and _takes_exponentials(weight.to(dtype)) else 0
    factors = hidden.new_empty(rows, dtype=torch.float32)
    return (
        hidden.new_empty((), dtype=torch.float32),
        hidden.new_empty(shapes[0]),
        weight.new_empty(shapes[1]),
        factors,
    )


def _keep(ctx, inputs, output):
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output[1:])


def _backward(ctx, grad_total, *_):
    if grad_total is None:
        return (None,) * 5
    grad_hidden, grad_weight, factors = ctx.saved_tensors
    return (
        scaled_rows(grad_hidden, factors, grad_total),
        grad_weight * grad_total.to(grad_weight.dtype),
        None,
        None,
        None,
    )


def scaled_rows(rows: Tensor, factors: Tensor, scale: Tensor) -> Tensor:
    """rows (count, dim) times factors (count,), if there are any, times scale: in float32 until the end,
    because a loss scale may be too large for fp16."""
    if runs_triton(rows) and len(factors):
        from newllm_lib.ops.linear_cross_entropy.exponentials import scaled_rows

        return scaled_rows(rows, factors, scale)
    factors = scale * factors.unsqueeze(1) if len(factors) else scale
    return (rows.float() * factors).to(rows.dtype)


_summed.register_autograd(_backward, setup_context=_keep)
