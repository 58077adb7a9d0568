"""HTT, the holographic tensor train, as embedding and tied head: V x d numbers in two small cores."""

from __future__ import annotations

import torch
from torch import nn

from newllm_lib.ops.tensor_train import (
    factors,
    holographic,
    matrix,
    tensor_train_cross_entropy,
    tensor_train_logits,
    tensor_train_rows,
)


class TensorTrainEmbedding(nn.Module):
    """ids (...) -> (..., dim), rows of a (vocabulary, dim) matrix of tensor-train rank 2 `rank` (see
    `ops.tensor_train`).

    The phases are kept as vectors: weight decay, which is for matrices, would pull them to one value.
    """

    def __init__(self, vocab_size: int, dim: int, rank: int):
        super().__init__()
        v1, v2, d1, d2 = factors(vocab_size, dim)
        self.num_embeddings, self.embedding_dim, self.rank = vocab_size, dim, rank
        self.first = nn.Parameter(torch.zeros(v1, d1, rank))
        self.second = nn.Parameter(torch.zeros(v2, rank, d2))
        self.first_phase = nn.Parameter(torch.zeros(v1 * rank))
        self.second_phase = nn.Parameter(torch.zeros(v2 * rank))

    def cores(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The plain cores (V1, d1, 2 rank), (V2, 2 rank, d2) that cores and phases amount to."""
        phases = (phase.view(-1, self.rank) for phase in (self.first_phase, self.second_phase))
        return holographic(self.first, self.second, *phases)

    def core_std(self, std: float) -> float:
        """Standard deviation of both cores' entries that gives rows of `std` with evenly spread phases."""
        return (2 * std * std / self.rank) ** 0.25

    @property
    def weight(self) -> torch.Tensor:
        """The dense matrix (vocabulary, dim), with its gradient: for libraries that ask for it."""
        return matrix(*self.cores(), self.num_embeddings)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return tensor_train_rows(ids, *self.cores())


class TensorTrainHead(nn.Module):
    """hidden (..., dim) -> logits (..., vocabulary) against the rows of an embedding, whose cores it shares
    or owns.

    `block_elements`: logits that exist at a time while the loss is computed (None: as many as are fast).
    """

    bias = None
    block_elements: int | None = None

    def __init__(self, embedding: TensorTrainEmbedding, tied: bool):
        super().__init__()
        if tied:
            self.__dict__["table"] = embedding  # not a submodule: its parameters are saved, and counted, once
        else:
            self.table = TensorTrainEmbedding(
                embedding.num_embeddings, embedding.embedding_dim, embedding.rank
            )

    @property
    def weight(self) -> torch.Tensor:
        return self.table.weight

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return tensor_train_logits(hidden, *self.table.cores(), self.table.num_embeddings)

    def loss(self, hidden: torch.Tensor, labels: torch.Tensor, tokens=None) -> torch.Tensor:
        """As `tensor_train_cross_entropy`: neither the matrix nor the logits are built."""
        cores, words = self.table.cores(), self.table.num_embeddings
        return tensor_train_cross_entropy(hidden, *cores, labels, words, tokens, self.block_elements)
