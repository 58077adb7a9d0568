"""Hyperbolic attention in plain torch, in chunks of queries: where Triton has no tensor-core dot.

The mathematics, the notation and the numbers kept for the backward pass are those of `kernels` and
`backward_kernels`; a chunk's scores, for all heads at once, are all that is ever in memory of (queries,
keys).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from newllm_lib.ops.hyperbolic_attention.reference import first_visible, least_angle, padded

_CHUNK = 2**24  # scores at a time: 64 MiB in float32, of which a backward step holds about eight
_WINDOWED_ROWS = 64


def _product(a: Tensor, b: Tensor, compute: torch.dtype) -> Tensor:
    """a @ b of (batch, heads, ...) in the compute dtype: on tensor cores where b is in half precision."""
    if not b.is_cuda or b.dtype == compute:
        return a.to(compute) @ b.to(compute)
    if b.dtype == torch.float16:
        a = a.clamp(-65504, 65504)
    product = torch.bmm(a.to(b.dtype).flatten(0, 1), b.flatten(0, 1), out_dtype=compute)
    return product.unflatten(0, a.shape[:2])


def _numbers(u: Tensor, curvature: Tensor) -> tuple[Tensor, Tensor]:
    """a, and [1 - e^-a, E, room for one more] as (3, batch, heads, padded time)."""
    norm = torch.linalg.vector_norm(u, dim=-1, dtype=curvature.dtype)
    a = 2 * curvature.sqrt()[:, None] * norm
    delta = (-torch.expm1(-a)).clamp_min(torch.finfo(a.dtype).eps)
    E = torch.where(norm > 0, _A(delta) / norm.clamp_min(torch.finfo(a.dtype).tiny), 0)
    numbers = torch.stack([delta, E, torch.zeros_like(a)])
    return a, F.pad(numbers, (0, padded(u.shape[2]) - u.shape[2]))


def _A(delta: Tensor) -> Tensor:
    return delta - delta.square() / 2


def _scaled_cosh(products: Tensor, row: Tensor, column: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """2y, 2h and 2AB(1 - cos θ) of a chunk."""
    (row_delta, row_E), (delta, E) = row[:2].unsqueeze(-1), column[:2].unsqueeze(-2)
    row_A, A = _A(row_delta), _A(delta)
    angle = A - row_E / row_A * (products * E)
    spread = 2 * row_A * torch.maximum(angle, least_angle(products.dtype) * A)
    return (row_delta - delta).square() + spread, 4 * (1 - row_delta) * (1 - delta), spread


class _Chunks:
    """Walks over the queries: for each chunk its rows, the keys it may see, and which of them it does not."""

    def __init__(self, q: Tensor, k: Tensor, window: int | None, doc_starts: Tensor | None):
        (self.batch, heads, self.queries, _), self.keys = q.shape, k.shape[2]
        self.offset = self.keys - self.queries
        self.window = self.keys if window is None else window
        self.first = first_visible(self.batch, self.keys, window, doc_starts, q.device)[:, self.offset :]
        # rows at a time, which with a window make the keys that they see more
        most = max(self.window, _WINDOWED_ROWS)
        seen = min(self.keys, self.window + most)
        self.rows = max(1, min(self.queries, most, _CHUNK // (self.batch * heads * seen)))

    def __iter__(self):
        index = torch.arange(self.keys, device=self.first.device)
        for start in range(0, self.queries, self.rows):
            rows = slice(start, min(start + self.rows, self.queries))
            columns = slice(max(0, start + self.offset - self.window + 1), rows.stop + self.offset)
            key, position = index[columns], index[self.offset :][rows].unsqueeze(-1)
            hidden = (key > position) | (key < self.first[:, rows].unsqueeze(-1))
            yield rows, columns, hidden.unsqueeze(1)


def _slope(beta: Tensor, curvature: Tensor) -> Tensor:
    return -(beta / curvature.sqrt())[:, None, None]


def forward(q, k, v, beta, curvature, window, doc_starts):
    """As `triton.forward`."""
    compute = torch.promote_types(v.dtype, torch.float32)
    beta, curvature = beta.to(compute), curvature.to(compute)
    (_, q_numbers), (b, k_numbers) = _numbers(q, curvature), _numbers(k, curvature)
    slope = _slope(beta, curvature)
    k_numbers[2, ..., : k.shape[2]] = slope[..., 0] * b / math.log(2)
    out = torch.empty_like(q)
    for rows, columns, hidden in _Chunks(q, k, window, doc_starts):
        products = _product(q[:, :, rows], k[:, :, columns].mT, compute)
        y, h, _ = _scaled_cosh(products, q_numbers[..., rows], k_numbers[..., columns])
        scores = slope * torch.log2(y + h / 2 + (y * (y + h)).sqrt()) + k_numbers[2][..., columns].unsqueeze(
            -2
        )
        scores = scores.masked_fill(hidden, float("-inf")) * math.log(2)
        total = scores.logsumexp(-1)
        q_numbers[2][..., rows] = total / math.log(2)
        out[:, :, rows] = _product((scores - total.unsqueeze(-1)).exp(), v[:, :, columns], compute).to(
            out.dtype
        )
    return out, q_numbers, k_numbers


def backward(inputs, window, doc_starts, saved, dout):
    """As `triton.backward`; the output is not needed, as a chunk holds all weights of its queries."""
    (q, k, v, beta, curvature), (_, q_numbers, k_numbers) = inputs, saved
    compute = q_numbers.dtype
    beta32, root = beta.to(compute), curvature.to(compute).sqrt()[:, None]
    slope = _slope(beta32, curvature.to(compute))
    dq = torch.empty_like(q)
    across, dv = (
        torch.zeros(k.shape, dtype=compute, device=k.device),
        torch.zeros(v.shape, dtype=compute, device=v.device),
    )
    along, scores, lengths = across.new_zeros(k.shape[:3]), 0, 0
    for rows, columns, hidden in _Chunks(q, k, window, doc_starts):
        part_q, part_dout, row = q[:, :, rows], dout[:, :, rows], q_numbers[..., rows]
        part_k, part_v, column = k[:, :, columns], v[:, :, columns], k_numbers[..., columns]
        y, h, spread = _scaled_cosh(_product(part_q, part_k.mT, compute), row, column)
        square = y * (y + h)
        log_weights = slope * torch.log2(y + h / 2 + square.sqrt()) + (
            column[2].unsqueeze(-2) - row[2].unsqueeze(-1)
        )
        weights = torch.exp2(log_weights).masked_fill(hidden, 0)
        dweights = _product(part_dout, part_v.mT, compute)
        dscores = weights * (dweights - (weights * dweights).sum(-1, keepdim=True))
        g = dscores * square.rsqrt()
        row_pull, pull = (_length_pull(x) for x in (row.unsqueeze(-1), column.unsqueeze(-2)))
        difference = 2 * _A(row[0]).unsqueeze(-1) - 2 * _A(column[0]).unsqueeze(-2)
        scores += (dscores * log_weights).sum((0, 2, 3)) * math.log(2)
        row_along = (g * (row_pull * spread + difference)).sum(-1)
        row_across = _product(g * column[1].unsqueeze(-2), part_k, compute)
        gradient, inner = _length_gradient(row_across, row_along, part_q, row, root, slope)
        dq[:, :, rows], lengths = gradient.to(dq.dtype), lengths + inner.sum((0, 2))
        along[..., columns] += (g * (pull * spread - difference)).sum(-2)
        across[:, :, columns] += _product((g * row[1].unsqueeze(-1)).mT, part_q, compute)
        dv[:, :, columns] += _product(weights.mT, part_dout, compute)
    gradient, inner = _length_gradient(across, along, k, k_numbers[..., : k.shape[2]], root, slope)
    dk = torch.empty_like(k).copy_(gradient)
    dcurvature = (lengths + inner.sum((0, 2)) - scores) / (2 * curvature)
    dbeta = (scores / beta).to(beta.dtype)
    return dq, dk, torch.empty_like(v).copy_(dv), dbeta, dcurvature.to(curvature.dtype)


def _length_pull(numbers: Tensor) -> Tensor:
    A = _A(numbers[0])
    return (1 - A) / A


def _length_gradient(across, along, u, numbers, root, slope) -> tuple[Tensor, Tensor]:
    """The vectors' gradients and u·du, from the sums over their partners."""
    A, E = _A(numbers[0]), numbers[1]
    slopes = 2 * slope * torch.where(E > 0, E, 2 * root).unsqueeze(-1)  # across holds half of g
    unit = u.to(across.dtype) * (E / A).unsqueeze(-1)
    pull = 2 * root * slope[..., 0] * along
    norm = torch.where(E > 0, A / E.clamp_min(torch.finfo(E.dtype).tiny), 0)
    radial = (across * unit).sum(-1, keepdim=True)
    return (pull.unsqueeze(-1) + slopes * radial) * unit - slopes * across, pull * norm
