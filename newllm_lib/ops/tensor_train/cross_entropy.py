"""Tensor-train head and cross-entropy together: neither the matrix nor all logits ever exist.

A block of tokens at a time meets the matrix piece by piece (`Pieces`): its logits, their softmax's gradient
in place, then the gradients of the hidden states and, through each piece, of the cores; all within the
forward pass, as in `linear_cross_entropy`. Forming a piece costs rank x d a row, once for the logits and once
for the gradient, and bringing its gradient back twice that: against the 3 x tokens x d a row of the head
itself that is 4 rank / (3 tokens of a block), about 6 % at rank 128.
"""

from __future__ import annotations

import torch
from torch import Tensor

from newllm_lib.ops.common.dispatch import autocast_dtype, runs_triton
from newllm_lib.ops.linear_cross_entropy import chunked
from newllm_lib.ops.tensor_train.pieces import Pieces

KERNEL_BLOCK_ELEMENTS = 9 << 25  # logits of a block of tokens: 576 MiB in half precision


def tensor_train_cross_entropy(
    hidden: Tensor,
    first: Tensor,
    second: Tensor,
    labels: Tensor,
    vocabulary: int,
    tokens: Tensor | int | None = None,
    block_elements: int | None = None,
) -> Tensor:
    """Mean cross-entropy in nats of hidden (..., d1 * d2), labels (...) already shifted (-100: none).

    Args:
        first: a core (V1, d1, rank).
        second: a core (V2, rank, d2).
        vocabulary: rows in use.
        tokens: divide the sum by this instead of the number of counted labels (for gradient accumulation).
        block_elements: logits that exist at a time (None: as many as are fast); each block forms the matrix
            anew.
    """
    labels, rows = labels.reshape(-1), hidden.reshape(-1, hidden.shape[-1])
    gradients = torch.is_grad_enabled() and any(x.requires_grad for x in (hidden, first, second))
    dtype = autocast_dtype(hidden)
    total, *_ = _summed(
        rows.to(dtype), first, second, labels, vocabulary, dtype, gradients, block_elements or 0
    )
    count = (
        (labels != chunked.IGNORE).sum() if tokens is None else torch.as_tensor(tokens, device=total.device)
    )
    return total / count.clamp_min(1)


@torch.library.custom_op("newllm::tensor_train_cross_entropy", mutates_args=())
def _summed(
    hidden: Tensor,
    first: Tensor,
    second: Tensor,
    labels: Tensor,
    vocabulary: int,
    dtype: torch.dtype,
    gradients: bool,
    block_elements: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Summed loss, and gradients of hidden (tokens, d; of `dtype`), first and second (float32); empty without
    `gradients`.

    block_elements: 0: the default.
    """
    compute = torch.promote_types(dtype, torch.float32)
    pieces = Pieces(first, second, dtype)
    sums = _Gradients(pieces, hidden, compute) if gradients else None
    kernel = runs_triton(pieces.first) and vocabulary <= chunked.max_vocabulary()
    width = -(-first.shape[0] * second.shape[0] // 8) * 8  # rows of the buffer begin at 16 bytes
    elements = block_elements or (KERNEL_BLOCK_ELEMENTS if kernel else chunked.CHUNK_ELEMENTS)
    step = _block(len(hidden), max(1, elements // width))
    buffer = hidden.new_empty(min(step, len(hidden)), width, dtype=dtype)
    losses = torch.empty(len(hidden), device=hidden.device, dtype=compute)
    for start in range(0, len(hidden), step):
        some, target = hidden[start : start + step], labels[start : start + step]
        scores = buffer[: len(some)]
        for piece in pieces.slices:
            torch.mm(some, pieces.rows(piece).T, out=scores[:, pieces.columns(piece)])
        logits = scores[:, :vocabulary]
        grad = (chunked.by_kernel if kernel else chunked.by_torch)(
            logits, target, losses[start : start + step]
        )
        if sums is not None:
            logits.copy_(grad)  # where the kernel has not already
            scores[:, vocabulary:] = 0  # rows that no token has
            sums.add(scores, some, slice(start, start + len(some)))
    if sums is None:
        return losses.sum(), hidden.new_empty(0), losses.new_empty(0), losses.new_empty(0)
    return losses.sum(), sums.hidden, sums.first, pieces.unflatten(sums.flat)


def _block(tokens: int, most: int) -> int:
    """Tokens in a block: equal blocks of at most `most`, in whole tiles where they are large."""
    blocks = -(-tokens // most) or 1
    size = -(-tokens // blocks)
    return min(most, -(-size // 128) * 128) if size > 1024 else max(1, size)


class _Gradients:
    """The sums of gradients over the blocks of tokens."""

    def __init__(self, pieces: Pieces, hidden: Tensor, compute: torch.dtype):
        self.pieces = pieces
        self.hidden = torch.empty_like(hidden)
        self.first = torch.zeros_like(pieces.first, dtype=compute)
        self.flat = torch.zeros_like(pieces.flat, dtype=compute)

    def add(self, grad_scores: Tensor, some: Tensor, where: slice) -> None:
        """grad_scores (block, V1 * V2 and padding) of the hidden states `some` (block, d) at `where`."""
        grad_some = torch.zeros_like(some, dtype=self.first.dtype)
        for piece in self.pieces.slices:
            grad = grad_scores[:, self.pieces.columns(piece)]
            chunked.add_product_(grad_some, grad, self.pieces.rows(piece))
            one, two = self.pieces.gradients(piece, _product(grad.T, some))
            self.first[piece] += one
            self.flat += two
        self.hidden[where] = grad_some.to(self.hidden.dtype)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b; float16 is summed in float32, as a block's sum could overflow where no loss scale reaches."""
    if a.dtype != torch.float16:
        return a @ b
    total = a.new_zeros(a.shape[0], b.shape[1], dtype=torch.float32)
    chunked.add_product_(total, a, b)
    return total


@_summed.register_fake
def _(hidden, first, second, labels, vocabulary, dtype, gradients, block_elements):
    total = hidden.new_empty((), dtype=torch.promote_types(dtype, torch.float32))
    shapes = [x.shape if gradients else (0,) for x in (hidden, first, second)]
    return total, hidden.new_empty(shapes[0]), *(total.new_empty(shape) for shape in shapes[1:])


def _keep(ctx, inputs, output):
    ctx.save_for_backward(*output[1:])
    ctx.dtypes = [core.dtype for core in inputs[1:3]]


def _backward(ctx, grad_total, *_):
    by_hidden, *by_cores = ctx.saved_tensors
    by_hidden = (by_hidden * grad_total).to(by_hidden.dtype)  # a loss scale may be too large for fp16
    by_cores = [(g * grad_total).to(dtype) for g, dtype in zip(by_cores, ctx.dtypes, strict=True)]
    return by_hidden, *by_cores, None, None, None, None, None


_summed.register_autograd(_backward, setup_context=_keep)
