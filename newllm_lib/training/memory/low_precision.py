"""Weights in bfloat16: matrices step with stochastic rounding; vectors, few and delicate, stay float32."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager

import torch
from torch import nn


def lighten_(model: nn.Module) -> nn.Module:
    """Matrices to bfloat16, vectors and scalars to float32, in place, one parameter after the other."""
    for p in model.parameters():
        if p.is_floating_point():
            p.data = p.data.to(torch.bfloat16 if p.ndim >= 2 else torch.float32)
    return model


def build_light(build: Callable[[], nn.Module], device: torch.device) -> nn.Module:
    """What `build` returns, made on `device` in bfloat16: never in float32, nor in the host's memory."""
    with torch.device(device), _default_dtype(torch.bfloat16):
        model = build()
    return lighten_(model.to(device))


@contextmanager
def _default_dtype(dtype: torch.dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
