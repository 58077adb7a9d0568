"""The optimizer's step inside the backward pass: each parameter is stepped, and its gradient freed, once that gradient is whole.

Clipping by the global norm would need all gradients at once. Here every tensor's norm is remembered: while the backward pass goes
on, the norms of the tensors already seen are this step's and the others are the last step's, and each gradient is scaled down by
the global norm as it is known at that moment. When the pass ends all norms are this step's, so the norm that is logged is the
true one, before clipping, in every mode.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from newllm_lib.training.lowmem.blocks import BlockPasses

FILE = "gradient_norms.safetensors"


class StepInBackward:
    """Hooks on a model's parameters. `optimizer` has `step_parameter(parameter, scale)`, which multiplies the gradient by
    `scale`, a (1,) float32 tensor; if that is no finite number the parameter stays as it is. `average_` makes a gradient the mean
    over several processes first."""

    def __init__(
        self, model: nn.Module, optimizer, max_norm: float, passes: BlockPasses | None = None,
        average_: Callable[[Tensor], None] | None = None,
    ):  # fmt: skip
        self.optimizer, self.max_norm, self.passes, self.average_ = optimizer, max_norm, passes, average_
        parameters = [p for p in model.parameters() if p.requires_grad]
        self.index = {p: i for i, p in enumerate(parameters)}
        self.squares = torch.zeros(len(parameters), device=parameters[0].device)
        self.shared = _in_several_blocks(parameters, passes)
        self.hooks = [p.register_post_accumulate_grad_hook(self._whole) for p in parameters]

    def _whole(self, parameter: Tensor) -> None:
        """Called when a gradient was added to `parameter.grad`; it is whole after a block's last chunk."""
        if (self.passes is None or self.passes.complete) and parameter not in self.shared:
            self._step(parameter)

    def _step(self, parameter: Tensor) -> None:
        if self.average_ is not None:
            self.average_(parameter.grad)
        self.optimizer.step_parameter(parameter, self.clipping(parameter))
        parameter.grad = None

    @torch.no_grad()
    def clipping(self, parameter: Tensor) -> Tensor:
        """Factor (1,) for this gradient; its norm takes the place of the last step's."""
        place = self.squares[self.index[parameter]]
        place.copy_(torch.linalg.vector_norm(parameter.grad, dtype=torch.float32).square_())
        norm = self.squares.sum().sqrt()
        limit = self.max_norm / (norm + 1e-6) if self.max_norm else torch.ones_like(norm)
        return torch.where(norm.isfinite(), limit.clamp(max=1.0), norm * 0 + float("nan")).reshape(1)

    def finish(self) -> Tensor:
        """End a step: the parameters that several blocks share are stepped. Returns the gradients' global norm before
        clipping.
        """
        for parameter in self.shared:
            if parameter.grad is not None:
                self._step(parameter)
        return self.squares.sum().sqrt()

    def save(self, folder: Path) -> None:
        """The last step's norms, by which the next one is clipped."""
        save_file({"squares": self.squares}, folder / FILE)

    def load(self, folder: Path) -> None:
        self.squares.copy_(load_file(folder / FILE)["squares"])


def _in_several_blocks(parameters: list[Tensor], passes: BlockPasses | None) -> list[Tensor]:
    """Parameters that several checkpointed blocks use: each block adds its part of the gradient in a pass of its own."""
    if passes is None:
        return []
    uses: dict[Tensor, int] = {}
    for block in passes.blocks:
        for parameter in block.parameters():
            uses[parameter] = uses.get(parameter, 0) + 1
    return [p for p in parameters if uses.get(p, 0) > 1]
