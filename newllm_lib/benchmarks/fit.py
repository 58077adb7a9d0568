"""Training small models fast, for comparisons: several at once on one GPU, each whole step replayed from a CUDA graph.

A small model's step is hundreds of kernels too short to fill a GPU, so trainings run beside each other on streams of their own.
The host only replays: tokens, their order, rates and the step's number lie on the device. The loop is the same for every model:
shuffled documents, warm-up, then a fall to zero; blocks in random order, or for a model that carries a state in the text's order
with the state carried on. What is timed is `newllm bench speed`; what a user trains with is `newllm train`.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from newllm_lib.benchmarks.corpus import LONGEST, Corpus
from newllm_lib.training.muon import BatchedMuon

WARM_UP_CALLS = 3  # before the capture: they compile kernels and allocate, and count as steps
REPLAYS = 50  # in a chunk; the host keeps up to CHUNKS of them waiting, so that it may look after other trainings meanwhile
CHUNKS = 3


@dataclass(frozen=True)
class Settings:
    """How a model is trained; rates are peaks, the batch is `rows` blocks of `time` tokens."""

    optimizer: str = "muon"  # or adamw
    learning_rate: float = 6e-3
    muon_learning_rate: float = 0.02
    weight_decay: float = 0.1
    muon_weight_decay: float | None = None  # as weight_decay
    beta2: float = 0.98
    rows: int = 128
    time: int = 128
    epochs: float = 6.0
    warmup: int = 100
    decay: float = 0.5  # share of the steps over which the rates fall linearly to zero
    train_on: tuple[str, ...] = ("train",)  # when settings are chosen, the validation part can be learned too
    carry: bool = True  # the state goes on from block to block (a model that has one)
    seed: int = 0


class Training:
    """One training: `begin`, then `advance` until it returns False, then `result`. On a processor `advance` does all of it.

    Args:
        model: with `step(ids, labels, state) -> loss, state`, and `carries` if it has a state. limit_steps: stop there.
    """

    def __init__(self, model: nn.Module, corpus: Corpus, settings: Settings, device="cuda", limit_steps: int | None = None):
        self.model, self.corpus, self.settings, self.device = model.to(device), corpus, settings, torch.device(device)
        self.parameters = sum(p.numel() for p in model.parameters())
        text = np.concatenate([corpus.ids[part] for part in settings.train_on])
        self.per_epoch = (len(text) - 1) // (settings.rows * settings.time)
        total = round(settings.epochs * self.per_epoch)
        self.total = min(total, limit_steps or total)
        self.batches = _Batches(text, settings, self.per_epoch, self._carries(), self.device)
        self.state = model.initial_state(settings.rows) if getattr(model, "carries", False) else None
        factors = [_factor(step, self.total, settings) for step in range(self.total)]
        self.factors = torch.tensor([*factors, 0.0], device=self.device)
        self.number = torch.zeros(1, dtype=torch.long, device=self.device)  # of the step
        self.rate, self.muon_rate, self.loss = (torch.zeros((), device=self.device) for _ in range(3))
        self.optimizers = self._optimizers()
        self.done, self.graph, self.waiting = 0, None, []

    def begin(self) -> None:
        """The first steps; on a GPU the step is captured after them."""
        torch.manual_seed(self.settings.seed + 1)
        self.model.train()
        self.began = time.monotonic()
        if self.device.type != "cuda":
            return
        torch.cuda.synchronize()
        self.stream = torch.cuda.Stream()
        with torch.cuda.stream(self.stream):
            while self.done < min(WARM_UP_CALLS, self.total):
                self._step()
                self.done += 1
        torch.cuda.synchronize()
        if self.done < self.total:
            for optimizer in self.optimizers:
                optimizer.zero_grad()
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, stream=self.stream, capture_error_mode="thread_local"):
                self._step()

    def advance(self) -> bool:
        """Put some more steps into the device's queue, unless enough wait there; whether any are left or under way."""
        self.waiting = [event for event in self.waiting if not event.query()]
        if self.done >= self.total or len(self.waiting) >= CHUNKS:
            return bool(self.waiting)
        step = self.graph.replay if self.graph is not None else self._step
        if self.device.type != "cuda":
            for _ in range(self.total - self.done):
                step()
            self.done = self.total
            return False
        with torch.cuda.stream(self.stream):
            for _ in range(min(REPLAYS, self.total - self.done)):
                step()
                self.done += 1
            self.waiting.append(torch.cuda.current_stream().record_event())
        return True

    def result(self) -> dict:
        """Bits per byte of validation and test, seconds, steps, parameters, the mean training loss of the last epoch; where the
        result counts, as validation text was learned too, also of the test text less its longest document."""
        if self.device.type == "cuda":
            self.stream.synchronize()
        seconds = time.monotonic() - self.began
        counted = (self.total - 1) % self.per_epoch + 1
        found = {part: bits_per_byte(self.model, self.corpus, part, self.settings.time) for part in ("validation", "test")}
        if "validation" in self.settings.train_on:
            found["test_less_longest"] = self._less_longest(found["test"])
        loss = self.loss.item() / counted
        return found | {"train_loss": loss, "seconds": seconds, "steps": self.total, "parameters": self.parameters}

    def _less_longest(self, test: float) -> float:
        size = self.corpus.bytes
        longest = bits_per_byte(self.model, self.corpus, LONGEST, self.settings.time)
        return (test * size["test"] - longest * size[LONGEST]) / (size["test"] - size[LONGEST])

    def _carries(self) -> bool:
        return bool(getattr(self.model, "carries", False)) and self.settings.carry

    def _step(self) -> None:
        """One optimizer step; nothing in it asks the host."""
        epoch, batch = self.number // self.per_epoch, self.number % self.per_epoch
        factor = self.factors.index_select(0, self.number)[0]
        self.rate.copy_(factor * self.settings.learning_rate)
        self.muon_rate.copy_(factor * self.settings.muon_learning_rate)
        for values in [self.loss] + ([self.state] if self._carries() else []):  # an epoch begins with new documents in every row
            values.mul_((batch[0] != 0).to(values.dtype))
        ids, labels = self.batches.take(epoch, batch)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        with precision(self.device):
            loss, state = self.model.step(ids, labels, self.state)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0, foreach=True)
        for optimizer in self.optimizers:
            optimizer.step()
        if self._carries():
            self.state.copy_(state.detach())
        self.loss.add_(loss.detach())
        self.number.add_(1)

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
        decay = settings.weight_decay if settings.muon_weight_decay is None else settings.muon_weight_decay
        return [adamw, BatchedMuon(matrices, lr=self.muon_rate, weight_decay=decay, adjust_lr_fn="original")]

    def _vocabulary(self) -> int:
        return max(m.num_embeddings for m in self.model.modules() if isinstance(m, nn.Embedding))


class _Batches:
    """All epochs' text on the device, documents in a new order in each, and where each batch's rows begin."""

    def __init__(self, ids: np.ndarray, settings: Settings, per_epoch: int, in_order: bool, device):
        rows, length, epochs = settings.rows, settings.time, math.ceil(settings.epochs)
        order = np.random.default_rng(settings.seed)
        documents = np.split(ids, np.flatnonzero(ids == 0)[1:])
        shuffled = [np.concatenate([documents[i] for i in order.permutation(len(documents))]) for _ in range(epochs)]
        self.text = torch.from_numpy(np.concatenate(shuffled).astype(np.int32)).to(device)
        if in_order:  # each row reads its own part of the text from beginning to end
            lane = (len(ids) - 1) // rows
            places = np.arange(rows)[None, :] * lane + np.arange(per_epoch)[:, None] * length
            places = np.stack([places] * epochs)
        else:
            blocks = (len(ids) - 1) // length
            places = np.stack([order.permutation(blocks)[: per_epoch * rows] * length for _ in range(epochs)])
        places = places.reshape(epochs, per_epoch, rows) + len(ids) * np.arange(epochs)[:, None, None]
        self.places = torch.from_numpy(places).to(device)
        self.within = torch.arange(length, device=device)

    def take(self, epoch: torch.Tensor, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and labels (rows, time) of a batch; both numbers are tensors (1,) on the device."""
        place = self.places[epoch, batch].squeeze(0)[:, None] + self.within
        return self.text[place].long(), self.text[place + 1].long()


def precision(device):
    """bfloat16 for matrix products on a GPU; float32 elsewhere."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def _factor(step: int, total: int, settings: Settings) -> float:
    """Share of the peak rates: linear warm-up, level, linear fall to zero."""
    return min(1.0, (step + 1) / settings.warmup, (1 - step / total) / settings.decay)


@torch.no_grad()
def bits_per_byte(model, corpus: Corpus, part: str, window: int) -> float:
    """Every token but the first predicted once. A model with a state reads each document from end to end; one without reads
    windows that overlap by half, of which the second half counts, so that it always sees at least half a window."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    read = _by_documents if getattr(model, "carries", False) else _by_windows
    with precision(device):
        nats = read(model, corpus.ids[part].astype(np.int64), window, device)
    model.train(was_training)
    return nats / math.log(2) / corpus.bytes[part]


def _by_documents(model, ids, window, device, lanes: int = 32) -> float:
    """Whole documents one after the other, in lanes of about one length; what is not counted has label -100."""
    documents = np.split(ids, np.flatnonzero(ids == 0)[1:])
    # a document's end is predicted as the next one's start, but for the text's own end
    targets = [np.append(d[1:], 0 if number < len(documents) - 1 else -100) for number, d in enumerate(documents)]
    chosen: list[list[int]] = [[] for _ in range(min(lanes, len(documents)))]
    sizes = [0] * len(chosen)
    for number in sorted(range(len(documents)), key=lambda n: -len(documents[n])):
        lane = sizes.index(min(sizes))
        chosen[lane].append(number)
        sizes[lane] += len(documents[number])
    inputs, labels = (np.full((len(chosen), max(sizes)), fill) for fill in (0, -100))
    for lane, numbers in enumerate(chosen):
        inputs[lane, : sizes[lane]] = np.concatenate([documents[n] for n in numbers])
        labels[lane, : sizes[lane]] = np.concatenate([targets[n] for n in numbers])
    inputs, labels = (torch.from_numpy(part).to(device) for part in (inputs, labels))
    state, total = model.initial_state(len(chosen)), torch.zeros((), dtype=torch.float64, device=device)
    for some, wanted in zip(inputs.split(window, 1), labels.split(window, 1), strict=True):
        loss, state = model.step(some, wanted.contiguous(), state)
        total += loss.double() * (wanted >= 0).sum()
    return float(total)


def _by_windows(model, ids, window, device, at_once: int = 64) -> float:
    ids = torch.from_numpy(ids).to(device)
    hop, count = window // 2, len(ids) - 1
    ends = list(range(window, count, hop)) + [count]
    begins = torch.tensor([max(0, end - window) for end in ends], device=device)
    place = begins[:, None] + torch.arange(min(window, count), device=device)
    labels = ids[place + 1]
    counted = torch.tensor([0, *ends[:-1]], device=device)  # targets before this are another window's
    labels = labels.masked_fill(place < counted[:, None], -100)
    total = torch.zeros((), dtype=torch.float64, device=device)
    for some, wanted in zip(ids[place].split(at_once), labels.split(at_once), strict=True):
        loss, _ = model.step(some, wanted, None)
        total += loss.double() * (wanted >= 0).sum()
    return float(total)
