"""The parameters of the sequential recurrence, as its implementations take them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn


class SequentialWeights(NamedTuple):
    """Sizes: embedding E, context C, hidden H, layers L."""

    mlp: tuple[tuple[torch.Tensor, torch.Tensor], ...]  # L x (weight, bias): (H, E + C), then (H, H); bias (H,)
    gates: tuple[torch.Tensor, torch.Tensor]  # weight (3 C, H) and bias (3 C,): delta, forget, write
    norm: tuple[torch.Tensor, torch.Tensor]  # weight and bias of the layer norm, (C,)
    eps: float = 1e-5

    @classmethod
    def of(cls, mlp, gates: nn.Linear, norm: nn.LayerNorm) -> SequentialWeights:
        """From the modules of a layer: `mlp` an iterable of nn.Linear."""
        layers = tuple((layer.weight, layer.bias) for layer in mlp)
        return cls(layers, (gates.weight, gates.bias), (norm.weight, norm.bias), norm.eps)
