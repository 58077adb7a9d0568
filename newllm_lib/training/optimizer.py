"""The optimizers, and the learning rate's course.

`adamw`: AdamW with decay on matrices only. `muon`: the matrices inside the blocks are stepped by Muon (Jordan et al., 2024,
kellerjordan.github.io/posts/muon), which makes each update's singular values equal; embeddings, head and vectors by AdamW.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from newllm_lib.recipe import Recipe
from newllm_lib.training.muon import BatchedMuon


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimizer over the trainable parameters. Fused, AdamW is one kernel for all of them on a GPU."""
    matrices = block_matrices(model) if recipe.optimizer == "muon" else []
    taken = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in taken]
    groups = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},  # norms, biases, gates' biases
    ]
    rates = {"lr": recipe.scaled_learning_rate(), "betas": (0.9, recipe.adam_beta2)}
    adamw = torch.optim.AdamW(groups, **rates, fused=recipe.fused_optimizer)
    if not matrices:
        return adamw
    muon = BatchedMuon(
        matrices, lr=recipe.muon_learning_rate * recipe.batch_scale(), weight_decay=recipe.weight_decay, adjust_lr_fn="original"
    )
    return MuonWithAdamW(muon, adamw)


def block_matrices(model: nn.Module) -> list[nn.Parameter]:
    """Weights of the linear layers inside the blocks: all but the head (embeddings are no linear layers)."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    layers = [m for m in model.modules() if isinstance(m, (nn.Linear, Conv1D)) and m is not head]
    return [m.weight for m in layers if m.weight.requires_grad]


class MuonWithAdamW(torch.optim.Optimizer):
    """Two optimizers that step as one: schedulers, gradient scalers and checkpoints see a single list of groups."""

    def __init__(self, muon: torch.optim.Muon, adamw: torch.optim.AdamW):
        super().__init__([*muon.param_groups, *adamw.param_groups], {})
        self.parts = {"muon": muon, "adamw": adamw}
        self._share_groups()

    def _share_groups(self) -> None:
        self.param_groups = [group for part in self.parts.values() for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts.values():
            part.step()
        return loss

    def state_dict(self) -> dict:
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state_dict: dict) -> None:
        for name, part in self.parts.items():
            part.load_state_dict(state_dict[name])
        self._share_groups()


def learning_rate_factor(step: int, total: int, recipe: Recipe) -> float:
    """Share of the peak learning rate at `step` of `total`: linear warm-up, then the recipe's schedule to its floor."""
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
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, total, recipe))
