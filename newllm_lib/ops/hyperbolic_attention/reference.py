"""Hyperbolic attention as its equations say, all scores at once: (time, time) numbers a head, gradients by autograd."""

from __future__ import annotations

import torch

from newllm_lib.ops.hyperbolic_attention import geometry
from newllm_lib.ops.hyperbolic_attention.visibility import first_visible


def hyperbolic_attention(q, k, v, beta, curvature, window=None, starts=None):
    """As `hyperbolic_attention.hyperbolic_attention`; computed in float32 (float64 for float64 inputs)."""
    compute = torch.promote_types(v.dtype, torch.float32)
    queries, keys, values = (x.to(compute) for x in (q, k, v))
    beta, curvature = beta.to(compute), curvature.to(compute)
    row, column = geometry.polar(queries, curvature), geometry.polar(keys, curvature)
    distance = geometry.distances(queries @ keys.transpose(-1, -2), row, column)
    scores = -(beta / curvature.sqrt())[:, None, None] * distance
    key = torch.arange(k.shape[2], device=k.device)
    position = key[k.shape[2] - q.shape[2] :]
    first = first_visible(k.shape[0], k.shape[2], window, starts, k.device)[:, -q.shape[2] :]
    hidden = (key > position[:, None]) | (key < first.unsqueeze(-1))
    weights = scores.masked_fill(hidden.unsqueeze(1), float("-inf")).softmax(-1)
    return (weights @ values).to(v.dtype)
