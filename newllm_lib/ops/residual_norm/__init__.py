"""x + y and its RMSNorm together: the residual stream goes on, its norm is what the next layer reads.

Where Triton runs both are one pass over memory, and so is their gradient, which also adds what comes back along the residual
stream. torch.compile fuses the plain form by itself.
"""

from __future__ import annotations

import torch

from newllm_lib.ops.backend import runs_triton
from newllm_lib.ops.residual_norm import reference


def residual_norm(
    x: torch.Tensor, y: torch.Tensor | None, weight: torch.Tensor, eps: float = 1e-6
) -> tuple[torch.Tensor, torch.Tensor]:
    """s = x + y (x itself where y is None) and s / rms(s) * weight, both in x's dtype; computed in float32.

    Args:
        x, y: (..., dim). weight: (dim,).
    """
    if y is not None:
        y = y.to(x.dtype)
    if runs_triton(x) and not torch.compiler.is_compiling():
        from newllm_lib.ops.residual_norm import triton

        return triton.residual_norm(x, y, weight, eps)
    return reference.residual_norm(x, y, weight, eps)
