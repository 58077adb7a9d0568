"""Which sizes the kernels take on which GPU: a program must fit a multiprocessor's shared memory.

The bytes are upper bounds on what Triton 3.9 asks for on sm80 to sm90 (`tests/ops/test_kernels_compile.py`
compares them): operands of products in their dtype, and one tile of a state in float32.
"""

from __future__ import annotations

import torch

from newllm_lib.ops.common import dispatch

CHUNKS = 64, 32  # tokens a program takes at once; the longer, the fewer states are written


def chunk(features: int, dim: int, dtype: torch.dtype, device: torch.device) -> int:
    """Tokens a program of linear attention takes; 0 where not even the fewest fit."""
    limit = dispatch.shared_memory(device)
    return next(
        (length for length in CHUNKS if _attention_bytes(*_blocks(features, dim), dtype, length) <= limit), 0
    )


def features_fit(features: int, dim: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the feature map's kernels take these sizes."""
    features, dim = _blocks(features, dim)
    return features * dim * (24 if dtype == torch.float32 else 12) + 512 <= dispatch.shared_memory(device)


def _blocks(*sizes: int) -> tuple[int, ...]:
    return tuple(max(16, 1 << (size - 1).bit_length()) for size in sizes)


def _attention_bytes(features: int, dim: int, dtype: torch.dtype, length: int) -> int:
    if dtype == torch.float32:  # its operands stay in registers, in three parts
        return max(2**16, 6 * features * dim)
    return 4 * length * (features + dim) + 8 * features * dim


# They ask the driver, which torch.compile can't trace; for given sizes and GPU they are constants (see
# `ops.common.dispatch`).
chunk._dynamo_marked_constant = True
features_fit._dynamo_marked_constant = True
