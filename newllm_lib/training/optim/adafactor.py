"""Adafactor with 4- or 8-bit momentum on bfloat16 weights: AdamW's steps at 2/3 of a byte a parameter.

The second moment of a matrix is kept as one number a row and one a column (Shazeer & Stern, 2018, arXiv
1804.04235); the gradient divided by it goes into a momentum, as Zhai et al. (2021, arXiv 2106.04560) train
large models. That quotient is of order one everywhere, so few bits hold its average well (4-bit states: Li et
al., 2023, arXiv 2309.01507). Learning rates are AdamW's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from newllm_lib.ops.gradient_norms import limited, second_moment, squares
from newllm_lib.ops.stochastic_rounding import (
    AdamStep,
    RoundedStep,
    adam_step_,
    new_momentum,
    rounded_step_,
    step_numbers,
)
from newllm_lib.training.optim.stochastic_rounding import StochasticRoundingOptimizer

# rows and columns of the smallest matrix whose second moment is factored; what is smaller keeps it whole
FACTORED_FROM = 128


class Adafactor(StochasticRoundingOptimizer):
    """Decoupled weight decay, no relative step, updates clipped to RMS 1, bias-corrected as Adam's.

    Args:
        momentum_bits: 0 (no momentum), 4, 8 or 32. Tensors too small to be factored keep two float32 moments.
    """

    def __init__(
        self,
        groups,
        lr: float,
        betas=(0.9, 0.98),
        weight_decay: float = 0.0,
        momentum_bits: int = 4,
        seed: int = 0,
    ):
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "momentum_bits": momentum_bits}
        super().__init__(groups, defaults, seed)
        self._squares: dict[Tensor, tuple[Tensor, Tensor]] = {}  # of gradients whose step comes next

    def new_state(self, parameter: Tensor, group: dict) -> dict:
        def zeros(*size):
            return torch.zeros(*size, dtype=torch.float32, device=parameter.device)

        if not is_factored(parameter):
            return {"step": 0, "second": zeros(parameter.shape), "momentum": new_momentum(parameter, 32)}
        columns = parameter.shape[-1]
        rows = parameter.numel() // columns
        return {
            "step": 0,
            "row": zeros(rows),
            "column": zeros(columns),
            "momentum": new_momentum(parameter, group["momentum_bits"]),
        }

    def square_norm(self, parameter: Tensor) -> Tensor:
        """Of a factored matrix the sums by row and column, which hold the norm, wait for the step."""
        if not is_factored(parameter):
            return super().square_norm(parameter)
        self._squares[parameter] = squares(_matrix(parameter.grad))
        return self._squares[parameter][0].sum()

    def numbers_of(self, group: dict, step: int) -> list[float]:
        return step_numbers(
            group["lr"], group["lr"] * group["weight_decay"], group["betas"], step, group["momentum_bits"]
        )

    def update(
        self,
        parameter: Tensor,
        state: dict,
        group: dict,
        scale: Tensor,
        seed: int,
        numbers: Tensor | None = None,
    ) -> None:
        (beta, beta2), step = group["betas"], state["step"]
        common = {
            "rate": group["lr"],
            "decay": group["lr"] * group["weight_decay"],
            "seed": seed,
            "numbers": numbers,
        }
        if "second" in state:
            moments = state["second"], *state["momentum"]
            how = AdamStep(betas=(beta, beta2), step=step, **common)
            return adam_step_(parameter, parameter.grad, *moments, scale, how)
        gradient, bits = _matrix(parameter.grad), group["momentum_bits"]
        sums = self._squares.pop(parameter, None) or squares(gradient)
        factors = second_moment(
            sums, state["row"], state["column"], scale, 1 - beta2, 1 - beta2**step, numbers
        )
        scale = limited(gradient, factors, scale)
        correction = 1 / (1 - beta**step) if bits else 1.0
        how = RoundedStep(beta=beta, correction=correction, **common)
        rounded_step_(parameter, parameter.grad, state["momentum"], factors, scale, how, bits)


def is_factored(parameter: Tensor) -> bool:
    columns = parameter.shape[-1] if parameter.ndim else 1
    return parameter.ndim >= 2 and min(columns, parameter.numel() // columns) >= FACTORED_FROM


def _matrix(gradient: Tensor) -> Tensor:
    return gradient.reshape(-1, gradient.shape[-1])
