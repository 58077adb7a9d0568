"""c_t = a_t * c_{t-1} + b_t: the recurrence that carries New-LLM's context vector, for any batch, length and width."""

from __future__ import annotations

import torch

from newllm_lib.ops.backend import runs_triton
from newllm_lib.ops.context_scan import chunked, reference


def context_scan(
    a: torch.Tensor, b: torch.Tensor, initial_state: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scan with the version that suits the tensors' device and length.

    Args:
        a, b: (batch, time, dim), gates and inputs; an `a` of 0 starts a new document.
        initial_state: (batch, dim) or None for zeros.
    Returns:
        c (batch, time, dim) in b's dtype, final state (batch, dim) in float32.
    """
    if runs_triton(b):
        from newllm_lib.ops.context_scan import triton

        return triton.context_scan(a, b, initial_state)
    if b.shape[1] == 1:  # one decoding step: the recurrence itself
        return reference.context_scan(a, b, initial_state)
    return chunked.context_scan(a, b, initial_state)
