"""What a run is, for everything below `training.run`: one object instead of ten arguments."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from newllm_lib.data import PreparedData
from newllm_lib.device import Device
from newllm_lib.recipe import Recipe
from newllm_lib.runs import Run
from newllm_lib.training.compile import dtype_of
from newllm_lib.training.distributed import process_group
from newllm_lib.training.initial_model import InitialModel
from newllm_lib.training.progress import Progress


@dataclass
class RunContext:
    """A run whose data are ready.

    Args:
        data: its tokenizer, and its splits as tokens.
        start: the run that this one's weights come from; None: from scratch.
        checkpoint: what is continued from; None: nothing was saved yet.
        progress: the checkpoint's, or that of a beginning.
        micro_batch: sequences that a process has in one forward and backward pass.
    """

    recipe: Recipe
    run: Run
    device: Device
    data: PreparedData
    start: InitialModel | None
    checkpoint: Path | None
    progress: Progress
    steps_per_epoch: int
    total_steps: int
    micro_batch: int

    @property
    def torch_device(self) -> torch.device:
        """The device of this process."""
        return (
            torch.device("cuda", process_group.local_rank())
            if self.device.torch_device == "cuda"
            else torch.device("cpu")
        )

    @property
    def dtype(self) -> str:
        """Of matrix products: "fp32", "bf16" or "fp16"."""
        return dtype_of(self.recipe, self.device)

    @property
    def sequences_at_once(self) -> int:
        """Sequences in one call of the model. Where weights are stepped in it, the blocks cut the batch."""
        return (
            self.recipe.batch_size // process_group.world_size()
            if self.recipe.optimizer_in_backward
            else self.micro_batch
        )

    @property
    def accumulation_steps(self) -> int:
        """Micro-batches of a step, in each process."""
        return self.recipe.batch_size // (self.sequences_at_once * process_group.world_size())

    def epoch_at(self, step: int) -> float:
        """How many epochs are done after `step` steps, as the rows of `metrics.jsonl` say it."""
        done, inside = divmod(step, self.steps_per_epoch)
        return done + inside / self.steps_per_epoch
