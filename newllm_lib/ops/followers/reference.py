"""`followers` in plain torch: every token is compared with every place."""

from __future__ import annotations

import torch
from torch import Tensor


def followers(words: Tensor, place: Tensor, first: Tensor, reach: int, keep: float, size: int) -> tuple[Tensor, Tensor]:
    """As `followers.followers`, for `size` words."""
    at = torch.arange(words.shape[1], device=words.device)
    lag, first = place.unsqueeze(2) - at, first.unsqueeze(2)
    one = same(words, place, 1) & (at > first) & (lag >= 0) & (lag < reach - 1)
    two = one & same(words, place, 2) & (at > first + 1) & (lag < reach - 2) & (place.unsqueeze(2) > first)
    weight = keep ** lag.clamp_min(0)
    return _counted(words, one * weight, size), _counted(words, two * weight, size)


def same(words: Tensor, place: Tensor, back: int) -> Tensor:
    """(batch, time, length): whether the word `back` before each place is the one `back` - 1 before each token."""
    asked = place - (back - 1)
    word = words.gather(1, asked.clamp_min(0)) * (asked >= 0)
    before = torch.nn.functional.pad(words, (back, 0))[:, : words.shape[1]]
    return (before.unsqueeze(1) == word.unsqueeze(2)) & (word > 0).unsqueeze(2)


def _counted(words: Tensor, shares: Tensor, size: int) -> Tensor:
    counts = torch.zeros(*shares.shape[:2], size, device=words.device)
    return counts.scatter_add_(2, (words - 1).clamp_min(0).unsqueeze(1).expand_as(shares), shares)
