"""Muon whose matrices of one shape are stepped together.

torch.optim.Muon steps them one after the other, some 20 small kernels for each: for a small model that takes
longer than its forward and backward pass. Here each shape is one batch of matrix products. Everything else,
the saved state too, is torch's.
"""

from __future__ import annotations

import math
from collections import defaultdict

import torch
from torch import Tensor

from newllm_lib.ops.common.dispatch import half_dtype


class BatchedMuon(torch.optim.Muon):
    """torch.optim.Muon (adjust_lr_fn "original" or None) in batches: the same update to rounding.

    Nothing changes where `found_inf`, which torch's GradScaler sets around a step, is not 0.
    """

    _step_supports_amp_scaling = True

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params: list[Tensor] = []
            gradients: list[Tensor] = []
            momenta: list[Tensor] = []
            self._init_group(group, params, gradients, momenta)
            if params:
                _step(group, params, gradients, momenta, getattr(self, "found_inf", None))
        return loss


def _step(
    group: dict,
    params: list[Tensor],
    gradients: list[Tensor],
    momenta: list[Tensor],
    found_inf: Tensor | None,
) -> None:
    rate = group["lr"]
    if found_inf is not None:  # the momentum towards itself, at a rate of 0
        overflow = found_inf > 0
        gradients = [torch.where(overflow, m, g) for m, g in zip(momenta, gradients, strict=True)]
        rate = rate * ~overflow
    torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
    updates = torch._foreach_lerp(gradients, momenta, group["momentum"]) if group["nesterov"] else momenta
    torch._foreach_mul_(params, 1 - rate * group["weight_decay"])
    alike = defaultdict(list)
    for index, p in enumerate(params):
        alike[min(p.shape), max(p.shape), p.device].append(index)
    for indices in alike.values():
        wide = torch.stack([_wide(updates[i]) for i in indices]).to(half_dtype())
        made = orthogonal(wide, group["ns_coefficients"], group["ns_steps"], group["eps"])
        for tall in (False, True):
            some = [(i, update) for i, update in zip(indices, made, strict=True) if tall == _tall(params[i])]
            if some:
                _move([params[i] for i, _ in some], torch.stack([update for _, update in some]), rate)


def _move(params: list[Tensor], updates: Tensor, rate) -> None:
    """Parameters of one shape -= rate * updates (count, rows, columns), in a few kernels."""
    shape = params[0].shape
    # A rate on the device, as in a captured step, is a factor: `alpha` would have to be asked for.
    changes = updates.to(params[0].dtype) * (rate * math.sqrt(max(1, shape[0] / shape[1])))
    torch._foreach_sub_(params, list((changes.mT if _tall(params[0]) else changes).unbind()))


def _tall(matrix: Tensor) -> bool:
    return matrix.shape[0] > matrix.shape[1]


def _wide(matrix: Tensor) -> Tensor:
    return matrix.T if _tall(matrix) else matrix


def orthogonal(matrices: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Matrices (batch, rows, columns), rows <= columns, by Newton-Schulz with singular values near 1."""
    a, b, c = coefficients
    x = matrices / torch.linalg.vector_norm(matrices, dim=(1, 2), keepdim=True).clamp_min(eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x
