"""`token_embedding` in plain torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def token_embedding(ids: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Sizes as in `embedding.token_embedding`."""
    return F.embedding(ids, weight).to(dtype)
