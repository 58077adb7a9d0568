"""Linear attention as its equation says: all (time, time) weights at once, gradients by autograd."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def linear_attention(q, k, v, log_decay, doc_starts, state):
    """As `linear_attention.linear_attention`; computed in float32 (float64 for float64 inputs)."""
    compute = torch.promote_types(v.dtype, torch.float32)
    queries, keys, values, state = (x.to(compute) for x in (q, k, v, state))
    total = log_decay.to(compute).cumsum(-1)
    time = q.shape[2]
    document = (
        torch.zeros(q.shape[0], time, device=q.device, dtype=torch.long)
        if doc_starts is None
        else doc_starts.cumsum(-1)
    )
    seen = (document.unsqueeze(-1) == document.unsqueeze(-2)).tril().unsqueeze(1)
    decay = (total.unsqueeze(-1) - total.unsqueeze(-2)).masked_fill(~seen, float("-inf")).exp()
    weights = queries @ keys.mT * decay
    values = torch.cat([values, torch.ones_like(values[..., :1])], -1)
    before = total.masked_fill((document > 0).unsqueeze(1), float("-inf")).exp().unsqueeze(-1)
    sums = weights @ values + before * (queries @ state.mT)
    new = (values * decay[..., -1:, :].mT).mT @ keys + before[..., -1:, :] * state
    return (sums[..., :-1] / least(sums[..., -1:])).to(v.dtype), new


def least(total: torch.Tensor) -> torch.Tensor:
    """A sum of weights, never so small that its inverse overflows: a token that saw nothing gives 0."""
    return total.clamp_min(1e-30)


def horosphere_features(u, directions, sharpness, curvature):
    """As `features.horosphere_features`."""
    return log_horospheres(u, directions, curvature).mul(-sharpness[:, None, None]).softmax(-1)


def log_horospheres(u: torch.Tensor, directions: torch.Tensor, curvature: torch.Tensor) -> torch.Tensor:
    """log(1 - κ·ω), (batch, heads, time, features)."""
    compute = torch.promote_types(u.dtype, torch.float32)
    with torch.autocast(u.device.type, enabled=False):  # 1 - κ·ω has no digits to lose near the boundary
        u, boundary = u.to(compute), F.normalize(directions.to(compute), dim=-1)
        root = 2 * curvature.to(compute).sqrt()[:, None, None]
        norm = torch.linalg.vector_norm(u, dim=-1, keepdim=True)
        stretch = torch.where(norm > 1e-6, torch.tanh(root * norm) / norm.clamp_min(1e-6), root)
        return torch.log1p(-((stretch * u) @ boundary.mT).clamp(max=1 - 2.0**-20))
