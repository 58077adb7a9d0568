"""The peers' training loop: the library's data, optimizer and schedule, and nothing else of it.

One GPU or a CPU; on a GPU the step is compiled. What is reported is the mean over every token of the test
text but the first: a model with a state reads the text from end to end, one without reads windows that
overlap by half, of which the second half counts, so that it always sees at least half a window.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from itertools import count
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from newllm_lib.data import PreparedData
from newllm_lib.data.blocks import training_blocks
from newllm_lib.data.packing import PackedSplit
from newllm_lib.recipe import Recipe
from newllm_lib.training.optim.build import build_optimizer, build_scheduler

LANES = 32  # parts of the test text that a model with a state reads side by side


class Step(NamedTuple):
    """A step that was made, for who watches."""

    number: int
    per_epoch: int
    total: int
    loss: torch.Tensor


def train_peer(
    model: nn.Module,
    recipe: Recipe,
    data: PreparedData,
    device: str,
    watch: Callable[[Step], None] | None = None,
    mode: str | None = None,
) -> dict:
    """Train `model` as the recipe says; returns seconds, steps and parameters.

    Args:
        model: with `step(ids, labels, state) -> loss, state`, and `carries` where it has a state, which goes
            on from block to block if the recipe says `carry_state`.
        watch: called after each step.
        mode: of torch.compile; "reduce-overhead" captures the step.
    """
    model.to(device).train()
    torch.manual_seed(recipe.seed + 1)  # dropout
    blocks, sampler = training_blocks(data.train, recipe, torch.device(device))
    per_epoch = len(sampler) // recipe.batch_size
    total = max(1, round(recipe.epochs * per_epoch))
    total = min(total, recipe.max_steps or total)
    optimizer = build_optimizer(model, recipe)
    schedule = build_scheduler(optimizer, total, recipe)
    step = torch.compile(model.step, dynamic=False, mode=mode) if device == "cuda" else model.step
    began, state = time.monotonic(), None
    for number, batch in zip(range(total), _batches(blocks, sampler, recipe.batch_size), strict=False):
        if model.carries and (state is None or not recipe.carry_state or number % per_epoch == 0):
            state = model.initial_state(recipe.batch_size)
        with precision(device):
            loss, state = step(batch["input_ids"], batch["labels"], state)
        loss.backward()
        state = state.detach() if state is not None else None
        nn.utils.clip_grad_norm_(model.parameters(), recipe.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if watch is not None:
            watch(Step(number + 1, per_epoch, total, loss.detach()))
    seconds = time.monotonic() - began
    return {"seconds": seconds, "steps": total, "parameters": sum(p.numel() for p in model.parameters())}


def _batches(blocks, sampler, size: int) -> Iterator[dict[str, torch.Tensor]]:
    """The batches of one epoch after the other."""
    for epoch in count():
        sampler.set_epoch(epoch)
        starts = list(sampler)
        for first in range(0, len(starts), size):
            yield blocks.__getitems__(starts[first : first + size])


def precision(device: str):
    """bfloat16 for matrix products on a GPU; float32 elsewhere."""
    return torch.autocast(device, torch.bfloat16, enabled=device == "cuda")


@torch.no_grad()
def bits_per_byte(model: nn.Module, split: PackedSplit, window: int) -> float:
    """What the model needs for a byte of the split's original text. Text that the tokens cannot give back
    counts 8 bits a byte."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    ids = torch.from_numpy(split.ids.astype(np.int64)).to(device)
    read = _in_rows if model.carries else _in_windows
    nats = read(model, ids, window)
    model.train(was_training)
    return (nats / math.log(2) + 8 * split.lost_bytes) / split.bytes


def _in_rows(model: nn.Module, ids: torch.Tensor, window: int) -> float:
    """The text in equal parts side by side, the state carried through each; padding has label -100."""
    predicted = len(ids) - 1
    length = -(-predicted // LANES)
    padded = torch.cat([ids, ids.new_zeros(LANES * length - predicted)])
    inputs = padded[:-1].view(LANES, length)
    places = torch.arange(LANES * length, device=ids.device).view(LANES, length)
    labels = padded[1:].view(LANES, length).masked_fill(places >= predicted, -100)
    state, total = model.initial_state(LANES), 0.0
    for some, wanted in zip(inputs.split(window, 1), labels.split(window, 1), strict=True):
        loss, state = model.step(some, wanted.contiguous(), state)
        total += float(loss.double() * (wanted >= 0).sum())
    return total


def _in_windows(model: nn.Module, ids: torch.Tensor, window: int, at_once: int = 64) -> float:
    hop, predicted = window // 2, len(ids) - 1
    ends = [*range(window, predicted, hop), predicted]
    begins = torch.tensor([max(0, end - window) for end in ends], device=ids.device)
    place = begins[:, None] + torch.arange(min(window, predicted), device=ids.device)
    counted = torch.tensor([0, *ends[:-1]], device=ids.device)  # targets before this are another window's
    labels = ids[place + 1].masked_fill(place < counted[:, None], -100)
    total = 0.0
    for some, wanted in zip(ids[place].split(at_once), labels.split(at_once), strict=True):
        loss, _ = model.step(some, wanted, None)
        total += float(loss.double() * (wanted >= 0).sum())
    return total
