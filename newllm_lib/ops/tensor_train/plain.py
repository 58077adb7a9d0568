"""Rows, logits and loss by the whole matrix, gradients by autograd: what an exported model's program does."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from newllm_lib.ops.linear_cross_entropy.plain import linear_cross_entropy
from newllm_lib.ops.tensor_train.reference import matrix


def tensor_train_rows(ids: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """As `rows.tensor_train_rows`."""
    digits = ids.reshape(-1) // len(second), ids.reshape(-1) % len(second)
    return torch.bmm(first[digits[0]], second[digits[1]]).reshape(*ids.shape, -1)


def tensor_train_logits(hidden: Tensor, first: Tensor, second: Tensor, vocabulary: int) -> Tensor:
    """As `logits.tensor_train_logits`."""
    return F.linear(hidden, matrix(first, second, vocabulary))


def tensor_train_cross_entropy(
    hidden: Tensor,
    first: Tensor,
    second: Tensor,
    labels: Tensor,
    vocabulary: int,
    tokens: Tensor | int | None = None,
    block_elements: int | None = None,
) -> Tensor:
    """As `cross_entropy.tensor_train_cross_entropy`; all logits exist, whatever `block_elements` says."""
    return linear_cross_entropy(hidden, matrix(first, second, vocabulary), labels, tokens)
