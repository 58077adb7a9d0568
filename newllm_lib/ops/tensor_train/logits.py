"""Logits of a tied head in tensor-train form, by whichever way is less arithmetic.

Few tokens (decoding): the hidden state is contracted with the cores, one after the other. Many: pieces of the
matrix are formed from the cores and multiplied, which costs rank x V x d once and then what a dense head
costs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from newllm_lib.ops.common.dispatch import autocast_dtype
from newllm_lib.ops.tensor_train.pieces import Pieces

CONTRACTED_ELEMENTS = 1 << 24  # intermediate entries that exist at a time while contracting


def tensor_train_logits(hidden: Tensor, first: Tensor, second: Tensor, vocabulary: int) -> Tensor:
    """hidden (..., d1 * d2) times every row of the matrix: (..., vocabulary); in autocast's dtype."""
    dtype = autocast_dtype(hidden)
    logits = _logits(hidden.reshape(-1, hidden.shape[-1]), first, second, vocabulary, dtype)
    return logits.reshape(*hidden.shape[:-1], vocabulary)


def contracting_is_less(tokens: int, shape: tuple[int, int, int, int], rank: int) -> bool:
    """Whether contracting `tokens` hidden states with the cores is cheaper than forming the rows."""
    v1, v2, d1, d2 = shape
    contract = tokens * rank * (d1 * d2 * v2 + v1 * v2 * d1)
    return contract < (rank + tokens) * v1 * v2 * d1 * d2


@torch.library.custom_op("newllm::tensor_train_logits", mutates_args=())
def _logits(hidden: Tensor, first: Tensor, second: Tensor, vocabulary: int, dtype: torch.dtype) -> Tensor:
    pieces = Pieces(first, second, dtype)
    hidden = hidden.to(dtype)
    if contracting_is_less(len(hidden), pieces.shape, first.shape[2]):
        return _contracted(hidden, pieces.first, second.to(dtype), vocabulary)
    logits = hidden.new_empty(len(hidden), vocabulary)
    for piece in pieces.slices:
        columns = pieces.columns(piece)
        stop = min(columns.stop, vocabulary)
        torch.mm(hidden, pieces.rows(piece)[: stop - columns.start].T, out=logits[:, columns.start : stop])
    return logits


def _contracted(hidden: Tensor, first: Tensor, second: Tensor, vocabulary: int) -> Tensor:
    v2, rank, d2 = second.shape
    by_second = second.permute(2, 0, 1).reshape(d2, v2 * rank)
    by_first = first.flatten(1).T
    found = []
    for part in hidden.split(max(1, CONTRACTED_ELEMENTS // (first.shape[1] * v2 * rank))):
        half = (part.reshape(-1, d2) @ by_second).view(len(part), -1, v2, rank)  # (tokens, j1, i2, rank)
        whole = half.transpose(1, 2).flatten(2) @ by_first  # (tokens, i2, i1)
        found.append(whole.transpose(1, 2).reshape(len(part), -1)[:, :vocabulary])
    return torch.cat(found) if found else hidden.new_empty(0, vocabulary)


@torch.library.custom_op("newllm::tensor_train_logits_backward", mutates_args=())
def _logits_backward(
    grad: Tensor, hidden: Tensor, first: Tensor, second: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    pieces = Pieces(first, second, dtype)
    compute = torch.promote_types(dtype, torch.float32)
    grad_hidden = torch.zeros_like(hidden, dtype=compute)
    grad_first = torch.zeros_like(first, dtype=compute)
    grad_flat = torch.zeros_like(pieces.flat, dtype=compute)
    hidden = hidden.to(dtype)
    for piece in pieces.slices:
        columns = pieces.columns(piece)
        some = grad[:, columns].to(dtype)
        rows = pieces.rows(piece)
        grad_hidden += some @ rows[: some.shape[1]]
        grad_rows = torch.zeros_like(rows)  # what lies beyond the vocabulary has no gradient
        torch.mm(some.T, hidden, out=grad_rows[: some.shape[1]])
        one, two = pieces.gradients(piece, grad_rows)
        grad_first[piece] = one.to(compute)
        grad_flat += two
    return grad_hidden, grad_first, pieces.unflatten(grad_flat)


@_logits.register_fake
def _(hidden, first, second, vocabulary, dtype):
    return hidden.new_empty(len(hidden), vocabulary, dtype=dtype)


@_logits_backward.register_fake
def _(grad, hidden, first, second, dtype):
    compute = torch.promote_types(dtype, torch.float32)
    return tuple(
        torch.empty_like(x, dtype=compute, memory_format=torch.contiguous_format)
        for x in (hidden, first, second)
    )


def _keep(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:3])
    ctx.dtype = inputs[4]


def _backward(ctx, grad):
    hidden, first, second = ctx.saved_tensors
    found = _logits_backward(grad.contiguous(), hidden, first, second, ctx.dtype)
    return *(g.to(x.dtype) for g, x in zip(found, (hidden, first, second), strict=True)), None, None


_logits.register_autograd(_backward, setup_context=_keep)
