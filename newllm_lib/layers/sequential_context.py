"""The original recurrence, kept exactly: its gates read the context, so it must be computed token by token.

    h_t = MLP_L([e_t; c_{t-1}]),   c_t = LN(sigmoid(W_f h_t) * c_{t-1} + sigmoid(W_i h_t) * W_d h_t),
    c_0 = 0

It is kept for comparison, in plain torch on every device; `layers.context_block` is what replaced it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn


class SequentialContext(nn.Module):
    """e (batch, time, embedding) -> h (batch, time, hidden), carrying c (batch, context_dim) through time.

    `watch`, where it is set, is shown c (batch, time, context_dim) of each pass (`evaluation.health`).
    """

    watch: Callable[[torch.Tensor], None] | None = None

    def __init__(self, embedding_size: int, context_dim: int, hidden_size: int, num_layers: int):
        super().__init__()
        self.context_dim = context_dim
        sizes = [embedding_size + context_dim] + [hidden_size] * num_layers
        self.mlp = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes[:-1], sizes[1:], strict=True))
        self.gates = nn.Linear(hidden_size, 3 * context_dim)  # delta, forget, input
        self.norm = nn.LayerNorm(context_dim)

    @property
    def state_size(self) -> int:
        return self.context_dim

    def forward(
        self,
        x: torch.Tensor,
        state: torch.Tensor,
        doc_starts: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """All tokens, one after the other.

        Args:
            x: (batch, time, embedding).
            state: (batch, context_dim), the context before the first token.
            doc_starts: (batch, time) bool: there the context before the token is taken as 0.
            mask: (batch, time) bool: False is padding, which leaves the context as it was whatever
                `doc_starts` says; h means nothing there.

        Returns:
            h (batch, time, hidden) in the dtype of the matrix products, and the context after the last token
            (batch, context_dim) in float32 (float64 for float64 x).
        """
        context = state.to(torch.promote_types(x.dtype, torch.float32))
        if mask is not None and doc_starts is not None:
            doc_starts = doc_starts & mask
        outputs, contexts = [], []
        for t, token in enumerate(x.unbind(1)):
            if doc_starts is not None:
                context = context.masked_fill(doc_starts[:, t, None], 0.0)
            h, new = self._step(token, context)
            context = new if mask is None else torch.where(mask[:, t, None], new, context)
            outputs.append(h)
            if self.watch is not None:
                contexts.append(context)
        if self.watch is not None:
            self.watch(torch.stack(contexts, 1))
        return torch.stack(outputs, 1), context

    def _step(self, token: torch.Tensor, context: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """One token (batch, embedding): h (batch, hidden) and the new context, in the context's dtype."""
        h = torch.cat([token, context.to(token.dtype)], -1)
        for layer in self.mlp:
            h = torch.relu(layer(h))
        delta, forget, write = self.gates(h).to(context.dtype).chunk(3, -1)
        mixed = torch.sigmoid(forget) * context + torch.sigmoid(write) * delta
        weight, bias = self.norm.weight.to(context.dtype), self.norm.bias.to(context.dtype)
        return h, F.layer_norm(mixed, self.norm.normalized_shape, weight, bias, self.norm.eps)
