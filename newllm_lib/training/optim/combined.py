"""Several optimizers that step as one."""

from __future__ import annotations

import torch
from torch import Tensor


class CombinedOptimizer(torch.optim.Optimizer):
    """Optimizers over disjoint parameters as one, with a single list of groups for schedulers and scalers."""

    def __init__(self, parts: dict[str, torch.optim.Optimizer]):
        super().__init__([group for part in parts.values() for group in part.param_groups], {})
        self.parts = parts
        self._share_groups()
        self._part_of = {
            p: part for part in parts.values() for group in part.param_groups for p in group["params"]
        }

    def _share_groups(self) -> None:
        self.param_groups = [group for part in self.parts.values() for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts.values():
            for name in ("grad_scale", "found_inf"):  # which torch's GradScaler sets around a step
                if hasattr(self, name):
                    setattr(part, name, getattr(self, name))
            part.step()
            for name in ("grad_scale", "found_inf"):
                part.__dict__.pop(name, None)
        return loss

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether all parts leave a step out where the GPU has found an overflow, as GradScaler asks."""
        return all(getattr(part, "_step_supports_amp_scaling", False) for part in self.parts.values())

    @torch.no_grad()
    def step_parameter(self, parameter: Tensor, scale: Tensor) -> None:
        """Step one parameter with its gradient times `scale` (1,), by the optimizer that holds it."""
        part = self._part_of[parameter]
        if hasattr(part, "step_parameter"):
            part.step_parameter(parameter, scale)
        else:
            parameter.grad.mul_(scale.to(parameter.grad.dtype)).nan_to_num_()
            if getattr(part, "_step_supports_amp_scaling", False):
                part.found_inf = (~scale.isfinite()).float().reshape(())  # then nothing is stepped
            part.step()
            part.__dict__.pop("found_inf", None)

    def prepare(self) -> None:
        """Make the states of the parts that can before their first step."""
        for part in self.parts.values():
            if hasattr(part, "prepare"):
                part.prepare()

    def square_norm(self, parameter: Tensor) -> Tensor:
        """The squared norm of its gradient, from the part that steps it if that knows."""
        part = self._part_of[parameter]
        if hasattr(part, "square_norm"):
            return part.square_norm(parameter)
        return torch.linalg.vector_norm(parameter.grad, dtype=torch.float32).square_()

    def state_dict(self) -> dict:
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state_dict: dict) -> None:
        for name, part in self.parts.items():
            part.load_state_dict(state_dict[name])
        self._share_groups()


def one_for_each(parameter_groups: list[dict], make) -> CombinedOptimizer:
    """An optimizer for each parameter, made by `make(group)`: each is stepped when its gradient is there."""
    single = [{**group, "params": [p]} for group in parameter_groups for p in group["params"]]
    return CombinedOptimizer({str(i): make([group]) for i, group in enumerate(single)})
