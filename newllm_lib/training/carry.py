"""Training that goes on where the last block ended: the context vector is carried from block to block of the same text.

The batch is as many lanes as it has rows; each lane reads its part of the stream in order (`data.blocks.LaneSampler`), and starts
a block with the state it ended the last one with. Gradients stop at the block's edge (truncated back-propagation through time:
Williams & Peng, 1990), so a step costs what it cost before, but the model learns to use contexts longer than a block.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

FILE = "carried_state.safetensors"


class CarriedState:
    """The lanes' states (rows, layers, state_size), one tensor for each micro-batch of a step."""

    def __init__(self, micro_batches: int):
        self.states: list[torch.Tensor | None] = [None] * micro_batches
        self.turn = 0

    def take(self) -> torch.Tensor | None:
        """The state that the micro-batch whose turn it is goes on from; None at an epoch's start."""
        return self.states[self.turn]

    def put(self, state: torch.Tensor) -> None:
        """Keep what this micro-batch ended with; the next one's turn comes."""
        self.states[self.turn] = state.detach().clone()  # a CUDA graph's output is overwritten when it is replayed
        self.turn = (self.turn + 1) % len(self.states)

    def clear(self) -> None:
        """An epoch begins: every lane starts at another place."""
        self.states, self.turn = [None] * len(self.states), 0

    def save(self, folder: Path) -> None:
        """Between steps only: every micro-batch has had its turn, or none (nothing to save)."""
        if self.states[0] is not None:
            save_file({str(i): state.contiguous() for i, state in enumerate(self.states)}, folder / FILE)

    def load(self, folder: Path, device: torch.device) -> None:
        """What `save` wrote, also where the rows are now cut into another number of micro-batches."""
        if (folder / FILE).is_file():
            saved = load_file(folder / FILE, device=str(device))
            rows = torch.cat([saved[str(i)] for i in range(len(saved))])
            self.states, self.turn = list(rows.chunk(len(self.states))), 0
