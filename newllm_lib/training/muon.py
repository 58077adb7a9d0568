"""Muon for many small matrices: those of one shape are orthogonalised together, and a CUDA graph can hold a step.

The update is that of `torch.optim.Muon` with its "original" scaling (Jordan et al., 2024, kellerjordan.github.io/posts/muon).
There each matrix takes five rounds of three products by itself, which at a few hundred channels is launches, not work.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

_COEFFICIENTS = 3.4445, -4.7750, 2.0315


class BatchedMuon(torch.optim.Optimizer):
    """Args: params: matrices. lr: a number or a tensor on their device (read at each step, also of a captured one)."""

    def __init__(self, params, lr: float | Tensor = 0.02, weight_decay: float = 0.1, momentum: float = 0.95, steps: int = 5):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "steps": steps})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            shapes = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    shapes[p.shape].append(p)
            for together in shapes.values():
                self._step(together, group)
        return loss

    def _step(self, params: list[Tensor], group: dict) -> None:
        for p in params:
            if not self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        gradients, buffers = [p.grad for p in params], [self.state[p]["momentum_buffer"] for p in params]
        torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
        ahead = torch._foreach_lerp(gradients, buffers, group["momentum"])  # Nesterov's look ahead
        rows, columns = params[0].shape
        change = orthogonal(torch.stack(ahead), group["steps"]).to(params[0].dtype) * max(1, rows / columns) ** 0.5
        for p, one in zip(params, change.mul_(group["lr"]), strict=True):
            p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(one)


def orthogonal(matrices: Tensor, steps: int) -> Tensor:
    """(count, rows, columns) -> bfloat16 of that size: each matrix with its singular values brought near 1 (Newton-Schulz)."""
    a, b, c = _COEFFICIENTS
    x = matrices.bfloat16()
    wide = x if x.shape[-2] <= x.shape[-1] else x.mT
    wide = wide / wide.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = wide @ wide.mT
        wide = torch.baddbmm(wide, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide if x.shape[-2] <= x.shape[-1] else wide.mT
