"""The context scan as one reads it on paper: a loop over time. Slow; everything faster is tested against it."""

from __future__ import annotations

import torch


def context_scan(
    a: torch.Tensor, b: torch.Tensor, initial_state: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """c_t = a_t * c_{t-1} + b_t, elementwise: how much of the context is kept, plus what the token writes into it.

    Args:
        a, b: (batch, time, dim). A document start is an `a` of 0 there: nothing of the past is kept.
        initial_state: (batch, dim), the context before the first token; zeros by default.
    Returns:
        c (batch, time, dim) in b's dtype and the final state (batch, dim) in float32 (float64 for float64 inputs).
    """
    compute = torch.float64 if b.dtype == torch.float64 else torch.float32
    batch, time, dim = b.shape
    state = b.new_zeros(batch, dim, dtype=compute) if initial_state is None else initial_state.to(compute)
    contexts = []
    for t in range(time):
        state = a[:, t].to(compute) * state + b[:, t].to(compute)
        contexts.append(state)
    return torch.stack(contexts, 1).to(b.dtype), state
