"""The sequential recurrence as one reads it on paper: a loop over time. Slow; `hoisted` is tested against it."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from newllm_lib.ops.sequential_context.weights import SequentialWeights


def sequential_context(
    embeddings: torch.Tensor,
    weights: SequentialWeights,
    initial_context: torch.Tensor | None = None,
    starts: torch.Tensor | None = None,
    valid: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """h_t = MLP([e_t; c_{t-1}]), c_t = LN(sigmoid(forget) * c_{t-1} + sigmoid(write) * delta), all three linear in h_t.

    Args:
        embeddings: (batch, time, embedding). initial_context: (batch, context), zeros by default.
        starts: (batch, time) bool: there c_{t-1} is taken as 0. valid: (batch, time) bool: False is padding, c_t =
            c_{t-1} there whatever `starts` says, and h_t means nothing.
    Returns:
        h (batch, time, hidden) in the dtype of the matrix products, and the final context (batch, context) in float32
        (float64 for float64 embeddings).
    """
    compute = torch.promote_types(embeddings.dtype, torch.float32)
    norm_weight, norm_bias = (p.to(compute) for p in weights.norm)
    if initial_context is None:
        initial_context = embeddings.new_zeros(embeddings.shape[0], norm_weight.shape[0])
    context, outputs = initial_context.to(compute), []
    if valid is not None and starts is not None:
        starts = starts & valid
    for t in range(embeddings.shape[1]):
        if starts is not None:
            context = context.masked_fill(starts[:, t, None], 0.0)
        h = torch.cat([embeddings[:, t], context.to(embeddings.dtype)], -1)
        for weight, bias in weights.mlp:
            h = torch.relu(F.linear(h, weight, bias))
        delta, forget, write = F.linear(h, *weights.gates).to(compute).chunk(3, -1)
        mixed = torch.sigmoid(forget) * context + torch.sigmoid(write) * delta
        new = F.layer_norm(mixed, norm_weight.shape, norm_weight, norm_bias, weights.eps)
        context = new if valid is None else torch.where(valid[:, t, None], new, context)
        outputs.append(h)
    return torch.stack(outputs, 1), context
