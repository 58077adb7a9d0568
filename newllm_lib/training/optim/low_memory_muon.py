"""Muon on bfloat16 weights, with its momentum in 4 or 8 bits.

As torch.optim.Muon steps (Jordan et al., 2024, kellerjordan.github.io/posts/muon), but the momentum is stored
in few bits and the weights are rounded stochastically.
"""

from __future__ import annotations

import torch
from torch import Tensor

from newllm_lib.ops.common.dispatch import half_dtype
from newllm_lib.ops.stochastic_rounding import RoundedStep, new_momentum, rounded_step_
from newllm_lib.training.optim.muon import orthogonal
from newllm_lib.training.optim.stochastic_rounding import StochasticRoundingOptimizer

_COEFFICIENTS, _ITERATIONS, _TINY = (3.4445, -4.7750, 2.0315), 5, 1e-7  # torch.optim.Muon's


class LowMemoryMuon(StochasticRoundingOptimizer):
    """For matrices only. momentum_bits: 4, 8 or 32."""

    def __init__(
        self,
        groups,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        momentum_bits: int = 4,
        seed: int = 0,
    ):
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "momentum_bits": momentum_bits,
        }
        super().__init__(groups, defaults, seed)

    def new_state(self, parameter: Tensor, group: dict) -> dict:
        return {"step": 0, "momentum": new_momentum(parameter, group["momentum_bits"])}

    def update(self, parameter: Tensor, state: dict, group: dict, scale: Tensor, seed: int) -> None:
        beta, bits = group["momentum"], group["momentum_bits"]
        rows, columns = parameter.shape
        # becomes the new momentum: 0 (1 - 1) + 1 m
        average = torch.zeros_like(parameter, dtype=torch.float32)
        rounded_step_(
            average,
            parameter.grad,
            state["momentum"],
            None,
            scale,
            RoundedStep(rate=-1.0, decay=1.0, beta=beta, correction=1.0, seed=seed),
            bits,
        )
        direction = average.mul_(beta).add_(parameter.grad * scale, alpha=1 - beta)  # Nesterov's
        wide = direction.nan_to_num_().to(half_dtype())
        wide = wide if rows <= columns else wide.T
        made = orthogonal(wide[None], _COEFFICIENTS, _ITERATIONS, _TINY)[0]
        alive = torch.where(scale.isfinite(), 1.0, scale)
        rounded_step_(
            parameter,
            made if rows <= columns else made.T,
            (),
            None,
            alive,
            RoundedStep(
                rate=group["lr"] * max(1.0, rows / columns) ** 0.5,
                decay=group["lr"] * group["weight_decay"],
                beta=0.0,
                correction=1.0,
                seed=seed ^ 0x2545F491,
            ),
            bits=0,
        )
