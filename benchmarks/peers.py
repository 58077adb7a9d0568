"""The peers that the library does not have: small and plain, sized to a number of parameters.

Each maps token ids (batch, time) to hidden states (batch, time, width) whose product with `head` is the
logits, and says with `step` what training needs: the mean loss, and a state for those that carry one.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from newllm_lib.ops.add_norm import add_norm_conv
from newllm_lib.ops.linear_cross_entropy import linear_cross_entropy
from newllm_lib.recipe import Recipe, load_recipe
from newllm_lib.training.model_config import count_parameters, model_config


class Attention(nn.Module):
    """A modern decoder: rotary positions (Su et al., 2021, arXiv 2104.09864), RMSNorm, normalised queries and
    keys (Henry et al., 2020, arXiv 2010.04245), SwiGLU (Shazeer, 2020, arXiv 2002.05202), tied head.

    Args:
        helped: short convolutions before attention and MLP, and a share of the embeddings in each block.
    """

    carries = False

    def __init__(
        self,
        vocabulary: int,
        width: int,
        layers: int,
        heads: int,
        inner: int,
        dropout: float,
        helped: bool = False,
    ):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            _AttentionBlock(width, heads, inner, dropout, helped) for _ in range(layers)
        )
        self.norm = nn.RMSNorm(width, eps=1e-6)
        _initialise(self, layers)

    @property
    def head(self) -> torch.Tensor:
        return self.embedding.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = embedded = self.dropout(self.embedding(ids))
        turn = _rotation(ids.shape[1], self.blocks[0].size, ids.device)
        for block in self.blocks:
            x = block(x, embedded, turn)
        return self.norm(x)

    def step(self, ids, labels, state):
        return linear_cross_entropy(self(ids), self.head, labels), state


class _AttentionBlock(nn.Module):
    def __init__(self, width: int, heads: int, inner: int, dropout: float, helped: bool):
        super().__init__()
        self.heads, self.size = heads, width // heads
        self.norm, self.norm_mlp = nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6)
        self.project, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 2 * inner, bias=False), nn.Linear(inner, width, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.convs = nn.ParameterList(torch.zeros(width, 4) for _ in range(2)) if helped else None
        self.shares = nn.Parameter(torch.tensor([1.0, 0.0])) if helped else None

    def forward(self, x, embedded, turn):
        batch, time, width = x.shape
        if self.shares is not None:
            x = self.shares[0] * x + self.shares[1] * embedded
        parts = self.project(self._read(0, self.norm, x)).view(batch, time, 3, self.heads, self.size)
        query, key, value = parts.transpose(1, 3).unbind(2)
        query, key = (_turned(F.rms_norm(p, (self.size,)), turn).to(value.dtype) for p in (query, key))
        read = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.dropout(self.out(read.transpose(1, 2).reshape(batch, time, width)))
        gate, inner = self.up(self._read(1, self.norm_mlp, x)).chunk(2, -1)
        return x + self.dropout(self.down(F.silu(gate) * inner))

    def _read(self, which: int, norm: nn.RMSNorm, x):
        """The stream through its norm and, where it has one, the short convolution."""
        if self.convs is None:
            return norm(x)
        return add_norm_conv(x, None, norm.weight, self.convs[which], eps=norm.eps)[1]


def _rotation(time: int, size: int, device) -> tuple[torch.Tensor, torch.Tensor]:
    speed = 10000.0 ** (-torch.arange(0, size, 2, device=device) / size)
    angle = torch.arange(time, device=device)[:, None] * speed
    return angle.cos(), angle.sin()


def _turned(x, turn):
    (first, second), (cos, sin) = x.chunk(2, -1), turn
    return torch.cat([first * cos - second * sin, first * sin + second * cos], -1)


class Lstm(nn.Module):
    """Two layers of cuDNN's LSTM, tied head; its state is carried from block to block."""

    carries = True

    def __init__(self, vocabulary: int, width: int, layers: int, dropout: float):
        super().__init__()
        self.layers, self.width = layers, width
        self.embedding = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, width, layers, batch_first=True, dropout=dropout)
        self.dropout = nn.Dropout(dropout)
        nn.init.normal_(self.embedding.weight, std=0.05)

    @property
    def head(self) -> torch.Tensor:
        return self.embedding.weight

    def forward(self, ids, state=None):
        if state is not None:
            state = tuple(part.contiguous() for part in state.transpose(0, 1).split(self.layers))
        x, (h, c) = self.lstm(self.dropout(self.embedding(ids)), state)
        return self.dropout(x), torch.cat([h, c]).transpose(0, 1).float()

    def step(self, ids, labels, state):
        x, state = self(ids, state)
        return linear_cross_entropy(x, self.head, labels), state

    def initial_state(self, batch: int) -> torch.Tensor:
        return torch.zeros(batch, 2 * self.layers, self.width, device=self.head.device)


class Ours(nn.Module):
    """One of the library's models with the peers' `step`."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.carries = hasattr(getattr(model, "model", None), "initial_state")

    def step(self, ids, labels, state):
        if not self.carries:
            return self.model(input_ids=ids, shift_labels=labels, use_cache=False).loss, state
        output = self.model(input_ids=ids, shift_labels=labels, state=state, use_cache=True)
        return output.loss, output.state

    def initial_state(self, batch: int) -> torch.Tensor:
        return self.model.model.initial_state(batch)


SIZES = {
    "4M": (4_200_000, 256, 4),
    "10M": (10_000_000, 384, 5),
    "25M": (25_000_000, 512, 8),
    "124M": (124_000_000, 768, 12),
}
"""A size's name: its parameters, its width and its depth."""


def build_peer(name: str, size: str, vocabulary: int, dropout: float, layers: int | None = None) -> nn.Module:
    """A fresh peer of about so many parameters (within 2 % of `SIZES`), from torch's random state.

    Args:
        name: "attention", "attention_helped" or "lstm".
        layers: instead of the size's own.
    """
    target, width, depth = SIZES[size]
    if name == "lstm":
        width = round(math.sqrt((vocabulary / 32) ** 2 + target / 16) - vocabulary / 32)
        return Lstm(vocabulary, width, 2, dropout)
    depth = layers or depth
    inner = _inner(target, vocabulary, width, depth)
    return Attention(vocabulary, width, depth, width // 64, inner, dropout, helped=name == "attention_helped")


def attention_like(recipe: Recipe, vocabulary: int) -> Attention:
    """Modern attention in the place of the recipe's New-LLM: its width, depth, dropout and parameters."""
    target, width, depth = (
        count_parameters(model_config(recipe, vocabulary)),
        recipe.hidden_size,
        recipe.num_layers,
    )
    inner = max(8, _inner(target, vocabulary, width, depth))
    return Attention(vocabulary, width, depth, recipe.num_heads, inner, recipe.dropout)


def _inner(target: int, vocabulary: int, width: int, depth: int) -> int:
    """The MLP's channels with which modern attention has so many parameters."""
    return round((target - vocabulary * width - depth * 4 * width * width) / (depth * 3 * width) / 8) * 8


def sized_recipe(name: str, size: str, vocabulary: int, **keys) -> Recipe:
    """The recipe `demo` of one of the library's own models, its MLP so wide that it has about as many
    parameters as `SIZES` says.

    Args:
        name: "new_llm", "tiny_gpt2", or "seed" (the original's sequential recurrence: one layer of the
            per-token MLP).
        keys: other keys of the recipe.
    """
    target, width, depth = SIZES[size]
    one = {"hidden_size": width, "context_dim": width, "num_layers": depth, "num_heads": width // 64}
    one |= {"sized_for": "h100", "vocab_size": vocabulary, **keys}
    step = 8
    if name == "seed":
        one |= {"hidden_size": 256, "context_dim": 256, "num_layers": 1}
        one |= {"recurrence": "sequential"}
        step = 1
    few, many = (_parameters({**one, "mlp_size": n}, vocabulary) for n in (256, 512))  # linear in it
    mlp_size = step * round((256 + (target - few) * 256 / (many - few)) / step)
    model = "tiny_gpt2" if name == "tiny_gpt2" else "new_llm"
    return load_recipe("demo", {**one, "mlp_size": mlp_size, "model": model})


def _parameters(keys: dict, vocabulary: int) -> int:
    return count_parameters(model_config(load_recipe("demo", {**keys, "model": "new_llm"}), vocabulary))


def _initialise(model: nn.Module, layers: int) -> None:
    """GPT-2's way: 0.02, less for what is added to the residual stream."""
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            residual = name.endswith(("out", "down"))
            nn.init.normal_(module.weight, std=0.02 / math.sqrt(2 * layers) if residual else 0.02)
        elif isinstance(module, _AttentionBlock) and module.convs is not None:
            for weight in module.convs:
                nn.init.uniform_(weight, -0.5, 0.5)
