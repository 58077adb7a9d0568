"""`online_trust` as a loop over the tokens, in plain torch."""

from __future__ import annotations

import torch


def online_trust(logits, parts, before, ids, newest, told, begins, moved, information, prior, keep):
    """As `online_trust.online_trust`; `newest` (batch, time): which token came before each, from 1, 0: that of `before`."""
    first, first_parts = before
    rows, found = torch.arange(len(ids), device=ids.device), []
    for t in range(ids.shape[1]):
        place, none = (newest[:, t] - 1).clamp_min(0), (newest[:, t] == 0).unsqueeze(1)
        settled = torch.where(none, first, logits[rows, place])
        f = [torch.where(none, one, part[rows, place]) for one, part in zip(first_parts, parts, strict=True)]
        f = torch.stack(f, 1)  # (batch, parts, words)
        p = torch.softmax(settled + (moved.unsqueeze(2) * f).sum(1), -1).unsqueeze(1)
        mean = (p * f).sum(-1)
        variance = (p * (f - mean.unsqueeze(2)).square()).sum(-1)
        error = f.gather(2, ids[:, t].view(-1, 1, 1).expand(-1, f.shape[1], 1)).squeeze(2) - mean
        told_more = keep * information + variance
        learns, starts = told[:, t, None], begins[:, t, None]
        moved = torch.where(learns, moved + error / (prior + told_more), moved).masked_fill(starts, 0.0)
        information = torch.where(learns, told_more, information).masked_fill(starts, 0.0)
        found.append(moved)
    return torch.stack(found, 1), moved, information
