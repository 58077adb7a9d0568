"""The tensor train as on paper: the whole matrix from its cores. What is faster is tested against it."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def factors(vocabulary: int, dim: int) -> tuple[int, int, int, int]:
    """V1, V2, d1, d2 as near to square as they come: V1 * V2 >= vocabulary, d1 * d2 = dim, d1 <= d2."""
    v1 = math.isqrt(vocabulary - 1) + 1
    d1 = next(n for n in range(math.isqrt(dim), 0, -1) if dim % n == 0)
    return v1, -(-vocabulary // v1), d1, dim // d1


def matrix(first: Tensor, second: Tensor, vocabulary: int) -> Tensor:
    """The matrix (vocabulary, d1 * d2) of the cores first (V1, d1, rank) and second (V2, rank, d2)."""
    whole = torch.einsum("ajr,brk->abjk", first, second)
    return whole.reshape(first.shape[0] * second.shape[0], -1)[:vocabulary]


def holographic(
    first: Tensor, second: Tensor, first_phase: Tensor, second_phase: Tensor
) -> tuple[Tensor, Tensor]:
    """Cores (V1, d1, 2 rank), (V2, 2 rank, d2) of the matrix whose terms interfere by their phases.

    Each rank r of a digit is a wave of phase first_phase[i1, r] (V1, rank) or second_phase[i2, r] (V2, rank);
    the matrix is the real part of the waves' product, sum_r first[i1, :, r] cos(first_phase[i1, r] +
    second_phase[i2, r]) second[i2, r, :]. As cos(a + b) = cos a cos b - sin a sin b, that is a plain tensor
    train of twice the rank, for V1 + V2 more numbers a rank where plain cores of that rank would take V1 d1 +
    V2 d2 more.
    """
    a, b = first_phase.unsqueeze(1), second_phase.unsqueeze(2)
    return (
        torch.cat([first * a.cos(), first * a.sin()], 2),
        torch.cat([second * b.cos(), -second * b.sin()], 1),
    )
