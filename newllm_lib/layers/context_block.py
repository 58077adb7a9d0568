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

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from newllm_lib.ops.add_norm import add_norm, add_norm_conv
from newllm_lib.ops.gated_scan import gated_scan, gated_scan_step
from newllm_lib.ops.relu2_mlp import relu2_mlp
from newllm_lib.ops.short_conv import short_conv, short_conv_step


class ContextVector(nn.Module):
    """The token mixer: (batch, time, hidden_size) -> same, by a context vector of `context_dim` channels.

    Its state (batch, state_size), float32, is the context vector after the last token, then what the
    convolution reads of the last `conv_width - 1` tokens. `watch`, where it is set, is shown the context
    vectors (batch, time, context_dim) of each pass (`evaluation.health`).
    """

    watch: Callable[[Tensor], None] | None = None

    def __init__(self, hidden_size: int, context_dim: int, conv_width: int, eps: float = 1e-6):
        super().__init__()
        self.hidden_size = hidden_size
        self.context_dim = context_dim
        self.conv_width = conv_width
        self.eps = eps
        self.conv = nn.Parameter(torch.zeros(hidden_size, conv_width))
        # input, forget gate, read-out gate
        self.project = nn.Linear(hidden_size, 3 * context_dim, bias=False)
        self.forget_bias = nn.Parameter(torch.zeros(context_dim))
        self.norm = nn.Parameter(torch.ones(context_dim))
        self.out = nn.Linear(context_dim, hidden_size, bias=False)

    @property
    def state_size(self) -> int:
        return self.context_dim + (self.conv_width - 1) * self.hidden_size

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None,
        norm: nn.RMSNorm,
        state: Tensor,
        doc_starts: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Add `residual` to the stream, and read the sum through `norm`.

        Args:
            x: (batch, time, hidden_size), the residual stream.
            residual: of x's shape, what the last layer adds to it; or None.
            norm: over hidden_size.
            state: (batch, state_size) float32.
            doc_starts: (batch, time) bool: a document starts there.
            mask: (batch, time) bool, False at padding.

        Returns:
            x + residual; what this layer adds to it, of the same shape; the new state.
        """
        if mask is not None or _decodes(x, mask):
            x, normed = add_norm(x, residual, norm.weight, norm.eps)
            _, y, state = self.read(normed, state, doc_starts, mask)
            return x, self.out(y), state
        context, conv_state = self._split(state)
        x, u, conv_state = add_norm_conv(
            x, residual, norm.weight, self.conv, doc_starts, conv_state, norm.eps
        )
        y, context = self._scan(u, context, doc_starts, None)
        return x, self.out(y), torch.cat([context, conv_state.flatten(1)], -1)

    def read(
        self,
        x: Tensor,
        state: Tensor | None,
        doc_starts: Tensor | None,
        mask: Tensor | None,
        output_final_state: bool = True,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Everything but the output's matrix, from a stream that is normalised already.

        Args:
            x: (batch, time, hidden_size), normalised.
            state: (batch, state_size) float32; None at a text's beginning.
            doc_starts: as in `forward`.
            mask: as in `forward`.
            output_final_state: also return the new state (else None).

        Returns:
            u (batch, time, hidden_size), y (batch, time, context_dim), and the new state.
        """
        if torch.is_autocast_enabled(x.device.type):
            # Norms come out in float32: twice the bytes for the convolution.
            x = x.to(torch.get_autocast_dtype(x.device.type))
        if _decodes(x, mask):
            state = x.new_zeros(len(x), self.state_size, dtype=torch.float32) if state is None else state
            return self._step(x, state, doc_starts)
        context, conv_state = (None, None) if state is None else self._split(state)
        u, conv_state = short_conv(x, self.conv, doc_starts, mask, conv_state, output_final_state)
        y, context = self._scan(u, context, doc_starts, mask)
        if not output_final_state:
            return u, y, None
        return u, y, torch.cat([context, conv_state.flatten(1).float()], -1)

    def _split(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """The state's context (batch, context_dim) and conv_state (batch, conv_width - 1, hidden_size)."""
        context, conv_state = state[:, : self.context_dim], state[:, self.context_dim :]
        return context, conv_state.reshape(len(state), self.conv_width - 1, self.hidden_size)

    def _scan(
        self, u: Tensor, context: Tensor | None, doc_starts: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """y (batch, time, context_dim), and the context after the last token (batch, context_dim)."""
        y, contexts, context = gated_scan(
            self.project(u), self.forget_bias, self.norm, doc_starts, mask, context, self.eps
        )
        if self.watch is not None:
            self.watch(contexts)
        return y, context

    def _step(self, x: Tensor, state: Tensor, doc_starts: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """As `read`, for one token while decoding, in a tenth of the work: x (batch, 1, hidden_size)."""
        new, size = torch.empty_like(state, memory_format=torch.contiguous_format), self.context_dim
        start = None if doc_starts is None else doc_starts[:, 0].contiguous()
        u = short_conv_step(x[:, 0], self.conv, start, state[:, size:], new[:, size:])
        y = gated_scan_step(
            self.project(u), self.forget_bias, self.norm, start, state[:, :size], new[:, :size], self.eps
        )
        return u.unsqueeze(1), y.unsqueeze(1), new


def _decodes(x: Tensor, mask: Tensor | None) -> bool:
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

    def forward(self, x: Tensor) -> Tensor:
        if type(self.up) is nn.Linear and type(self.down) is nn.Linear:  # not wrapped, as by an adapter
            return relu2_mlp(x, self.up.weight, self.down.weight)
        h = F.relu(self.up(x))
        return self.down(h * h)  # not a power: autocast would compute that in float32


class ContextBlock(nn.Module):
    """Pre-norm residual block: the context vector, then the token MLP that reads its output.

    Args:
        config: a `NewLLMConfig`, or whatever has its sizes.
    """

    def __init__(self, config):
        super().__init__()
        hidden = config.hidden_size
        self.norm_context = nn.RMSNorm(hidden, eps=1e-6)
        self.context = ContextVector(hidden, config.context_dim, config.conv_width, config.context_eps)
        self.norm_mlp = nn.RMSNorm(hidden, eps=1e-6)
        self.mlp = TokenMLP(hidden, config.mlp_size)
        self.dropout = nn.Dropout(config.dropout)

    @property
    def state_size(self) -> int:
        return self.context.state_size

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None,
        state: Tensor,
        doc_starts: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The last addition to the stream is left to whoever reads the sum next.

        Args:
            x: (batch, time, hidden_size), the residual stream.
            residual: of x's shape, still to be added to it; None before the first block.
            state: (batch, state_size) float32.
            doc_starts: (batch, time) bool: a document starts there.
            mask: (batch, time) bool, False at padding.

        Returns:
            x and residual, of the same shapes, and the new state.
        """
        x, residual, state = self.context(x, residual, self.norm_context, state, doc_starts, mask)
        x, normed = add_norm(x, self.dropout(residual), self.norm_mlp.weight, self.norm_mlp.eps)
        return x, self.dropout(self.mlp(normed)), state
