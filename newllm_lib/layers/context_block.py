"""New-LLM's block: a context vector carried from token to token by gates that depend on the input alone.

    u_t = x_t + conv(x)_t                         a short causal convolution: the last few tokens
    i_t, f_t, z_t = W u_t
    a_t = sigmoid(f_t + bias)                     how much of the context is kept
    c_t = a_t * c_{t-1} + (1 - a_t) * silu(i_t)   the context vector
    y_t = RMSNorm(c_t) * silu(z_t)                what this token reads from it

Because a_t does not depend on c, all time steps are computed at once; the original recurrence, whose gates
read the context, can't be. The arithmetic is in `ops.short_conv` and `ops.gated_scan`. The recurrence is that
of HGRN (Qin et al., 2023, arXiv 2311.04823); the gated read-out and the short convolution are those of Mamba
(Gu & Dao, 2023, arXiv 2312.00752); squared ReLU is Primer's (So et al., 2021, arXiv 2109.08668).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from newllm_lib.ops.add_norm import add_norm, add_norm_conv
from newllm_lib.ops.gated_scan import gated_scan, gated_scan_step
from newllm_lib.ops.relu2_mlp import relu2_mlp
from newllm_lib.ops.short_conv import short_conv, short_conv_step


class ContextVector(nn.Module):
    """The token mixer: (batch, time, hidden) -> (batch, time, hidden), through a context vector of
    `context_dim`.
    """

    def __init__(self, hidden_size: int, context_dim: int, conv_width: int, eps: float = 1e-6):
        super().__init__()
        self.context_dim, self.hidden_size, self.conv_width, self.eps = (
            context_dim,
            hidden_size,
            conv_width,
            eps,
        )
        self.conv = nn.Parameter(torch.zeros(hidden_size, conv_width))
        self.project = nn.Linear(
            hidden_size, 3 * context_dim, bias=False
        )  # input, forget gate, read-out gate
        self.forget_bias = nn.Parameter(torch.zeros(context_dim))
        self.norm = nn.Parameter(torch.ones(context_dim))
        self.out = nn.Linear(context_dim, hidden_size, bias=False)

    @property
    def state_size(self) -> int:
        return self.context_dim + (self.conv_width - 1) * self.hidden_size

    def forward(self, x, residual, norm, state, doc_starts, mask):
        """The residual stream x + branch, what this layer adds to it, and the new state.

        Args:
            x: (batch, time, hidden), the stream; branch: what the last layer adds to it, or None. norm: the
                RMSNorm through which the stream is read. state: (batch, state_size) float32. doc_starts,
                mask: (batch, time) bool or None.
        """
        if mask is not None or _decodes(x, mask):
            r, n = add_norm(x, residual, norm.weight, norm.eps)
            _, y, state = self.read(n, state, doc_starts, mask)
            return r, self.out(y), state
        context, conv_state = self._parts(state)
        r, u, conv_state = add_norm_conv(
            x, residual, norm.weight, self.conv, doc_starts, conv_state, norm.eps
        )
        y, context = self._scan(u, context, doc_starts, None)
        return r, self.out(y), torch.cat([context, conv_state.flatten(1)], -1)

    def read(self, x, state, doc_starts, mask, output_final_state: bool = True):
        """u (batch, time, hidden), y (batch, time, context_dim) and the new state, from a stream that is
        normalised already: all but the output's matrix.

        state: None at a text's beginning. output_final_state: make the new state (else None).
        """
        batch = x.shape[0]
        if torch.is_autocast_enabled(
            x.device.type
        ):  # norms come out in float32: twice the bytes for the convolution
            x = x.to(torch.get_autocast_dtype(x.device.type))
        if _decodes(x, mask):
            state = x.new_zeros(batch, self.state_size, dtype=torch.float32) if state is None else state
            return self._step(x, state, doc_starts)
        context = conv_state = None
        if state is not None:
            context, conv_state = self._parts(state)
        u, conv_state = short_conv(x, self.conv, doc_starts, mask, conv_state, output_final_state)
        y, context = self._scan(u, context, doc_starts, mask)
        return (
            u,
            y,
            None if not output_final_state else torch.cat([context, conv_state.flatten(1).float()], -1),
        )

    def _parts(self, state):
        """The state's context (batch, context_dim) and conv_state (batch, conv_width - 1, hidden)."""
        context, conv_state = state[:, : self.context_dim], state[:, self.context_dim :]
        return context, conv_state.reshape(len(state), self.conv_width - 1, self.hidden_size)

    def _scan(self, u, context, doc_starts, mask):
        y, _, context = gated_scan(
            self.project(u), self.forget_bias, self.norm, doc_starts, mask, context, self.eps
        )
        return y, context

    def _step(self, x, state, doc_starts):
        """What `read` gives, for one token while decoding, in a tenth of the operations: x (batch, 1,
        hidden).
        """
        new, size = torch.empty_like(state, memory_format=torch.contiguous_format), self.context_dim
        start = None if doc_starts is None else doc_starts[:, 0].contiguous()
        u = short_conv_step(x[:, 0], self.conv, start, state[:, size:], new[:, size:])
        y = gated_scan_step(
            self.project(u), self.forget_bias, self.norm, start, state[:, :size], new[:, :size], self.eps
        )
        return u.unsqueeze(1), y.unsqueeze(1), new


class ShortConvolution(nn.Module):
    """A short causal convolution with its tail as state: (batch, time, hidden) -> the same, the last few
    tokens mixed in.
    """

    def __init__(self, hidden_size: int, conv_width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(hidden_size, conv_width))

    @property
    def state_size(self) -> int:
        hidden_size, conv_width = self.weight.shape
        return (conv_width - 1) * hidden_size

    def forward(self, x, residual, norm, state, doc_starts, mask):
        """The residual stream x + branch, what is read of it through `norm` and the convolution, and the new
        state.

        Args:
            as `ContextVector.forward`.
        """
        if mask is None and not _decodes(x, mask):
            conv_state = state.reshape(len(state), self.weight.shape[1] - 1, self.weight.shape[0])
            r, u, conv_state = add_norm_conv(
                x, residual, norm.weight, self.weight, doc_starts, conv_state, norm.eps
            )
            return r, u, conv_state.flatten(1).float()
        r, n = add_norm(x, residual, norm.weight, norm.eps)
        return r, *self._after(n, state, doc_starts, mask)

    def _after(self, x, state, doc_starts, mask):
        """The convolution of a stream that is normalised already, and the new state."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        if _decodes(x, mask):
            new, start = torch.empty_like(state, memory_format=torch.contiguous_format), None
            if doc_starts is not None:
                start = doc_starts[:, 0].contiguous()
            return short_conv_step(x[:, 0], self.weight, start, state, new).unsqueeze(1), new
        conv_state = state.reshape(x.shape[0], self.weight.shape[1] - 1, x.shape[2])
        u, conv_state = short_conv(x, self.weight, doc_starts, mask, conv_state)
        return u, conv_state.flatten(1).float()


def _decodes(x, mask) -> bool:
    """Whether this is one token that nothing is learned from."""
    return (
        x.shape[1] == 1 and mask is None and not torch.is_grad_enabled() and not torch.compiler.is_compiling()
    )


class TokenMLP(nn.Module):
    """down(relu(up(x))^2), applied to each token by itself."""

    def __init__(self, hidden_size: int, mlp_size: int):
        super().__init__()
        self.up = nn.Linear(hidden_size, mlp_size, bias=False)
        self.down = nn.Linear(mlp_size, hidden_size, bias=False)

    def forward(self, x):
        if type(self.up) is nn.Linear and type(self.down) is nn.Linear:  # not wrapped, as by an adapter
            return relu2_mlp(x, self.up.weight, self.down.weight)
        h = F.relu(self.up(x))
        return self.down(h * h)  # not a power: autocast would compute that in float32


class ContextBlock(nn.Module):
    """Pre-norm residual block: the context vector, then the token MLP that reads what it said.

    Args:
        config: a `NewLLMConfig`, or whatever has its sizes. `mlp_conv`: the MLP reads the last few tokens
            too, through a short convolution of its own. `embedding_skip`: the block reads a learned mixture
            of the residual stream and the embeddings.
    """

    def __init__(self, config):
        super().__init__()
        hidden = config.hidden_size
        self.norm_context = nn.RMSNorm(hidden, eps=1e-6)
        self.context = ContextVector(hidden, config.context_dim, config.conv_width, config.context_eps)
        self.norm_mlp = nn.RMSNorm(hidden, eps=1e-6)
        self.conv_mlp = ShortConvolution(hidden, config.conv_width) if config.mlp_conv else None
        self.mlp = TokenMLP(hidden, config.mlp_size)
        self.dropout = nn.Dropout(config.dropout)
        # of the stream, of the embeddings
        self.shares = nn.Parameter(torch.tensor([1.0, 0.0])) if config.embedding_skip else None

    @property
    def state_size(self) -> int:
        return self.context.state_size + (self.conv_mlp.state_size if self.conv_mlp is not None else 0)

    def forward(self, x, residual, state, doc_starts=None, mask=None, embedded=None):
        """The residual stream and what is still to be added to it (None before the first block), which is
        left to whoever reads the sum next: x, residual (batch, time, hidden), state (batch, state_size) ->
        the same; embedded, of x's size, with embedding_skip.
        """
        if self.shares is not None:
            stream, again = self.shares.to(x.dtype)
            x, residual = stream * (x if residual is None else x + residual) + again * embedded, None
        size = self.context.state_size
        x, y, new = self.context(x, residual, self.norm_context, state[:, :size], doc_starts, mask)
        y = self.dropout(y)
        if self.conv_mlp is None:
            x, u = add_norm(x, y, self.norm_mlp.weight, self.norm_mlp.eps)
        else:
            x, u, conv_state = self.conv_mlp(x, y, self.norm_mlp, state[:, size:], doc_starts, mask)
            new = torch.cat([new, conv_state], -1)
        return x, self.dropout(self.mlp(u)), new
