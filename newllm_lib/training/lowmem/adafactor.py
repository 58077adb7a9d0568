"""Adafactor with momentum in 4 or 8 bits, on bfloat16 weights: AdamW's steps for two thirds of a byte a parameter.

The second moment of a matrix is kept as one number a row and one a column (Shazeer & Stern, 2018, arXiv 1804.04235); the gradient
divided by it goes into a momentum, as Zhai et al. (2021, arXiv 2106.04560) train large models. That quotient is of order one
everywhere, so few bits hold its average well (4-bit states: Li et al., 2023, arXiv 2309.01507). Learning rates are AdamW's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from newllm_lib.ops.rounded_step import new_momentum, rounded_step_, weighted_square_sum
from newllm_lib.training.lowmem.rounded import RoundedOptimizer

FACTORED_FROM = 128  # rows and columns of the smallest matrix whose second moment is factored; what is smaller keeps it whole
_TINY = 1e-30


class RoundedAdafactor(RoundedOptimizer):
    """Decoupled weight decay, no relative step, updates clipped to root mean square 1, bias-corrected as Adam's.

    Args:
        momentum_bits: 0 (no momentum), 4, 8 or 32. Tensors too small to be factored keep two float32 moments.
    """

    def __init__(self, groups, lr: float, betas=(0.9, 0.98), weight_decay: float = 0.0, momentum_bits: int = 4, seed: int = 0):
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "momentum_bits": momentum_bits}
        super().__init__(groups, defaults, seed)

    def new_state(self, parameter: Tensor, group: dict) -> dict:
        def zeros(*size):
            return torch.zeros(*size, dtype=torch.float32, device=parameter.device)

        if not is_factored(parameter):
            return {"step": 0, "second": zeros(parameter.shape), "momentum": new_momentum(parameter, 32)}
        columns = parameter.shape[-1]
        rows = parameter.numel() // columns
        return {
            "step": 0, "row": zeros(rows), "column": zeros(columns), "momentum": new_momentum(parameter, group["momentum_bits"]),
        }  # fmt: skip

    def update(self, parameter: Tensor, state: dict, group: dict, scale: Tensor, seed: int) -> None:
        beta1, beta2 = group["betas"]
        settings = {"rate": group["lr"], "decay": group["lr"] * group["weight_decay"], "beta": beta1, "seed": seed}
        weight = (1 - beta2) * scale.isfinite()  # 0: the averages stay as they are
        unbias = 1 - beta2 ** state["step"]
        if "second" in state:
            gradient = parameter.grad.float() * scale
            state["second"].lerp_(gradient.square().nan_to_num_(), weight)
            direction = gradient / ((state["second"] / unbias).sqrt_() + 1e-8)
            bits, factors, scale = 32, None, torch.where(scale.isfinite(), 1.0, scale)
        else:
            direction, bits = parameter.grad, group["momentum_bits"]
            factors = _second_moment(direction, state, scale, weight, unbias)
            spread = weighted_square_sum(direction, factors).div_(direction.numel()).sqrt_() * scale
            scale = scale / spread.clamp_(min=1.0)
        correction = 1 / (1 - beta1 ** state["step"]) if bits else 1.0
        rounded_step_(parameter, direction, state["momentum"], factors, scale, bits=bits, correction=correction, **settings)


def is_factored(parameter: Tensor) -> bool:
    columns = parameter.shape[-1] if parameter.ndim else 1
    return parameter.ndim >= 2 and min(columns, parameter.numel() // columns) >= FACTORED_FROM


def _second_moment(gradient: Tensor, state: dict, scale: Tensor, weight: Tensor, unbias: float) -> tuple[Tensor, Tensor]:
    """Update the averages of the squared gradient; returns factors by which rows and columns are to be multiplied."""
    matrix = gradient.reshape(len(state["row"]), len(state["column"]))
    for key, dim in (("row", 1), ("column", 0)):
        square = torch.linalg.vector_norm(matrix, dim=dim, dtype=torch.float32).mul_(scale).square_().div_(matrix.shape[dim])
        state[key].lerp_(square.nan_to_num_().add_(_TINY), weight)
    row, column = state["row"] / unbias, state["column"] / unbias
    return (row / row.mean().clamp_(min=_TINY)).rsqrt_(), column.rsqrt_()
