"""Truncated BPTT: the context vector is carried from block to block of the same text.

Each row of the batch reads its part of the stream in order (`data.blocks.ContiguousBatchSampler`), and starts
a block with the state it ended the last one with. With several processes each has its own rows, the same ones
in every step. Gradients stop at the block's edge
(truncated back-propagation through time: Williams & Peng, 1990), so a step costs what it cost before, but the
model learns to use contexts longer than a block.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from newllm_lib.training.distributed import process_group

FILE = "carried_state.safetensors"


class RecurrentStateBuffer:
    """The rows' states (rows, layers, state_size), one tensor for each micro-batch of a step."""

    def __init__(self, micro_batches: int):
        self.states: list[torch.Tensor | None] = [None] * micro_batches
        self.turn = 0

    def get(self) -> torch.Tensor | None:
        """The state that the micro-batch whose turn it is goes on from; None at an epoch's start."""
        return self.states[self.turn]

    def set(self, state: torch.Tensor, read_before: bool = False) -> None:
        """Keep what this micro-batch ended with; the next one's turn comes.

        Args:
            read_before: `state`, a CUDA graph's output, is read by the next micro-batch before the graph
                overwrites it: with one micro-batch a step it needs no copy.
        """
        alone = read_before and len(self.states) == 1
        self.states[self.turn] = state.detach() if alone else state.detach().clone()
        self.turn = (self.turn + 1) % len(self.states)

    def clear(self) -> None:
        """An epoch begins: every row starts at another place."""
        self.states, self.turn = [None] * len(self.states), 0

    def save(self, folder: Path | None) -> None:
        """Between steps only: every micro-batch has had its turn, or none (nothing to save). Of several
        processes all call it, and the first writes: the only one that needs a folder."""
        if self.states[0] is None:
            return
        parts = process_group.gather_object([state.cpu() for state in self.states])
        if parts:  # a step's micro-batches are dealt out to the processes in turn
            dealt = [part[turn] for turn in range(len(self.states)) for part in parts]
            save_file({str(i): state.contiguous() for i, state in enumerate(dealt)}, folder / FILE)

    def load(self, folder: Path, device: torch.device) -> None:
        """What `save` wrote, also for other processes or another number of micro-batches."""
        if (folder / FILE).is_file():
            saved = load_file(folder / FILE)
            rows = torch.cat([saved[str(i)] for i in range(len(saved))])
            dealt = rows.chunk(len(self.states) * process_group.world_size())[
                process_group.rank() :: process_group.world_size()
            ]
            self.states, self.turn = [state.to(device) for state in dealt], 0
