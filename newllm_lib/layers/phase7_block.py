"""The block of Phases 7 and 8: near text by attention, far text by a state, a gate between, then SwiGLU.

    a = attention(norm(x)),  s = AR-SSM(norm(x)),  g = sigmoid(G norm(x))
    x = x + W (g * a + (1 - g) * s)
    x = x + down(silu(gate norm(x)) * up norm(x))          (Shazeer, 2020, arXiv 2002.05202)

Everything a token reads, the gate too, depends on itself and the tokens before it. In Phase 8 attention is
linear, and sees all of the past.
"""

from __future__ import annotations

import torch
from torch import nn

from newllm_lib.layers.ar_ssm import ARSSM
from newllm_lib.layers.linear_attention import LinearAttention
from newllm_lib.layers.local_attention import LocalAttention
from newllm_lib.ops.add_norm import add_norm
from newllm_lib.ops.swiglu import gated_mix, swiglu


class SwiGLU(nn.Module):
    """down(silu(gate x) * up x), applied to each token by itself."""

    def __init__(self, hidden_size: int, mlp_size: int):
        super().__init__()
        self.gate_up = nn.Linear(hidden_size, 2 * mlp_size, bias=False)
        self.down = nn.Linear(mlp_size, hidden_size, bias=False)

    def forward(self, x):
        return self.down(swiglu(self.gate_up(x)))


class Phase7Block(nn.Module):
    """x (batch, time, hidden), state (batch, state_size) -> the same shapes.

    The state holds the AR-SSM's, then attention's: all that later tokens may need of the past.
    """

    def __init__(self, config):
        super().__init__()
        hidden = config.hidden_size
        self.norm_mixer = nn.RMSNorm(hidden, eps=1e-6)
        if config.attention == "linear":
            self.attention = LinearAttention(
                hidden, config.num_attention_heads, config.linear_features, plain=not config.flash_attention
            )
        else:
            self.attention = LocalAttention(
                hidden,
                config.num_attention_heads,
                config.attention_window,
                config.attention,
                config.flash_attention,
            )
        self.ssm = None
        if config.ar_ssm:
            self.ssm = ARSSM(hidden, config.context_dim, config.conv_width, config.ssm_ranks)
            self.gate = nn.Linear(hidden, hidden)
        self.out = nn.Linear(hidden, hidden, bias=False)
        self.norm_mlp = nn.RMSNorm(hidden, eps=1e-6)
        self.mlp = SwiGLU(hidden, config.mlp_size)
        self.dropout = nn.Dropout(config.dropout)

    @property
    def state_size(self) -> int:
        return self.attention.state_size + (self.ssm.state_size if self.ssm is not None else 0)

    def forward(self, x, state, rotation, doc_starts, lengths, curvature_factor, output_final_state: bool):
        """
        Args:
            state: (batch, state_size) float32, or None at a text's beginning.
            output_final_state: also return the new state.
            doc_starts: (batch, time) bool or None.
            lengths: (batch,) tokens that are not padding (which stands at the end), or None.

        Returns:
            x, and the new state or None.
        """
        carried, past = self._split(state)
        x, h = add_norm(x, None, self.norm_mixer.weight, self.norm_mixer.eps)
        y, past = self.attention(h, past, rotation, doc_starts, lengths, curvature_factor, output_final_state)
        if self.ssm is not None:
            mask = None
            if lengths is not None:
                mask = torch.arange(x.shape[1], device=x.device) < lengths.unsqueeze(1)
            s, carried = self.ssm(h, carried, doc_starts, mask, output_final_state)
            y = gated_mix(y, s, self.gate(h))
        x, h = add_norm(x, self.dropout(self.out(y)), self.norm_mlp.weight, self.norm_mlp.eps)
        x = x + self.dropout(self.mlp(h))
        parts = [part.float() for part in (carried, past) if part is not None]
        return x, torch.cat(parts, -1) if output_final_state else None

    def _split(self, state):
        """The AR-SSM's state (None without one) and attention's; None at a text's beginning."""
        if state is None:
            return None, None
        size = self.ssm.state_size if self.ssm is not None else 0
        return state[:, :size] if size else None, state[:, size:]
