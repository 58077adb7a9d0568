"""Some rows of the matrix at a time, and the gradient of those rows brought back to the cores."""

from __future__ import annotations

import torch
from torch import Tensor

ROW_ELEMENTS = 1 << 24  # matrix entries that exist at a time: 32 MiB in half precision


class Pieces:
    """The matrix of cores first (V1, d1, rank), second (V2, rank, d2) in `dtype`, cut into pieces of whole
    first digits.

    One matrix product gives a piece as (i1, j1, i2, j2); it is written once more as rows, (i1, i2), (j1, j2).
    """

    def __init__(self, first: Tensor, second: Tensor, dtype: torch.dtype):
        self.first, self.shape = (
            first.to(dtype),
            (first.shape[0], second.shape[0], first.shape[1], second.shape[2]),
        )
        self.flat = second.to(dtype).transpose(0, 1).flatten(1)  # (rank, V2 * d2)
        v1, v2, d1, d2 = self.shape
        digits = max(1, ROW_ELEMENTS // (v2 * d1 * d2))
        digits = digits // 8 * 8 or digits  # pieces then begin at 16 bytes, which tensor cores want
        self.slices = [slice(i, min(v1, i + digits)) for i in range(0, v1, digits)]

    def columns(self, piece: slice) -> slice:
        """Which rows of the matrix (columns of the logits) the piece holds."""
        return slice(piece.start * self.shape[1], piece.stop * self.shape[1])

    def rows(self, piece: slice) -> Tensor:
        """The piece as rows of the matrix, ((i1, i2), d)."""
        _, v2, d1, d2 = self.shape
        product = self.first[piece].flatten(0, 1) @ self.flat
        return product.view(-1, d1, v2, d2).transpose(1, 2).reshape(-1, d1 * d2)

    def gradients(self, piece: slice, grad_rows: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of first[piece] (i1, d1, rank) and of `flat` (rank, V2 * d2) from those of the piece's
        rows; in float32 where those are float16, in which sums over thousands of rows could overflow."""
        _, v2, d1, d2 = self.shape
        dtype = torch.float32 if grad_rows.dtype == torch.float16 else grad_rows.dtype
        grad = grad_rows.to(dtype).view(-1, v2, d1, d2).transpose(1, 2).reshape(-1, v2 * d2)
        first = self.first[piece].flatten(0, 1).to(dtype)
        return (grad @ self.flat.to(dtype).T).view(-1, d1, first.shape[1]), first.T @ grad

    def unflatten(self, flat: Tensor) -> Tensor:
        """(rank, V2 * d2) as the second core has it, (V2, rank, d2)."""
        return flat.view(flat.shape[0], self.shape[1], self.shape[3]).transpose(0, 1).contiguous()
