"""First values of the parameters that are no linear layers, for the models with a context vector."""

from __future__ import annotations

import math

import torch
from torch import nn
from transformers import initialization as init

from newllm_lib.layers.context_block import ContextVector

TIME_SCALE_GROUPS = (  # tokens that a group's channels remember, from its first to its last
    (1, 4),
    (8, 64),
    (64, 512),
    (512, 4096),
)


def init_context_vector(module: ContextVector, time_scales: str = "even") -> None:
    """The convolution, the norm and the forget biases.

    Args:
        module: its linear layers are left as they are.
        time_scales: "even" or "multi", as in `NewLLMConfig`.
    """
    init_conv(module.conv)
    init.ones_(module.norm)
    # From 4 to 150 tokens: a gate of sigmoid(1) forgets in a few tokens, one of sigmoid(5) in many.
    forget_bias = torch.linspace(1.0, 5.0, module.context_dim)
    if time_scales == "multi":
        forget_bias, norm = multi_scale(module.context_dim)
        init.copy_(module.norm, norm)
    init.copy_(module.forget_bias, forget_bias)


def init_plain(module: nn.Module, std: float) -> bool:
    """Linear layers and embeddings from a normal distribution, norms at 1. Returns whether it is one."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        init.normal_(module.weight, std=std)
    elif isinstance(module, (nn.RMSNorm, nn.LayerNorm)):
        init.ones_(module.weight)
    else:
        return False
    if getattr(module, "bias", None) is not None:
        init.zeros_(module.bias)
    return True


def init_conv(weight: nn.Parameter) -> None:
    """Weights (channels, width) of a short convolution."""
    bound = 1 / math.sqrt(weight.shape[1])
    init.uniform_(weight, -bound, bound)


def multi_scale(context_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Forget biases (context_dim,) of groups with time scales from one to thousands of tokens, and weights
    (context_dim,) of the read-out's norm to match.

    A channel with time scale t keeps exp(-1 / t) of itself each token. What it writes shrinks with 1 - that,
    so what a slow channel holds is some sqrt(t) times quieter than a fast one's: the weights undo it, or the
    norm would drown it.
    """
    sizes = [len(part) for part in torch.arange(context_dim).tensor_split(len(TIME_SCALE_GROUPS))]
    scales = [
        torch.logspace(math.log2(a), math.log2(b), n, base=2.0)
        for (a, b), n in zip(TIME_SCALE_GROUPS, sizes, strict=True)
    ]
    keep = torch.exp(-1 / torch.cat(scales).double())
    spread = torch.sqrt((1 - keep) / (1 + keep))  # of a running mean of independent numbers
    return torch.logit(keep).float(), (spread.square().mean().sqrt() / spread).float()
