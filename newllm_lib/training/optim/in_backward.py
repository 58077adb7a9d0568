"""The optimizer's step inside the backward pass: each parameter is stepped and its gradient freed at once.

Clipping by the global norm would need all gradients at once. Here every tensor's norm is remembered: while
the backward pass goes on, the norms of the tensors already seen are this step's and the others are the last
step's, and each gradient is scaled down by the global norm as it is known at that moment. When the pass ends
all norms are this step's, so the norm that is logged is the true one, before clipping, in every mode.

With loss scaling, gradients that overflow cannot be known before the first step either: each such parameter
is left as it is, and the scale is lowered for the next step, by GradScaler's rules.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from newllm_lib.ops.gradient_norms import clip
from newllm_lib.training.memory.blocks import BlockPasses

FILE = "gradient_norms.safetensors"
SMALL = 1 << 17  # elements from which on a gradient is not kept until the backward pass ends


class OptimizerInBackward:
    """Hooks on a model's parameters. `optimizer` has `step_parameter(parameter, scale)`, which multiplies the
    gradient by `scale`, a (1,) float32 tensor; if that is no finite number the parameter stays as it is. It
    may have `square_norm(parameter)`, the squared norm of the gradient, if it knows that at less cost.
    `average_` makes a gradient the mean over several processes first.

    Small parameters wait for the end of the pass: their gradients are next to nothing, and so are stepped
    together.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer,
        max_norm: float,
        passes: BlockPasses | None = None,
        average_: Callable[[Tensor], None] | None = None,
        scaler: torch.amp.GradScaler | None = None,
    ):
        self.optimizer, self.max_norm, self.passes, self.average_ = optimizer, max_norm, passes, average_
        parameters = [p for p in model.parameters() if p.requires_grad]
        self.index = {p: i for i, p in enumerate(parameters)}
        self.squares = torch.zeros(len(parameters), device=parameters[0].device)
        self.scaler = scaler
        self.scale = None if scaler is None else scaler._scale
        self.skipped = None if scaler is None else torch.zeros_like(self.squares)  # in this step: 1
        self.sizes = torch.tensor([float(p.numel()) for p in parameters], device=self.squares.device)
        self.skipped_share = torch.zeros_like(self.squares[0])  # of the last step's updates
        self.shared = _in_several_blocks(parameters, passes)
        self.late = [p for p in parameters if p.numel() < SMALL and p not in self.shared]
        self.waits = {*self.shared, *self.late}
        self.late_places = torch.tensor([self.index[p] for p in self.late], device=self.squares.device)
        self.knows_norms = hasattr(optimizer, "square_norm")
        if passes is not None:
            passes.stepper = self
        # Weakly: a parameter that held its hook, and so the optimizer and itself, would never be freed.
        told = weakref.WeakMethod(self.whole)
        self.hooks = [p.register_post_accumulate_grad_hook(partial(_tell, told)) for p in parameters]

    def whole(self, parameter: Tensor) -> None:
        """Called when a gradient was added to `parameter.grad`; it is whole after a block's last chunk."""
        if (self.passes is None or self.passes.complete) and parameter not in self.waits:
            self._step(parameter)

    @torch.no_grad()
    def _step(self, parameter: Tensor) -> None:
        if self.average_ is not None:
            self.average_(parameter.grad)
        square = self.optimizer.square_norm(parameter) if self.knows_norms else _square(parameter.grad)
        place = self.index[parameter]
        self.optimizer.step_parameter(
            parameter, clip(self.squares, place, square, self.max_norm, self.scale, self.skipped)
        )
        parameter.grad = None

    @torch.no_grad()
    def finish(self) -> Tensor:
        """End a step: the small parameters, and those that several blocks share, are stepped. Returns the
        gradients' global norm before clipping.
        """
        for parameter in self.shared:
            if parameter.grad is not None:
                self._step(parameter)
        late = [p for p in self.late if p.grad is not None]
        if late:
            if self.average_ is not None:
                for parameter in late:
                    self.average_(parameter.grad)
            places = (
                self.late_places[[p.grad is not None for p in self.late]]
                if len(late) < len(self.late)
                else self.late_places
            )
            self._step_late(late, places)
        if self.scaler is not None:
            self._end_scaled()
        return self.squares.sum().sqrt()

    def _step_late(self, late: list[Tensor], places: Tensor) -> None:
        found = torch.stack(torch._foreach_norm([p.grad for p in late], dtype=torch.float32)).square_()
        undo = torch.ones_like(found)
        if self.scaler is not None:
            found = found / self.scale / self.scale
            finite = found.isfinite()
            self.skipped[places] = (~finite).to(found.dtype)
            found = torch.where(finite, found, self.squares[places])
            undo = torch.where(finite, 1 / self.scale, torch.nan)
        self.squares[places] = found
        place = self.index[late[-1]]
        scales = undo * clip(self.squares, place, self.squares[place].clone(), self.max_norm)
        for parameter, scale in zip(late, scales.split(1), strict=True):
            self.optimizer.step_parameter(parameter, scale)
            parameter.grad = None

    def _end_scaled(self) -> None:
        """The next step's scale, and which share of this one's updates was left out."""
        scaler = self.scaler
        self.skipped_share = (self.skipped * self.sizes).sum() / self.sizes.sum()
        torch._amp_update_scale_(
            scaler._scale,
            scaler._growth_tracker,
            self.skipped.amax(),
            scaler.get_growth_factor(),
            scaler.get_backoff_factor(),
            scaler.get_growth_interval(),
        )
        self.skipped.zero_()

    def save(self, folder: Path) -> None:
        """The last step's norms, by which the next one is clipped."""
        save_file({"squares": self.squares}, folder / FILE)

    def load(self, folder: Path) -> None:
        self.squares.copy_(load_file(folder / FILE)["squares"])


def _tell(told: weakref.WeakMethod, parameter: Tensor) -> None:
    whole = told()
    if whole is not None:
        whole(parameter)


def _square(gradient: Tensor) -> Tensor:
    return torch.linalg.vector_norm(gradient, dtype=torch.float32).square_()


def _in_several_blocks(parameters: list[Tensor], passes: BlockPasses | None) -> list[Tensor]:
    """Parameters that several checkpointed blocks use, each adding its gradient in its own pass."""
    if passes is None:
        return []
    uses: dict[Tensor, int] = {}
    for block in passes.blocks:
        for parameter in block.parameters():
            uses[parameter] = uses.get(parameter, 0) + 1
    return [p for p in parameters if uses.get(p, 0) > 1]
