"""The original recurrence, kept exactly: its gates read the context, so it must be computed token by token.

    h_t = MLP_L([e_t; c_{t-1}]),   c_t = LN(sigmoid(W_f h_t) * c_{t-1} + sigmoid(W_i h_t) * W_d h_t),   c_0 = 0
"""

from __future__ import annotations

import torch
from torch import nn


class SequentialContext(nn.Module):
    """e (batch, time, embedding) -> h (batch, time, hidden), carrying c (batch, context_dim) through time."""

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

    def forward(self, x, state, starts=None, valid=None):
        """x (batch, time, embedding), state (batch, context_dim) float32, starts and valid (batch, time) bool or None."""
        context, outputs = state, []
        for t in range(x.shape[1]):
            if starts is not None:
                context = context.masked_fill(starts[:, t, None], 0.0)
            h = torch.cat([x[:, t], context.to(x.dtype)], -1)
            for layer in self.mlp:
                h = torch.relu(layer(h))
            delta, forget, write = self.gates(h).float().chunk(3, -1)
            new = self.norm(torch.sigmoid(forget) * context + torch.sigmoid(write) * delta).float()
            context = new if valid is None else torch.where(valid[:, t, None], new, context)
            outputs.append(h)
        return torch.stack(outputs, 1), context
