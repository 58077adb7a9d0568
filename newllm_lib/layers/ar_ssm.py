"""AR-SSM: a gated state-space branch carries a text's past in O(1), and opens as much as a token needs.

The state-space part is New-LLM's context vector (`layers.context_block`): a short causal convolution, a decay
of its own for each channel and token, a gated, normalised read-out. On it stand rank gates: the state's
channels are `ranks` groups, and each token opens each group by a number between 0 and 1,

    y_t = W (rank_t * read-out(c_t)),   rank_t = sigmoid(R u_t + b)

whose mean is what the token uses of the state. It is a composition of `ops.short_conv` and `ops.gated_scan`,
with no operation of its own.
"""

from __future__ import annotations

from torch import nn

from newllm_lib.layers.context_block import ContextVector
from newllm_lib.ops.swiglu import group_gate


class ARSSM(ContextVector):
    """(batch, time, hidden) -> (batch, time, hidden)."""

    def __init__(self, hidden_size: int, context_dim: int, conv_width: int, ranks: int):
        super().__init__(hidden_size, context_dim, conv_width)
        if context_dim % ranks:
            raise ValueError(
                f"context_dim {context_dim} must be a multiple of ssm_ranks {ranks}: change one of them."
            )
        self.ranks = nn.Linear(hidden_size, ranks)

    def forward(self, x, state, doc_starts, mask, output_final_state: bool = True):
        """state (batch, state_size) float32, None at a text's beginning; doc_starts, mask (batch, time) bool
        or None. Returns the output and the new state (None unless `output_final_state`)."""
        u, y, state = self.read(x, state, doc_starts, mask, output_final_state)
        return self.out(group_gate(y, self.ranks(u))), state
