"""Blocks of tokens for training, cut from a packed split when they are read.

A block is named by where it starts in the stream. Each epoch cuts the stream at another offset and takes the
blocks in another order, both from (seed, epoch) alone: so the order of the data never depends on the past, on
the number of processes or on timing.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from newllm_lib.data.packing import PackedSplit, check_length
from newllm_lib.errors import NewLLMError, UsageError

if TYPE_CHECKING:
    from newllm_lib.data.streaming.stream import StreamedSplit, Window
    from newllm_lib.recipe import Recipe

IGNORED = -100  # a label that the loss leaves out


class Blocks(Dataset):
    """Blocks of `length` tokens with their labels. A block's index is the token it starts at.

    Args:
        split: the packed tokens, or a window of a stream.
        length: tokens in a block.
        device: keep the whole split on this device (a GPU, for small splits); default: in the memory map.
        may_be_short: a split shorter than a block is no error, as a window of a stream is none.

    Raises:
        NewLLMError: the split is shorter than one block.
    """

    def __init__(
        self,
        split: PackedSplit | Window,
        length: int,
        device: torch.device | str | None = None,
        may_be_short: bool = False,
    ):
        if not may_be_short:
            check_length(cast("PackedSplit", split), length)
        self.split, self.length = split, length
        self.device = torch.device(device) if device is not None else None
        self._ids: Any = None
        self._mask: torch.Tensor | None = None
        if self.device is not None:
            self._ids = torch.from_numpy(split.ids.astype(np.int32)).to(self.device)
            if split.loss_mask is not None:
                self._mask = torch.from_numpy(split.loss_mask.astype(bool)).to(self.device)
            self._steps = torch.arange(length + 1, device=self.device)

    def __len__(self) -> int:
        """How many starts there are: every token but the last."""
        return self.split.tokens - 1

    def __getitem__(self, start: int) -> dict[str, torch.Tensor]:
        """`input_ids` and `labels`, (length,): labels[i] is the token after input_ids[i], or -100."""
        return {name: rows[0] for name, rows in self.__getitems__([start]).items()}

    def __getitems__(self, starts: list[int]) -> dict[str, torch.Tensor]:
        """A whole batch in one gather: `input_ids` and `labels`, both (batch, length) int64.

        Past the end of the stream (and before its beginning) the input repeats its last (first) token and the
        labels are
        -100.
        """
        return self._from_map(starts) if self.device is None else self._on_device(starts, self.device)

    def at_edge(self, starts: list[int]) -> bool:
        """Whether one of the blocks reaches past the stream."""
        return min(starts) < 0 or max(starts) + self.length > self.split.tokens - 1

    def _from_map(self, starts: list[int]) -> dict[str, torch.Tensor]:
        last = self.split.tokens - 1
        positions = np.asarray(starts, dtype=np.int64)[:, None] + np.arange(self.length + 1)
        inside = positions.clip(0, last)
        tokens = self.split.ids[inside].astype(np.int64)
        ignored = (positions[:, 1:] > last) | (positions[:, 1:] < 1)
        if self.split.loss_mask is not None:
            ignored |= self.split.loss_mask[inside[:, 1:]] == 0
        labels = tokens[:, 1:].copy()
        labels[ignored] = IGNORED
        return {"input_ids": torch.from_numpy(tokens[:, :-1].copy()), "labels": torch.from_numpy(labels)}

    def _on_device(self, starts: list[int], device: torch.device) -> dict[str, torch.Tensor]:
        last = self.split.tokens - 1
        # from pinned memory: the CPU does not wait for the GPU, which is busy with the last step
        at = torch.tensor(starts, pin_memory=device.type == "cuda").to(device, non_blocking=True)
        positions = at[:, None] + self._steps
        edge = self.at_edge(starts)  # each kernel costs, and this is rare
        inside = positions.clamp(0, last) if edge else positions
        tokens = self._ids[inside].long()
        inputs, labels = tokens[:, :-1].contiguous(), tokens[:, 1:]
        if edge:
            labels = labels.masked_fill((positions[:, 1:] > last) | (positions[:, 1:] < 1), IGNORED)
        if self._mask is not None:
            labels = labels.masked_fill(~self._mask[inside[:, 1:]], IGNORED)
        return {"input_ids": inputs, "labels": labels.contiguous()}


class BlockSampler(Sampler[int]):
    """The starts of an epoch's blocks.

    Shuffled (training): every epoch has its own offset in [0, length) and its own permutation, from (seed,
    epoch) alone, and a whole number of batches. Not shuffled (evaluation): blocks in order from the first
    token, the last one perhaps reaching past the end, so that every token but the first is a label exactly
    once.

    Raises:
        NewLLMError: the split is shorter than a block, or (shuffled) holds fewer blocks than one batch.
    """

    def __init__(self, split: PackedSplit, length: int, batch_size: int, seed: int, shuffle: bool = True):
        check_length(split, length)
        self.predicted, self.length, self.seed, self.shuffle = split.tokens - 1, length, seed, shuffle
        self.epoch = 0
        if not shuffle:
            self.blocks = -(-self.predicted // length)
            return
        whole = (self.predicted - (length - 1)) // length  # as many as there are at any offset
        self.blocks = whole - whole % batch_size
        if not self.blocks:
            raise NewLLMError(
                f"The train split has {split.tokens:,} tokens: {max(whole, 0):,} blocks of {length}, fewer "
                f"than one batch of {batch_size}. Lower --batch_size or --max_seq_length, or give more data."
            )

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next iteration is (from 0)."""
        self.epoch = epoch

    def seek(self, position: int) -> None:
        """How many blocks the run has seen: the next iteration begins the epoch that this lies in."""
        self.set_epoch(position // len(self))

    def __len__(self) -> int:
        return self.blocks

    def __iter__(self) -> Iterator[int]:
        if not self.shuffle:
            yield from range(0, self.predicted, self.length)
            return
        random = np.random.default_rng([self.seed, self.epoch])
        offset = int(random.integers(self.length))
        order = random.permutation((self.predicted - offset) // self.length)[: self.blocks]
        # no list of millions of Python integers
        for part in np.array_split(order, max(1, len(order) // 65536)):
            yield from (offset + part * self.length).tolist()


class ContiguousBatchSampler(BlockSampler):
    """The starts of an epoch's blocks where each row of the batch goes on where it ended in the last batch.

    The stream is cut into `batch_size` rows of equal length; batch k holds block k of every row. Every
    epoch begins at another place of the stream, from (seed, epoch) alone, and goes around its end.

    Raises:
        NewLLMError: the split holds fewer blocks than one batch.
    """

    def __init__(self, split: PackedSplit, length: int, batch_size: int, seed: int):
        super().__init__(split, length, batch_size, seed)
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[int]:
        steps = self.blocks // self.batch_size
        # The stream is cut once more at an offset below one block, so that blocks never reach past its end.
        random = np.random.default_rng([self.seed, self.epoch])
        offset = int(random.integers(self.predicted - self.blocks * self.length + 1))
        first = int(random.integers(self.blocks))
        rows = np.arange(self.batch_size) * steps
        for step in range(steps):
            yield from (offset + (first + rows + step) % self.blocks * self.length).tolist()


SKIPPED = (-1, -1, 0)  # stands for a block that was trained on before a restart


class StreamedBlocks(Dataset):
    """Blocks of a streamed split. A block is named by (pass, window, token it starts at)."""

    def __init__(self, split: StreamedSplit, length: int, device: torch.device | str | None = None):
        self.split, self.length, self.device = split, length, device
        self._open: dict[tuple[int, int], Blocks] = {}

    def __len__(self) -> int:
        return self.split.tokens - 1

    def __getitems__(self, starts: list[tuple[int, int, int]]) -> dict[str, torch.Tensor]:
        """As `Blocks`."""
        parts = [
            self._window(*window).__getitems__([start for _, _, start in blocks])
            for window, blocks in itertools.groupby(starts, key=lambda start: start[:2])
        ]
        return (
            parts[0]
            if len(parts) == 1
            else {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        )

    def _window(self, epoch: int, number: int) -> Blocks:
        if (epoch, number) not in self._open:
            self._open = dict(list(self._open.items())[-1:])  # a batch may lie in two windows
            window = self.split.window(epoch, number)
            self._open[epoch, number] = Blocks(window, self.length, self.device, may_be_short=True)
        return self._open[epoch, number]


class StreamSampler(Sampler[tuple[int, int, int]]):
    """Block starts of an epoch of a `StreamedSplit`: as many blocks as were declared for a pass.

    Raises:
        NewLLMError: those are fewer than one batch.
    """

    def __init__(self, split: StreamedSplit, length: int, batch_size: int):
        self.split, self.length = split, length
        whole = (split.tokens - 1) // length
        self.blocks = whole - whole % batch_size
        self.position = 0
        if not self.blocks:
            raise NewLLMError(
                f"The train split has about {split.tokens:,} tokens: {whole:,} blocks of {length}, fewer "
                f"than one batch of {batch_size}. Lower --batch_size or --max_seq_length, or give more data."
            )

    def seek(self, position: int) -> None:
        """How many blocks the run has seen before the next iteration's first new one."""
        self.position = position

    def __len__(self) -> int:
        return self.blocks

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        seen = self.position % self.blocks
        yield from itertools.repeat(SKIPPED, seen)  # which are passed over
        yield from itertools.islice(self.split.starts(self.position, self.length), self.blocks - seen)


def training_blocks(
    split: PackedSplit | StreamedSplit, recipe: Recipe, device: torch.device | None = None
) -> tuple[Dataset, Sampler]:
    """The data set and the sampler that a recipe is trained with, on a packed or a streamed split.

    Raises:
        NewLLMError: the split holds fewer blocks than one batch.
        UsageError: a state cannot be carried through streamed data.
    """
    length, batch_size, seed = recipe.max_seq_length, recipe.batch_size, recipe.seed
    on_gpu = device is not None and device.type == "cuda"
    if not isinstance(split, PackedSplit):
        if recipe.carry_state:
            raise UsageError(
                "carry_state needs data that is packed before training: add --streaming off, or leave it out."
            )
        return StreamedBlocks(split, length, device if on_gpu else None), StreamSampler(
            split, length, batch_size
        )
    # A small corpus lives on the GPU: cutting a batch is then one gather, with no copy to wait for.
    blocks = Blocks(split, length, device if on_gpu and split.tokens < 200_000_000 else None)
    return blocks, (ContiguousBatchSampler if recipe.carry_state else BlockSampler)(
        split, length, batch_size, seed
    )
