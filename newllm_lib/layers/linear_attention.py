"""Phase 8's attention: to all tokens before, in linear time and constant memory, by hyperbolic features.

    out_i = Σ_j w_ij v_j / Σ_j w_ij,   w_ij = φ(q_i)·φ(k_j) Π_{j<t≤i} f_t,   f_t = sigmoid(F x_t + b)

φ is `ops.linear_attention.horosphere_features`; each head has its own boundary points, sharpness, curvature,
and a gate that says how much of the past a token leaves. No rotation by position: the gate and the branch
beside it know what is near.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from newllm_lib.ops.linear_attention import horosphere_features, linear_attention

MEMORY = (16, 2048)  # tokens that the heads remember at first, from the first head to the last


class LinearAttention(nn.Module):
    """(batch, time, hidden) -> (batch, time, hidden), without the output's matrix."""

    def __init__(self, hidden_size: int, num_heads: int, features: int, plain: bool = False):
        super().__init__()
        self.hidden_size, self.num_heads, self.features = hidden_size, num_heads, features
        self.head_dim, self.plain = hidden_size // num_heads, plain
        self.project = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        self.forget = nn.Linear(hidden_size, num_heads)
        self.directions = nn.Parameter(torch.zeros(num_heads, features, self.head_dim))
        self.log_beta = nn.Parameter(torch.zeros(num_heads))  # the features' sharpness
        self.log_curvature = nn.Parameter(torch.zeros(num_heads))

    @property
    def state_size(self) -> int:
        return self.num_heads * (self.head_dim + 1) * self.features

    def first_forget_bias(self) -> torch.Tensor:
        """Heads that keep 1 - 1/m of the past a token, m spread evenly in its logarithm over `MEMORY`."""
        spread = torch.linspace(*map(math.log, MEMORY), self.num_heads).exp()
        return torch.log(spread - 1)

    def forward(self, x, state, rotation, doc_starts, lengths, curvature_factor, output_final_state: bool):
        """As `LocalAttention.forward`; `rotation` is not used."""
        q, k, v = (
            t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in self.project(x).chunk(3, -1)
        )
        beta, curvature = self.log_beta.exp(), self.log_curvature.exp() * curvature_factor
        backend = "reference" if self.plain else "auto"
        # A vector divided by √dim, of about unit length, is one in a space less curved by dim.
        q, k = (
            horosphere_features(t, self.directions, beta, curvature / self.head_dim, backend) for t in (q, k)
        )
        log_decay = F.logsigmoid(self.forget(x).to(torch.promote_types(x.dtype, torch.float32))).transpose(
            1, 2
        )
        if lengths is not None:
            mask = (torch.arange(x.shape[1], device=x.device) < lengths.unsqueeze(1)).unsqueeze(1)
            k, log_decay = k * mask.unsqueeze(-1), log_decay * mask
        if state is not None:
            state = state.view(-1, self.num_heads, self.head_dim + 1, self.features)
        y, new = linear_attention(q, k, v, log_decay, doc_starts=doc_starts, state=state, backend=backend)
        return y.transpose(1, 2).flatten(2), new.flatten(1) if output_final_state else None
