"""Clipping and the optimizer's step as one recording, with loss scaling in it where there is some.

Muon on four blocks is some two hundred kernels, and an overflow that the CPU asks for is a wait in every
step. Here the GPU decides: `torch.amp.GradScaler` scales back, finds what is not finite and changes its scale
without telling anybody, the optimizers leave their step out where it found something (as torch's fused
optimizers do by themselves), and the learning rate is read from a table at the number of steps taken, because
a schedule waits for a step that was left out.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from newllm_lib.training.cuda_graphs import Recorder


def takes_recording(optimizer: torch.optim.Optimizer) -> bool:
    """Whether its step needs nothing of the CPU, and reads what the scaler found on the device."""
    return getattr(optimizer, "_step_supports_amp_scaling", False)


class CapturedStep:
    """Called with all gradients in place; returns their norm before clipping, which the next call overwrites.

    Args:
        parameters: in the model's order, in which their norms are added up.
        schedule: of the optimizer's learning rates; with loss scaling it is brought up to date by `settle`.
        total_steps: to which a table of its factors goes, with loss scaling.
        scaler: one that does nothing is for training without.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        parameters: list[Tensor],
        recorder: Recorder,
        max_norm: float,
        schedule: torch.optim.lr_scheduler.LambdaLR,
        total_steps: int,
        scaler: torch.amp.GradScaler,
    ):
        self.optimizer, self.parameters = optimizer, parameters
        self.recorder, self.max_norm = recorder, max_norm or math.inf
        self.schedule, self.scaler, self.scales, device = (
            schedule,
            scaler,
            scaler.is_enabled(),
            recorder.device,
        )
        # torch's fused optimizers read float32 on a GPU; a CPU's rates are what they are without a recording
        kind = torch.float32 if recorder.on_gpu else torch.float64
        self.rates = [torch.zeros((), dtype=kind, device=device) for _ in optimizer.param_groups]
        self.norm, self.skipped = (torch.zeros((), device=device) for _ in range(2))
        self.first_rate = torch.zeros((), dtype=torch.float64, device=device)  # in full, for the log
        self.taken = torch.full((1,), schedule.last_epoch, device=device)
        factor = schedule.lr_lambdas[0]
        factors = [factor(step) for step in range(total_steps + 1)] if self.scales else []
        self.factors = torch.tensor(factors, dtype=torch.float64, device=device)
        self.recorded: tuple[list[int], object] | None = None
        self.told: list[float] = []  # what `rates` hold, where the schedule is read here

    def settle(self) -> None:
        """Bring the schedule to the number of steps that were taken: waits for the GPU."""
        for _ in range(int(self.taken) - self.schedule.last_epoch if self.scales else 0):
            self.schedule.step()

    @torch.no_grad()
    def __call__(self) -> Tensor:
        if not self.scales and self.told != (told := self.schedule.get_last_lr()):
            for place, rate in zip(self.rates, told, strict=True):
                place.fill_(rate)
            self.told = list(told)
        where = [0 if p.grad is None else p.grad.data_ptr() for p in self.parameters]
        if self.recorded is None or self.recorded[0] != where or not self.recorder.on_gpu:
            self.recorded = where, None
            self._run()  # makes states, compiles kernels; a CPU has no recording
            return self.norm
        if self.recorded[1] is None:
            self.recorder.warm.add("step")
            self.recorded = where, self.recorder.record(self._run, "step", [])
        self.recorded[1]()
        return self.norm

    def _run(self) -> None:
        scaler, optimizer = self.scaler, self.optimizer
        scaler.unscale_(optimizer)
        self.norm.copy_(torch.nn.utils.clip_grad_norm_(self.parameters, self.max_norm))
        if self.scales:
            # (an index of a 0-dimensional tensor would be asked for)
            factor, base = self.factors.index_select(0, self.taken).squeeze(0), self.schedule.base_lrs
            for place, rate in zip([self.first_rate, *self.rates], [base[0], *base], strict=True):
                place.copy_(factor * rate)
        before = [{key: group[key] for key in ("lr", "capturable") if key in group} for group in self.groups]
        for group, rate in zip(self.groups, self.rates, strict=True):
            group |= {"lr": rate} | ({"capturable": True} if "capturable" in group else {})
        scaler.step(optimizer)
        for group, was in zip(self.groups, before, strict=True):
            group |= was
        if self.scales:
            overflow = found_inf(scaler, optimizer) > 0
            self.taken += ~overflow
            self.skipped += overflow
        scaler.update()

    @property
    def groups(self) -> list[dict]:
        return self.optimizer.param_groups


def found_inf(scaler: torch.amp.GradScaler, optimizer: torch.optim.Optimizer) -> Tensor:
    """Above 0 where `unscale_` met a gradient that is not finite; until the scaler's update."""
    (found,) = scaler._found_inf_per_device(optimizer).values()
    return found
