"""The parameters of the sequential recurrence, as its implementations take them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from newllm_lib.errors import UsageError


class SequentialWeights(NamedTuple):
    """Sizes: embedding E, context C, hidden H, layers L."""

    mlp: tuple[tuple[torch.Tensor, torch.Tensor], ...]  # L x (weight, bias): (H, E + C), then (H, H); bias (H,)
    gates: tuple[torch.Tensor, torch.Tensor]  # weight (3 C, H) and bias (3 C,): delta, forget, write
    norm: tuple[torch.Tensor, torch.Tensor]  # weight and bias of the layer norm, (C,)
    eps: float = 1e-5

    @classmethod
    def of(cls, mlp, gates: nn.Linear, norm: nn.LayerNorm) -> SequentialWeights:
        """From the modules of a layer: `mlp` an iterable of nn.Linear, which may carry LoRA adapters."""
        layers = tuple((adapted_weight(layer), layer.bias) for layer in mlp)
        return cls(layers, (adapted_weight(gates), gates.bias), (norm.weight, norm.bias), norm.eps)


def adapted_weight(linear: nn.Module) -> torch.Tensor:
    """The weight that a linear layer computes with. The recurrence does not call its layers, so what PEFT's adapters add is
    added here, as a sum of matrices that gradients flow through.

    Raises:
        UsageError: the adapters have a dropout, which acts on a layer's input.
    """
    if not hasattr(linear, "get_delta_weight") or linear.disable_adapters or linear.merged:
        return linear.weight
    weight = linear.get_base_layer().weight
    for name in linear.active_adapters:
        if linear.training and getattr(linear.lora_dropout[name], "p", 0.0):
            raise UsageError("lora_dropout cannot be had with the sequential recurrence (it reads weights whole): set it to 0.")
        weight = weight + linear.get_delta_weight(name)
    return weight
