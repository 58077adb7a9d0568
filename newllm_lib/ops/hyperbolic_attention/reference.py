"""Hyperbolic attention by its equations: (time, time) scores a head at once, gradients by autograd.

The distance of the Poincaré ball in numbers that neither overflow nor cancel, however near the boundary a
point lies.

A vector u is mapped to the point exp_0(u) = tanh(√c|u|) u / (√c|u|) of the ball of curvature -c, at the
distance a/√c = 2|u| from the origin. With a and b for two points and θ the angle between them, the distance
d_c is D/√c with

    cosh D = 1 + 2c|x-y|²/((1-c|x|²)(1-c|y|²)) = cosh a cosh b - sinh a sinh b cos θ,

the law of cosines of hyperbolic space. Neither side can be computed as it stands: 1 - c|x|² is 0 in float32
from |u| = 9 on, cosh overflows from a = 88 on, and both cancel for near points. So everything is divided by
e^(a+b), and written as a sum of positive terms: with α = e^-a, β = e^-b, A = (1-α²)/2 and B = (1-β²)/2,

    y = (cosh D - 1) e^-(a+b) = (α-β)²/2 + AB(1 - cos θ),      h = 2 e^-(a+b) = 2αβ,
    D = a + b + log(y + h/2 + √(y(y+h))).

AB cos θ is E·F·(u·w) with E = A/|u|, which has a limit at u = 0, and u·w a product of the vectors as they are
given: none is rounded on its way to the matrix product.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class Polar(NamedTuple):
    """What a vector contributes to its distances, each (batch, heads, time)."""

    a: torch.Tensor  # 2√c|u|: √c times the distance from the origin
    alpha: torch.Tensor  # e^-a
    A: torch.Tensor  # (1 - e^-2a)/2
    E: torch.Tensor  # A/|u|


def polar(u: torch.Tensor, curvature: torch.Tensor) -> Polar:
    """u (batch, heads, time, dim) and curvature (heads,), of one dtype."""
    norm = torch.linalg.vector_norm(u, dim=-1)
    root = curvature.sqrt()[:, None]
    a = 2 * root * norm
    A = -torch.expm1(-2 * a) / 2
    E = torch.where(norm > 0, A / norm.clamp_min(torch.finfo(u.dtype).tiny), 2 * root)
    # so y > 0 between two points at 0
    return Polar(a, torch.exp(-a), A.clamp_min(torch.finfo(u.dtype).eps), E)


def padded(time: int) -> int:
    """Room for the numbers that a pass keeps of `time` vectors: whole tiles of up to 128."""
    return (time + 127) // 128 * 128


def least_angle(dtype: torch.dtype) -> float:
    """The smallest 1 - cos θ that is told from 0: below it the matrix product has no digits left."""
    return 8 * torch.finfo(dtype).eps


def scaled_cosh(products: torch.Tensor, row: Polar, column: Polar) -> tuple[torch.Tensor, torch.Tensor]:
    """y and h (see above), (..., rows, columns), from the vectors' products u·w of that size."""
    AB = row.A.unsqueeze(-1) * column.A.unsqueeze(-2)
    angle = AB - row.E.unsqueeze(-1) * (column.E.unsqueeze(-2) * products)
    angle = torch.maximum(angle, least_angle(products.dtype) * AB)
    y = (row.alpha.unsqueeze(-1) - column.alpha.unsqueeze(-2)).square() / 2 + angle
    return y, 2 * row.alpha.unsqueeze(-1) * column.alpha.unsqueeze(-2)


def distances(products: torch.Tensor, row: Polar, column: Polar) -> torch.Tensor:
    """D = √c d_c of every row and column."""
    y, h = scaled_cosh(products, row, column)
    return row.a.unsqueeze(-1) + column.a.unsqueeze(-2) + torch.log(y + h / 2 + torch.sqrt(y * (y + h)))


def first_visible(
    batch: int, time: int, window: int | None, doc_starts: torch.Tensor | None, device: torch.device
) -> torch.Tensor:
    """(batch, time) int32: the first position that each position sees; it never falls along time."""
    index = torch.arange(time, device=device, dtype=torch.int32)
    first = torch.zeros_like(index) if window is None else (index - (window - 1)).clamp_min(0)
    if doc_starts is None:
        return first.expand(batch, time)
    return torch.maximum(first, (index * doc_starts).cummax(1).values.to(torch.int32))


def last_seeing(first: torch.Tensor) -> torch.Tensor:
    """(batch, time) int32: the last position that sees each position, from `first_visible`'s answer."""
    index = torch.arange(first.shape[1], device=first.device, dtype=torch.int32).expand_as(first).contiguous()
    return torch.searchsorted(first.contiguous(), index, right=True, out_int32=True) - 1


def hyperbolic_attention(q, k, v, beta, curvature, window=None, doc_starts=None):
    """As `hyperbolic_attention.hyperbolic_attention`; computed in float32 (float64 for float64 inputs)."""
    compute = torch.promote_types(v.dtype, torch.float32)
    queries, keys, values = (x.to(compute) for x in (q, k, v))
    beta, curvature = beta.to(compute), curvature.to(compute)
    row, column = polar(queries, curvature), polar(keys, curvature)
    distance = distances(queries @ keys.transpose(-1, -2), row, column)
    scores = -(beta / curvature.sqrt())[:, None, None] * distance
    key = torch.arange(k.shape[2], device=k.device)
    position = key[k.shape[2] - q.shape[2] :]
    first = first_visible(k.shape[0], k.shape[2], window, doc_starts, k.device)[:, -q.shape[2] :]
    hidden = (key > position[:, None]) | (key < first.unsqueeze(-1))
    weights = scores.masked_fill(hidden.unsqueeze(1), float("-inf")).softmax(-1)
    return (weights @ values).to(v.dtype)
