"""AdamW with decay on matrices only, and the learning rate's course."""

from __future__ import annotations

import math

import torch

from newllm_lib.recipe import Recipe


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict]:
    """Two groups: matrices, which decay, and vectors (norms, biases, gates' biases), which don't."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]


def build_optimizer(model: torch.nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Fused AdamW (one kernel for all parameters on a GPU)."""
    groups = parameter_groups(model, recipe.weight_decay)
    return torch.optim.AdamW(groups, lr=recipe.scaled_learning_rate(), betas=(0.9, recipe.adam_beta2), fused=True)


def learning_rate_factor(step: int, total: int, recipe: Recipe) -> float:
    """Share of the peak learning rate at `step` of `total`: linear warm-up, then the recipe's schedule to its floor."""
    warmup = recipe.warmup_steps * total if recipe.warmup_steps < 1 else recipe.warmup_steps
    warmup = min(warmup, total / 2)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if recipe.schedule == "constant":
        return 1.0
    done = min(1.0, (step - warmup) / max(1.0, total - warmup))
    fall = 1 - done if recipe.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    floor = recipe.min_learning_rate_ratio
    return floor + (1 - floor) * fall


def build_scheduler(optimizer: torch.optim.Optimizer, total: int, recipe: Recipe):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, total, recipe))
