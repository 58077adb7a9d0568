"""A trained New-LLM with a larger context vector: the same predictions, new channels to learn with.

The new channels write nothing at first (their input weights are zero, and silu(0) is zero), so they hold
zero, and the norm that reads the context sees the same squares over more channels: the old channels' weights
and the norm's epsilon are scaled to match. Gates and output weights of the new channels are drawn at random,
which gives their input weights a gradient from the first step. The idea of growing a network without changing
its function is Net2Net's (Chen et al., 2016, arXiv 1511.05641).
"""

from __future__ import annotations

import copy
import math

import torch

from newllm_lib.errors import UsageError
from newllm_lib.models.initialization import multi_scale
from newllm_lib.models.new_llm import NewLLMForCausalLM


def expand_context(model: NewLLMForCausalLM, context_dim: int, seed: int = 0) -> NewLLMForCausalLM:
    """A copy of `model` with context vectors of `context_dim` channels and the same function.

    Raises:
        UsageError: the recurrence is sequential, or the context would not grow.
    """
    old = model.config
    if old.recurrence != "parallel":
        raise UsageError(
            "Only the parallel recurrence's context can be expanded: the sequential one norms it in every "
            "step."
        )
    if context_dim <= old.context_dim:
        raise UsageError(
            f"The context vector has {old.context_dim} channels: expand it to more, not to {context_dim}."
        )
    config = copy.deepcopy(old)
    config.context_dim = context_dim
    config.context_eps = old.context_eps * old.context_dim / context_dim
    larger = NewLLMForCausalLM(config).to(model.device, model.dtype)
    state = model.state_dict()
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for name, parameter in larger.named_parameters():
            if parameter.shape == state[name].shape:
                parameter.copy_(state[name])
        for one, other in zip(larger.model.layers, model.model.layers, strict=True):
            _grow(
                one.context, other.context, config.initializer_range / math.sqrt(2 * config.num_hidden_layers)
            )
    larger.generation_config = copy.deepcopy(model.generation_config)
    return larger.train(model.training)


def _grow(larger, smaller, residual: float) -> None:
    """Fill the context's parameters of one block."""
    size, new = smaller.context_dim, larger.context_dim - smaller.context_dim
    std = float(smaller.project.weight.std())
    for part in range(3):  # input, forget gate, read-out gate
        rows = larger.project.weight[part * larger.context_dim : (part + 1) * larger.context_dim]
        rows[:size] = smaller.project.weight[part * size : (part + 1) * size]
        rows[size:] = 0.0 if part == 0 else torch.randn_like(rows[size:]) * std
    bias, _ = multi_scale(new)  # what is added remembers from one to thousands of tokens
    larger.forget_bias.copy_(torch.cat([smaller.forget_bias, bias.to(smaller.forget_bias)]))
    scale = math.sqrt(size / larger.context_dim)
    larger.norm.copy_(torch.cat([smaller.norm * scale, larger.norm.new_full((new,), scale)]))
    larger.out.weight.copy_(
        torch.cat([smaller.out.weight, torch.randn_like(larger.out.weight[:, size:]) * residual], 1)
    )
