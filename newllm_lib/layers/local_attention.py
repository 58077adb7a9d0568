"""Attention to the last `window` tokens, by distance in hyperbolic space or by the usual product.

Queries and keys are rotated by their position (Su et al., 2021, arXiv 2104.09864). A rotation moves the
Poincaré ball into itself, so the distance of two rotated points depends on how far apart their tokens stand,
not on where. Between two calls the last window - 1 keys and values are kept, unrotated: any stretch of text
has positions of its own, however long the text is.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from newllm_lib.layers.rotary import rotated
from newllm_lib.ops.common.dispatch import runs_triton_dot
from newllm_lib.ops.hyperbolic_attention import hyperbolic_attention
from newllm_lib.ops.hyperbolic_attention.reference import first_visible


class Past(NamedTuple):
    """What attention still sees of the text before: keys, values (batch, window - 1, hidden); the last
    `count` (batch,) of them are of the same document."""

    keys: torch.Tensor
    values: torch.Tensor
    count: torch.Tensor

    def flat(self) -> torch.Tensor:
        """As one tensor (batch, state_size), float32."""
        parts = self.keys.flatten(1), self.values.flatten(1), self.count.unsqueeze(1)
        return torch.cat([part.float() for part in parts], -1)


class LocalAttention(nn.Module):
    """(batch, time, hidden) -> (batch, time, hidden), without the output's matrix.

    A score is -beta d_c(q, k) ("hyperbolic": c and beta are learned, one of each for a head) or q k /
    sqrt(dim) ("dot").
    """

    def __init__(self, hidden_size: int, num_heads: int, window: int, kind: str, flash: bool):
        super().__init__()
        if hidden_size % num_heads or hidden_size // num_heads % 2:
            raise ValueError(
                f"hidden_size {hidden_size} must be an even multiple of num_heads {num_heads}: change one of "
                "them."
            )
        self.hidden_size, self.num_heads, self.window, self.kind, self.flash = (
            hidden_size,
            num_heads,
            window,
            kind,
            flash,
        )
        self.head_dim = hidden_size // num_heads
        self.project = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        if kind == "hyperbolic":
            self.log_beta = nn.Parameter(torch.full((num_heads,), 0.5 * math.log(self.head_dim)))
            self.log_curvature = nn.Parameter(torch.zeros(num_heads))

    @property
    def state_size(self) -> int:
        return 2 * (self.window - 1) * self.hidden_size + 1

    def forward(self, x, state, rotation, doc_starts, lengths, curvature_factor, output_final_state: bool):
        """
        Args:
            state: (batch, state_size) float32, or None at a text's beginning.
            rotation: cos and sin as `rotation` gives them, for the past's positions and x's.
            doc_starts: (batch, time) bool or None.
            lengths: (batch,) tokens that are not padding, which stands at the end; or None.
            curvature_factor: scalar on the learned curvatures.
            output_final_state: also return the new state.

        Returns:
            (batch, time, hidden), and the new state or None.
        """
        past = None if state is None else self._past(state)
        qkv = self.project(x)
        # Tangent vectors of the ball: of about unit length, whatever the head's size.
        scale = 1 / math.sqrt(self.head_dim) if self.kind == "hyperbolic" else 1.0
        if past is None and not output_final_state and self._takes_packed(qkv):
            return self._packed(qkv, rotation, scale, doc_starts, curvature_factor), None
        q, k, v = qkv.chunk(3, -1)
        history = _History.of(k, v, past, doc_starts)
        q, keys, values = (
            t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in (q, history.keys, history.values)
        )
        q, keys = rotated(q, rotation, scale), rotated(keys, rotation, scale)
        y = self._attend(q, keys, values, history.doc_starts, curvature_factor)
        new = history.past(self.window - 1, lengths).flat() if output_final_state else None
        return y.transpose(1, 2).flatten(2), new

    def _past(self, state) -> Past:
        half, shape = (self.state_size - 1) // 2, (state.shape[0], self.window - 1, self.hidden_size)
        keys, values, count = state.split([half, half, 1], -1)
        return Past(keys.reshape(shape), values.reshape(shape), count[:, 0].long())

    def _takes_packed(self, qkv) -> bool:
        ours = self.kind == "hyperbolic" and self.flash and not torch.compiler.is_compiling()
        return ours and runs_triton_dot(qkv, float32=True)

    def _packed(self, qkv, rotation, scale: float, doc_starts, curvature_factor):
        from newllm_lib.ops.hyperbolic_attention.triton import packed_attention_

        sizes = {"window": self.window, "heads": self.num_heads, "scale": scale}
        rotation = tuple(t[-qkv.shape[1] :] for t in rotation)
        return packed_attention_(
            qkv, rotation, *self._geometry(curvature_factor), doc_starts=doc_starts, **sizes
        )

    def _geometry(self, curvature_factor):
        """beta and curvature of each head."""
        return self.log_beta.exp(), self.log_curvature.exp() * curvature_factor

    def _attend(self, q, k, v, doc_starts, curvature_factor):
        if self.kind == "hyperbolic":
            beta, curvature = self._geometry(curvature_factor)
            backend = "auto" if self.flash else "reference"
            return hyperbolic_attention(
                q, k, v, beta, curvature, window=self.window, doc_starts=doc_starts, backend=backend
            )
        seen = self._seen(q.shape[2], k, doc_starts)
        if self.flash:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        scores = (q.float() @ k.float().transpose(-1, -2)) / math.sqrt(self.head_dim)
        return (scores.masked_fill(~seen, float("-inf")).softmax(-1) @ v.float()).to(v.dtype)

    def _seen(self, queries: int, k, doc_starts):
        """(batch, 1, queries, keys) bool: which keys each query sees."""
        first = first_visible(k.shape[0], k.shape[2], self.window, doc_starts, k.device)[:, -queries:]
        key = torch.arange(k.shape[2], device=k.device)
        position = key[k.shape[2] - queries :]
        return ((key <= position[:, None]) & (key >= first.unsqueeze(-1))).unsqueeze(1)


class _History(NamedTuple):
    """Past and new keys and values, (batch, behind + time, hidden), and where documents start in them."""

    keys: torch.Tensor
    values: torch.Tensor
    doc_starts: torch.Tensor | None
    behind: int
    count: torch.Tensor | None

    @classmethod
    def of(cls, k, v, past: Past | None, doc_starts) -> _History:
        if past is None:
            return cls(k, v, doc_starts, 0, None)
        behind = past.keys.shape[1]
        # first of what is seen
        begins = torch.arange(behind + k.shape[1], device=k.device) == (behind - past.count).unsqueeze(1)
        if doc_starts is not None:
            begins = begins | F.pad(doc_starts, (behind, 0))
        keys, values = (
            torch.cat([old.to(new.dtype), new], 1) for old, new in ((past.keys, k), (past.values, v))
        )
        return cls(keys, values, begins, behind, past.count)

    def past(self, size: int, lengths) -> Past:
        """The last `size` places before each row's padding."""
        batch, places, hidden = self.keys.shape
        if lengths is None:
            lengths = self.keys.new_full((batch,), places - self.behind, dtype=torch.long)
        ends = self.behind + lengths
        place = ends.unsqueeze(1) - size + torch.arange(size, device=self.keys.device)
        index = place.clamp_min(0).unsqueeze(-1).expand(-1, -1, hidden)
        keys, values = (
            t.gather(1, index).float() * (place >= 0).unsqueeze(-1) for t in (self.keys, self.values)
        )
        first = torch.zeros_like(ends)  # where the last document, or what is known of it, begins
        if self.doc_starts is not None:
            first = (torch.arange(places, device=ends.device) * self.doc_starts).amax(1)
        return Past(keys, values, (ends - first).clamp(max=size))
