"""Weights in bfloat16, or float16 where a GPU has none: matrices step with stochastic rounding; vectors, few
and delicate, stay float32.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager

import torch
from torch import nn


def lighten_(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Matrices to `dtype`, vectors and scalars to float32, in place, one parameter after the other."""
    for p in model.parameters():
        if p.is_floating_point():
            p.data = p.data.to(dtype if p.ndim >= 2 else torch.float32)
    return model


def build_light(
    build: Callable[[], nn.Module], device: torch.device, dtype: torch.dtype = torch.bfloat16
) -> nn.Module:
    """What `build` returns, made on `device` in `dtype`: never in float32, nor in the host's memory."""
    with torch.device(device), _default_dtype(dtype):
        model = build()
    return lighten_(model.to(device), dtype)


@contextmanager
def _default_dtype(dtype: torch.dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
