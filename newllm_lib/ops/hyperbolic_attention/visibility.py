"""Which keys a query sees: from the first of its document and of its window up to itself."""

from __future__ import annotations

import torch


def first_visible(
    batch: int, time: int, window: int | None, starts: torch.Tensor | None, device: torch.device
) -> torch.Tensor:
    """(batch, time) int32: the first position that each position sees; it never falls along time."""
    index = torch.arange(time, device=device, dtype=torch.int32)
    first = torch.zeros_like(index) if window is None else (index - (window - 1)).clamp_min(0)
    if starts is None:
        return first.expand(batch, time)
    return torch.maximum(first, (index * starts).cummax(1).values.to(torch.int32))


def last_seeing(first: torch.Tensor) -> torch.Tensor:
    """(batch, time) int32: the last position that sees each position, from `first_visible`'s answer."""
    index = torch.arange(first.shape[1], device=first.device, dtype=torch.int32).expand_as(first).contiguous()
    return torch.searchsorted(first.contiguous(), index, right=True, out_int32=True) - 1
