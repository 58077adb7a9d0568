"""The embedding's rows in the stream's dtype: one pass each way (torch writes float32, then converts).

The gradient is a sum of rows by word. On a GPU it is added up in float32 as the rows come; with torch's
deterministic algorithms on, by torch, which sorts them first.
"""

from __future__ import annotations

import torch

from newllm_lib.ops.common.dispatch import Operation, runs_triton
from newllm_lib.ops.embedding import reference

_implementation = Operation(reference)


@_implementation.register(
    lambda weight: runs_triton(weight) and not torch.are_deterministic_algorithms_enabled()
)
def _triton():
    from newllm_lib.ops.embedding import triton

    return triton


def token_embedding(ids: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """weight[ids] in `dtype`.

    Args:
        ids: (...) int64.
        weight: (vocabulary, dim).

    Returns:
        (..., dim).
    """
    return _implementation(weight).token_embedding(ids, weight, dtype)
