"""What low-memory optimizers share: one parameter at a time, states that keep dtypes, seeded bits."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor


class StochasticRoundingOptimizer(torch.optim.Optimizer, ABC):
    """What the optimizers here share: a step for one parameter, whole states in checkpoints, random bits that
    depend only on the seed, the parameter and the step (so a resumed run rounds as the undisturbed one)."""

    def __init__(self, groups, defaults: dict, seed: int):
        super().__init__(groups, defaults)
        self.seed = seed
        self._index = {
            p: (group, i)
            for i, (group, p) in enumerate((g, p) for g in self.param_groups for p in g["params"])
        }
        self._scale: Tensor | None = None  # of all gradients in the next step
        self.recorder = None  # cuda_graphs.Recorder: steps are replayed while gradients lie where they lay
        self._recorded: tuple[list[int], Callable[[], None]] | None = None
        self._places: dict[str, Tensor] = {}

    @torch.no_grad()
    def clip_norm(self, max_norm: float) -> Tensor:
        """The gradients' global norm; the next `step` clips to `max_norm` as it reads, which saves a pass."""
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.stack(torch._foreach_norm(gradients, dtype=torch.float32)).square().sum().sqrt()
        self._scale = torch.where(
            norm.isfinite(), (max_norm / (norm + 1e-6)).clamp(max=1.0), torch.nan
        ).reshape(1)
        return norm

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        stepped = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        if not stepped:
            return loss
        scale = torch.ones(1, device=stepped[0].device) if self._scale is None else self._scale
        self._scale = None
        if self.numbers_of is not None and self.recorder is not None:
            self._replay(stepped, scale)
        else:
            for parameter in stepped:
                self.step_parameter(parameter, scale)
        return loss

    @torch.no_grad()
    def prepare(self) -> None:
        """Make all states now. Made while a backward pass goes on, they would lie among its activations, with
        holes left between them for good."""
        for group in self.param_groups:
            for parameter in group["params"]:
                self._state_of(parameter, group)

    def _state_of(self, parameter: Tensor, group: dict) -> dict:
        state = self.state[parameter]
        if not state:
            state.update(self.new_state(parameter, group))
        return state

    @torch.no_grad()
    def step_parameter(self, parameter: Tensor, scale: Tensor) -> None:
        """Step one parameter with its gradient times `scale` (1,); nothing happens if that is not finite."""
        group, index = self._index[parameter]
        state = self._state_of(parameter, group)
        state["step"] += 1
        seed = zlib.crc32(f"{self.seed}/{index}/{state['step']}".encode()) & 0x7FFFFFFF
        self.update(parameter, state, group, scale, seed)

    def square_norm(self, parameter: Tensor) -> Tensor:
        """The squared norm of its gradient, one float32 element; asked for right before its step."""
        return torch.linalg.vector_norm(parameter.grad, dtype=torch.float32).square_()

    # What changes with (group, step): `update`'s `numbers`. None: its steps cannot be recorded.
    numbers_of: Callable[[dict, int], list[float]] | None = None

    def _replay(self, stepped: list[Tensor], scale: Tensor) -> None:
        """A step of all these, as a graph from the second on (the first compiles its kernels)."""
        scale = self._place("scale", scale)
        numbers = {}
        for index, group in enumerate(self.param_groups):
            steps = {self._state_of(p, group)["step"] + 1 for p in group["params"] if p.grad is not None}
            if len(steps) > 1:
                raise ValueError("a recorded step wants parameters that have all been stepped equally often")
            if steps:
                values = self.numbers_of(group, steps.pop())
                place = self._places.setdefault(
                    f"numbers {index}", torch.empty(len(values), device=scale.device)
                )
                for i, value in enumerate(values):
                    place[i].fill_(value)  # a copy from the host would wait for the GPU
                numbers[id(group)] = place

        def run():
            for parameter in stepped:
                group, number = self._index[parameter]
                seed = zlib.crc32(f"{self.seed}/{number}".encode()) & 0x7FFFFFFF
                self.update(parameter, self.state[parameter], group, scale, seed, numbers[id(group)])

        where = [p.grad.data_ptr() for p in stepped]
        for parameter in stepped:
            self.state[parameter]["step"] += 1
        if self._recorded is None or self._recorded[0] != where or not self.recorder.on_gpu:
            self._recorded = where, None
            return run()
        if self._recorded[1] is None:
            self.recorder.warm.add("step")
            self._recorded = where, self.recorder.record(run, "step", [])
        self._recorded[1]()

    def _place(self, name: str, value: Tensor) -> Tensor:
        return self._places.setdefault(name, torch.empty_like(value)).copy_(value)

    @abstractmethod
    def new_state(self, parameter: Tensor, group: dict) -> dict:
        """What is kept of a parameter, before its first step; `step` is counted in it."""

    @abstractmethod
    def update(self, parameter: Tensor, state: dict, group: dict, scale: Tensor, seed: int) -> None:
        """Change the parameter, and its state, in place by one step with its gradient times `scale`."""

    def load_state_dict(self, state_dict: dict) -> None:
        """As torch's, but each state keeps its own dtype (torch would make them the parameter's)."""
        prepared, self._recorded = dict(self.state), None
        super().load_state_dict({"state": {}, "param_groups": state_dict["param_groups"]})
        self.state.update(prepared)
        parameters = [p for group in self.param_groups for p in group["params"]]
        self._index = {p: (group, self._index[p][1]) for group in self.param_groups for p in group["params"]}
        for index, state in state_dict["state"].items():
            p = parameters[int(index)]
            self.state[p] = {
                key: _to(value, p.device, self.state[p].get(key)) for key, value in state.items()
            }


def _to(value, device: torch.device, place=None):
    """The value on the device; in the tensors of `place`, where it has them already."""
    if isinstance(value, (tuple, list)):
        places = (
            place if isinstance(place, (tuple, list)) and len(place) == len(value) else [None] * len(value)
        )
        return tuple(_to(v, device, p) for v, p in zip(value, places, strict=True))
    if not isinstance(value, Tensor):
        return value
    if isinstance(place, Tensor) and place.shape == value.shape and place.dtype == value.dtype:
        return place.copy_(value)
    return value.to(device)
