"""What the low-memory optimizers share: one parameter stepped at a time, states that keep their dtypes, seeded random bits."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod

import torch
from torch import Tensor


class RoundedOptimizer(torch.optim.Optimizer, ABC):
    """What the optimizers here share: a step for one parameter, whole states in checkpoints, random bits that depend only on the
    seed, the parameter and the step (so a resumed run rounds as the undisturbed one)."""

    def __init__(self, groups, defaults: dict, seed: int):
        super().__init__(groups, defaults)
        self.seed = seed
        self._place = {p: (group, i) for i, (group, p) in enumerate((g, p) for g in self.param_groups for p in g["params"])}
        self._one: Tensor | None = None

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    if self._one is None:
                        self._one = torch.ones(1, device=parameter.device)
                    self.step_parameter(parameter, self._one)
        return loss

    @torch.no_grad()
    def step_parameter(self, parameter: Tensor, scale: Tensor) -> None:
        """Step one parameter with its gradient times `scale` (1,); nothing happens to it if `scale` is no finite number."""
        group, index = self._place[parameter]
        state = self.state[parameter]
        if not state:
            state.update(self.new_state(parameter, group))
        state["step"] += 1
        seed = zlib.crc32(f"{self.seed}/{index}/{state['step']}".encode()) & 0x7FFFFFFF
        self.update(parameter, state, group, scale, seed)

    @abstractmethod
    def new_state(self, parameter: Tensor, group: dict) -> dict:
        """What is kept of a parameter, before its first step; `step` is counted in it."""

    @abstractmethod
    def update(self, parameter: Tensor, state: dict, group: dict, scale: Tensor, seed: int) -> None:
        """Change the parameter, and its state, in place by one step with its gradient times `scale`."""

    def load_state_dict(self, state_dict: dict) -> None:
        """As torch's, but each state keeps its own dtype (torch would make them the parameter's)."""
        super().load_state_dict({"state": {}, "param_groups": state_dict["param_groups"]})
        parameters = [p for group in self.param_groups for p in group["params"]]
        self._place = {p: (group, self._place[p][1]) for group in self.param_groups for p in group["params"]}
        for index, state in state_dict["state"].items():
            p = parameters[int(index)]
            self.state[p] = {key: _to(value, p.device) for key, value in state.items()}


def _to(value, device: torch.device):
    if isinstance(value, Tensor):
        return value.to(device)
    return tuple(_to(v, device) for v in value) if isinstance(value, (tuple, list)) else value
