"""Rows of a tensor-train matrix, the embedding look-up; cores are gathered a piece of tokens at a time."""

from __future__ import annotations

import torch
from torch import Tensor

GATHERED_ELEMENTS = 1 << 24  # core entries gathered at a time: 64 MiB in float32


def tensor_train_rows(ids: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Rows `ids` (int64) of the matrix of cores (V1, d1, rank), (V2, rank, d2): (*ids, d1 * d2)."""
    return _rows(ids.reshape(-1), first, second).reshape(*ids.shape, -1)


@torch.library.custom_op("newllm::tensor_train_rows", mutates_args=())
def _rows(ids: Tensor, first: Tensor, second: Tensor) -> Tensor:
    rows = first.new_empty(len(ids), first.shape[1], second.shape[2])
    for part in _parts(ids, first, second):
        one, two = _digits(ids[part], second)
        torch.bmm(first[one], second[two], out=rows[part])
    return rows.reshape(len(ids), -1)


@torch.library.custom_op("newllm::tensor_train_rows_backward", mutates_args=())
def _rows_backward(grad: Tensor, ids: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    compute = torch.promote_types(first.dtype, torch.float32)
    grad_first, grad_second = (torch.zeros_like(core, dtype=compute) for core in (first, second))
    grad = grad.reshape(len(ids), first.shape[1], second.shape[2])
    for part in _parts(ids, first, second):
        one, two = _digits(ids[part], second)
        here = grad[part].to(first.dtype)
        grad_first.index_add_(0, one, torch.bmm(here, second[two].mT).to(compute))
        grad_second.index_add_(0, two, torch.bmm(first[one].mT, here).to(compute))
    return grad_first.to(first.dtype), grad_second.to(second.dtype)


def _parts(ids: Tensor, first: Tensor, second: Tensor) -> list[slice]:
    size = max(1, GATHERED_ELEMENTS // (first[0].numel() + second[0].numel()))
    return [slice(start, start + size) for start in range(0, len(ids), size)]


def _digits(ids: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    return ids // second.shape[0], ids % second.shape[0]


@_rows.register_fake
def _(ids, first, second):
    return first.new_empty(len(ids), first.shape[1] * second.shape[2])


@_rows_backward.register_fake
def _(grad, ids, first, second):
    return torch.empty_like(first), torch.empty_like(second)


def _keep(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad):
    return None, *_rows_backward(grad.contiguous(), *ctx.saved_tensors)


_rows.register_autograd(_backward, setup_context=_keep)
