"""Training a small model fast, for comparisons: tokens on the device, each whole step replayed from one CUDA graph.

The loop is the same for every model: shuffled documents, warm-up, then a fall to zero; blocks in random order, or for a model
that carries a state in the text's order with the state carried on. What is timed is `newllm bench speed`; what a user trains
with is `newllm train`.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from newllm_lib.benchmarks.corpus import Corpus
from newllm_lib.training.muon import BatchedMuon


@dataclass(frozen=True)
class Settings:
    """How a model is trained; rates are peaks, the batch is `rows` blocks of `time` tokens."""

    optimizer: str = "muon"  # or adamw
    learning_rate: float = 6e-3
    muon_learning_rate: float = 0.02
    weight_decay: float = 0.1
    beta2: float = 0.98
    rows: int = 128
    time: int = 128
    epochs: float = 6.0
    warmup: int = 100
    decay: float = 0.5  # share of the steps over which the rates fall linearly to zero
    train_on: tuple[str, ...] = ("train",)  # when settings are chosen, the validation part can be learned too
    carry: bool = True  # the state goes on from block to block (a model that has one)
    seed: int = 0


class Fit:
    """Trains one model by different settings, again and again from fresh weights: what was compiled is used again.

    Args:
        make: () -> model, drawing its weights from torch's random state.
    """

    def __init__(self, make, corpus: Corpus, device: str = "cuda", compile: bool = True):
        self.make, self.corpus, self.device = make, corpus, torch.device(device)
        self.model: nn.Module = make().to(self.device)
        self.parameters = sum(p.numel() for p in self.model.parameters())
        self.forward = torch.compile(self.model.step, dynamic=False) if compile else self.model.step

    def run(self, settings: Settings, limit_steps: int | None = None) -> dict:
        """Train, then measure: bits per byte of validation and test, seconds, steps, the mean loss of the last epoch."""
        torch.manual_seed(settings.seed)
        with torch.no_grad():
            for p, fresh in zip(self.model.parameters(), self.make().parameters(), strict=True):
                p.copy_(fresh)
        torch.manual_seed(settings.seed + 1)
        self.model.train()
        began = time.monotonic()
        step = _Step(self.model, self.forward, settings, self.device)
        text = np.concatenate([self.corpus.ids[part] for part in settings.train_on])
        per_epoch = (len(text) - 1) // (settings.rows * settings.time)
        total = min(round(settings.epochs * per_epoch), limit_steps or 10**9)
        done, losses = 0, torch.zeros((), device=self.device)
        order = np.random.default_rng(settings.seed)
        while done < total:
            losses.zero_()
            step.clear()
            count = min(per_epoch, total - done)
            for ids, labels in self._epoch(text, settings, order, count, step.carries):
                losses += step(ids, labels, _factor(done, total, settings))
                done += 1
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.monotonic() - began
        del step
        result = {"train_loss": losses.item() / count, "seconds": seconds, "steps": total, "parameters": self.parameters}
        return result | {part: bits_per_byte(self.model, self.corpus, part, settings.time) for part in ("validation", "test")}

    def _epoch(self, ids, settings, order, count, carries):
        """Batches (rows, time) of one pass over the documents, in a new order."""
        rows, length = settings.rows, settings.time
        starts = np.append(np.flatnonzero(ids == 0), len(ids))
        stream = np.concatenate([ids[starts[i] : starts[i + 1]] for i in order.permutation(len(starts) - 1)])
        stream = torch.from_numpy(stream.astype(np.int64)).to(self.device)
        if carries:  # each row reads its own part of the text from beginning to end
            lane = (len(stream) - 1) // rows
            inputs, labels = (stream[i : i + lane * rows].view(rows, lane) for i in (0, 1))
            for b in range(count):
                yield inputs[:, b * length : (b + 1) * length], labels[:, b * length : (b + 1) * length]
            return
        blocks = (len(stream) - 1) // length
        inputs, labels = (stream[i : i + blocks * length].view(blocks, length) for i in (0, 1))
        shuffled = torch.from_numpy(order.permutation(blocks)).to(self.device)
        for b in range(count):
            chosen = shuffled[b * rows : (b + 1) * rows]
            yield inputs[chosen], labels[chosen]


class _Step:
    """One optimizer step from buffers that stay where they are; on a GPU captured after three warm-up calls."""

    def __init__(self, model, forward, settings: Settings, device):
        self.model, self.forward, self.settings, self.device = model, forward, settings, device
        shape = settings.rows, settings.time
        self.ids, self.labels = (torch.zeros(shape, dtype=torch.long, device=device) for _ in range(2))
        self.carries = bool(getattr(model, "carries", False)) and settings.carry
        has_state = bool(getattr(model, "carries", False))
        self.state = model.initial_state(settings.rows) if has_state else torch.zeros(1, device=device)
        self.loss = torch.zeros((), device=device)
        self.rate, self.muon_rate = torch.zeros((), device=device), torch.zeros((), device=device)
        self.optimizers = self._optimizers()
        self.calls, self.graph = 0, None

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        settings, matrices = self.settings, []
        if settings.optimizer == "muon":
            inside = [m.weight for m in self.model.modules() if isinstance(m, (nn.Linear, Conv1D))]
            matrices = [weight for weight in inside if weight.shape[0] != self._vocabulary()]
        taken = {id(p) for p in matrices}
        rest = [p for p in self.model.parameters() if id(p) not in taken]
        groups = [
            {"params": [p for p in rest if p.ndim >= 2], "weight_decay": settings.weight_decay},
            {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
        ]
        fast = {"fused": True, "capturable": True} if self.device.type == "cuda" else {}
        adamw = torch.optim.AdamW([g for g in groups if g["params"]], lr=self.rate, betas=(0.9, settings.beta2), **fast)
        if not matrices:
            return [adamw]
        return [adamw, BatchedMuon(matrices, lr=self.muon_rate, weight_decay=settings.weight_decay, adjust_lr_fn="original")]

    def _vocabulary(self) -> int:
        return max(m.num_embeddings for m in self.model.modules() if isinstance(m, nn.Embedding))

    def clear(self) -> None:
        self.state.zero_()

    def __call__(self, ids, labels, factor: float) -> torch.Tensor:
        self.ids.copy_(ids)
        self.labels.copy_(labels)
        self.rate.fill_(factor * self.settings.learning_rate)
        self.muon_rate.fill_(factor * self.settings.muon_learning_rate)
        self.calls += 1
        if self.graph is not None:
            self.graph.replay()
        elif self.device.type != "cuda" or not getattr(self.model, "captured", True):
            self._work()
        elif self.calls <= 3:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                self._work()
            torch.cuda.current_stream().wait_stream(stream)
        else:
            for optimizer in self.optimizers:
                optimizer.zero_grad()
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self._work()
            self.graph.replay()
        return self.loss

    def _work(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        with precision(self.device):
            loss, state = self.forward(self.ids, self.labels, self.state)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0, foreach=True)
        for optimizer in self.optimizers:
            optimizer.step()
        if self.carries:
            self.state.copy_(state.detach())
        self.loss.copy_(loss.detach())


def precision(device):
    """bfloat16 for matrix products on a GPU; float32 elsewhere."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def _factor(step: int, total: int, settings: Settings) -> float:
    """Share of the peak rates: linear warm-up, level, linear fall to zero."""
    return min(1.0, (step + 1) / settings.warmup, (1 - step / total) / settings.decay)


@torch.no_grad()
def bits_per_byte(model, corpus: Corpus, part: str, window: int) -> float:
    """Every token but the first predicted once. A model with a state reads lanes from end to end; one without reads windows that
    overlap by half, of which the second half counts, so that it always sees at least half a window."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    ids = torch.from_numpy(corpus.ids[part].astype(np.int64)).to(device)
    read = _by_lanes if getattr(model, "carries", False) else _by_windows
    with precision(device):
        nats = read(model, ids, window)
    model.train(was_training)
    return nats / math.log(2) / corpus.bytes[part]


def _by_lanes(model, ids, window, lanes: int = 32) -> float:
    """Lanes side by side, their ends padded with what is not counted (-100)."""
    length = -(-(len(ids) - 1) // lanes)
    short = lanes * length - (len(ids) - 1)
    inputs = torch.cat([ids[:-1], ids.new_zeros(short)]).view(lanes, length)
    labels = torch.cat([ids[1:], ids.new_full((short,), -100)]).view(lanes, length)
    state, total = model.initial_state(lanes), torch.zeros((), dtype=torch.float64, device=ids.device)
    for start in range(0, length, window):
        some, wanted = inputs[:, start : start + window], labels[:, start : start + window].contiguous()
        loss, state = model.step(some, wanted, state)
        total += loss.double() * (wanted >= 0).sum()
    return float(total)


def _by_windows(model, ids, window, at_once: int = 64) -> float:
    hop, count = window // 2, len(ids) - 1
    ends = list(range(window, count, hop)) + [count]
    begins = torch.tensor([max(0, end - window) for end in ends], device=ids.device)
    place = begins[:, None] + torch.arange(min(window, count), device=ids.device)
    labels = ids[place + 1]
    counted = torch.tensor([0, *ends[:-1]], device=ids.device)  # targets before this are another window's
    labels = labels.masked_fill(place < counted[:, None], -100)
    total = torch.zeros((), dtype=torch.float64, device=ids.device)
    for some, wanted in zip(ids[place].split(at_once), labels.split(at_once), strict=True):
        loss, _ = model.step(some, wanted, None)
        total += loss.double() * (wanted >= 0).sum()
    return float(total)
