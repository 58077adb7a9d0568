"""The original recurrence, kept exactly: its gates read the context, so it must be computed token by token.

    h_t = MLP_L([e_t; c_{t-1}]),   c_t = LN(sigmoid(W_f h_t) * c_{t-1} + sigmoid(W_i h_t) * W_d h_t),   c_0 = 0
"""

from __future__ import annotations

from torch import nn

from newllm_lib.ops.sequential_context import SequentialWeights, sequential_context


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
        weights = SequentialWeights.of(self.mlp, self.gates, self.norm)
        return sequential_context(x, weights, state, starts, valid)
