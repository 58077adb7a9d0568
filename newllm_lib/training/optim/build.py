"""The optimizers, and the learning rate's course.

`adamw`: AdamW with decay on matrices only. `muon`: the matrices inside the blocks are stepped by Muon (Jordan
et al., 2024, kellerjordan.github.io/posts/muon), which makes each update's singular values equal; embeddings,
head and vectors by AdamW. Those that need less memory: `adafactor`, Muon on bfloat16 weights
(`low_memory_muon`), and torchao's AdamW in 8 and 4 bits.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from newllm_lib.errors import UsageError
from newllm_lib.recipe import Recipe
from newllm_lib.training import optim


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimizer (with `step_parameter` where it steps in the backward pass).

    Raises:
        UsageError: it needs a package that is not installed.
    """
    # Muon makes all singular values of an update equal: adapters, of a rank chosen to be low, are AdamW's.
    matrices = block_matrices(model) if recipe.optimizer == "muon" and not recipe.lora_rank else []
    taken = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in taken]
    groups = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},  # norms, biases, gates' biases
    ]
    light = recipe.weights_dtype != "fp32" or recipe.optimizer_in_backward
    rest = _for_the_rest(groups, recipe, light)
    if not matrices:
        return rest
    rates = {"lr": recipe.muon_learning_rate * recipe.batch_scale(), "weight_decay": recipe.weight_decay}
    if light:
        muon = optim.LowMemoryMuon(
            matrices, **rates, momentum_bits=recipe.momentum_bits or 4, seed=recipe.seed
        )
    else:
        muon = optim.BatchedMuon(matrices, **rates, adjust_lr_fn="original")
    return optim.CombinedOptimizer({"muon": muon, "adamw": rest})


def _for_the_rest(groups: list[dict], recipe: Recipe, light: bool) -> torch.optim.Optimizer:
    """The optimizer of all that Muon does not take."""
    common = {"lr": recipe.scaled_learning_rate(), "betas": (0.9, recipe.adam_beta2)}
    if recipe.optimizer == "adafactor" or (recipe.optimizer == "muon" and light):
        return optim.Adafactor(groups, **common, momentum_bits=recipe.momentum_bits, seed=recipe.seed)
    if recipe.optimizer in ("adamw8bit", "adamw4bit"):
        kind = _torchao(recipe.optimizer)
        return optim.one_for_each(
            groups, partial(kind, **common, bf16_stochastic_round=recipe.weights_dtype == "bf16")
        )
    if recipe.optimizer_in_backward:
        return optim.one_for_each(groups, partial(torch.optim.AdamW, **common, fused=recipe.fused_optimizer))
    # fused: one kernel for all of them on a GPU
    return torch.optim.AdamW(groups, **common, fused=recipe.fused_optimizer)


def _torchao(name: str):
    try:
        from torchao.optim import AdamW4bit, AdamW8bit
    except ImportError as error:
        raise UsageError(
            f"--optimizer {name} needs torchao: `pip install torchao`, or use adafactor instead."
        ) from error
    return {"adamw8bit": AdamW8bit, "adamw4bit": AdamW4bit}[name]


def block_matrices(model: nn.Module) -> list[nn.Parameter]:
    """Weights of the linear layers inside the blocks: all but the head (embeddings are no linear layers)."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    layers = [m for m in model.modules() if isinstance(m, (nn.Linear, Conv1D)) and m is not head]
    return [m.weight for m in layers if m.weight.requires_grad]


def learning_rate_factor(step: int, total: int, recipe: Recipe) -> float:
    """Share of the peak learning rate at `step` of `total`: linear warm-up, then the schedule."""
    warmup = recipe.warmup_steps * total if recipe.warmup_steps < 1 else recipe.warmup_steps
    warmup = min(warmup, total / 2)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if recipe.schedule == "constant":
        return 1.0
    done = min(1.0, (step - warmup) / max(1.0, total - warmup))
    fall = {
        "cosine": 0.5 * (1 + math.cos(math.pi * done)),
        "linear": 1 - done,
        "wsd": min(1.0, 2 * (1 - done)),  # warm up, stay, decay (Hu et al., 2024, arXiv 2404.06395)
    }[recipe.schedule]
    floor = recipe.min_learning_rate_ratio
    return floor + (1 - floor) * fall


def build_scheduler(optimizer: torch.optim.Optimizer, total: int, recipe: Recipe):
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, total, recipe)
    )
