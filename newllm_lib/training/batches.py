"""The micro-batches of a run's steps, on the device: this process's share of each batch."""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from itertools import islice

import torch
from torch import Tensor

from newllm_lib.data.blocks import IGNORED, Blocks, training_blocks
from newllm_lib.training.context import RunContext
from newllm_lib.training.distributed import process_group


class Batches:
    """Their order comes from the seed and the epoch alone, also after a restart."""

    def __init__(self, context: RunContext):
        self.context, self.device = context, context.torch_device
        self.blocks, self.sampler = training_blocks(context.data.train, context.recipe, self.device)
        self.all_count = False  # whether every label of the newest step does
        self.labels: Tensor | None = None  # what `count_labels` finds in a step of which every label counts

    def from_step(self, step: int) -> Iterator[list[dict[str, Tensor]]]:
        """For each step from here to the epoch's end its micro-batches.

        Yields:
            dicts of `input_ids` and `labels` (already shifted), both (batch, time) int64.
        """
        size, per_epoch = self.context.recipe.batch_size, self.context.steps_per_epoch
        self.sampler.seek(step * size)
        starts = islice(iter(self.sampler), step % per_epoch * size, None)
        for _ in range(step % per_epoch, per_epoch):
            drawn = list(islice(starts, size))
            self.all_count = (
                isinstance(blocks := self.blocks, Blocks)
                and blocks.split.loss_mask is None
                and not blocks.at_edge(drawn)
            )
            yield [self._read(part) for part in self._dealt(drawn)]

    def _dealt(self, starts: list) -> Iterator[list]:
        """A batch's micro-batches are dealt out to the processes in turn."""
        size = self.context.sequences_at_once
        for begin in range(process_group.rank() * size, len(starts), process_group.world_size() * size):
            yield starts[begin : begin + size]

    def count_labels(self, batches: list[dict[str, Tensor]]) -> Tensor:
        """As `count_labels` of the newest step, which mostly is the same number: each kernel costs."""
        if not self.all_count or process_group.is_distributed():
            return count_labels(batches)
        self.labels = count_labels(batches) if self.labels is None else self.labels
        return self.labels

    def _read(self, starts: list) -> dict[str, Tensor]:
        batch = self.blocks.__getitems__(starts)
        if self.device.type == "cpu" or batch["labels"].is_cuda:
            return batch
        return {name: rows.pin_memory().to(self.device, non_blocking=True) for name, rows in batch.items()}


def count_labels(batches: list[dict[str, Tensor]]) -> Tensor:
    """How many tokens a step predicts, in all micro-batches and processes: what its losses are divided by."""
    count = reduce(torch.add, ((batch["labels"] != IGNORED).sum() for batch in batches))
    if process_group.is_distributed():
        process_group.all_reduce_sum_([count])
    return count.to(torch.float32)
