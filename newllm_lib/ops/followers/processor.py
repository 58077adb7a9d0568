"""`followers` on a processor: the places that match are few, so only they are weighed and added."""

from __future__ import annotations

import torch
from torch import Tensor

from newllm_lib.ops.followers.reference import same


def followers(words: Tensor, place: Tensor, first: Tensor, reach: int, keep: float, size: int) -> tuple[Tensor, Tensor]:
    """As `reference.followers`."""
    row, time, at = same(words, place, 1).nonzero(as_tuple=True)
    here, begin = place[row, time], first[row, time]
    lag = here - at
    one = (at > begin) & (lag >= 0) & (lag < reach - 1)
    two = one & (at > begin + 1) & (lag < reach - 2) & (here > begin)
    two_before = words[row, (at - 2).clamp_min(0)]
    two &= (two_before == words[row, (here - 1).clamp_min(0)]) & (two_before > 0)
    found, weight = [], keep ** lag.clamp_min(0)
    for chosen in (one, two):
        counts = torch.zeros(*place.shape, size, device=words.device)
        where = row[chosen], time[chosen], words[row, at][chosen] - 1
        found.append(counts.index_put_(where, weight[chosen], accumulate=True))
    return found[0], found[1]
