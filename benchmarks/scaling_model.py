"""A model of training on more GPUs than were measured: time, cost and the limit of communication.

    newllm bench scaling_model            prints the tables of docs/guides/several-gpus.md

A step is the computation of one GPU's share of the batch, at the speed that one GPU was measured at, and what
is sent. How fast a model's step sends, as far as that is not hidden behind its computation, was measured with
two GPUs of one host; bandwidth between hosts, the batch and the price are assumptions, named below.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass

from newllm_lib.console import say

GPUS = (1, 2, 8, 64, 1024)
PER_HOST = 8
BETWEEN_HOSTS = 40e9  # bytes/s for each GPU between hosts: 400 Gb/s a GPU, four fifths of it
LATENCY = 30e-6  # s that a collective takes longer for each doubling of hosts
PRICE = 3.0  # dollars for a GPU and hour
TOKENS = 1e12
GPU_HOURS_A_FAILURE = 50_000  # of GPUs in use, until one fails and ends the run
RESTART = 300.0  # s until it trains again, with what came after the last save


@dataclass(frozen=True)
class Model:
    """`speed`: one GPU's tokens/s; `rate`: bytes/s at which two GPUs seem to send, from what a step takes
    longer than half of one GPU's; `batch` and `micro` in tokens."""

    name: str
    parameters: float
    way: str  # ddp or fsdp2
    speed: float
    rate: float
    batch: float
    micro: float
    layers: int


def rate(parameters: float, way: str, micro_batches: float, alone: float, together: float) -> float:
    """`Model.rate` from the seconds of a step of one GPU and of two at the same batch.

    Args:
        micro_batches: of each of the two.
    """
    size = 4 * parameters
    return (size if way == "ddp" else 1.5 * size * micro_batches) / (together - alone / 2)


# Steps of one H200 and of two, in seconds: benchmarks/results.csv, "scale".
MEASURED = (
    Model("New-LLM 25M", 25.2e6, "ddp", 2.616e6, rate(25.2e6, "ddp", 4, 0.20042, 0.10509), 0.52e6, 65_536, 8),
    Model(
        "Phase 7 100M", 99.6e6, "ddp", 506.6e3, rate(99.6e6, "ddp", 2, 0.25872, 0.13245), 2.1e6, 32_768, 12
    ),
    Model(
        "Phase 7 1.5B",
        1.512e9,
        "fsdp2",
        43.2e3,
        rate(1.512e9, "fsdp2", 1, 1.51557, 0.81905),
        4.2e6,
        32_768,
        24,
    ),
)


@dataclass(frozen=True)
class Step:
    """Seconds of a step on `gpus`, and of those what is not computation."""

    gpus: int
    seconds: float
    sending: float
    tokens_per_second: float
    efficiency: float  # against `gpus` times one GPU


def sending_time(model: Model, gpus: int, micro_batches: float) -> float:
    """Seconds that each GPU sends (and receives) in a step.

    DDP: gradients in float32, in a ring: twice (n - 1)/n of them. FSDP2, in a host: float32 weights fetched
    for the forward and the backward pass of each micro-batch, gradients summed into parts: three times (n -
    1)/n of them each; between hosts, once a step, a part's gradients in a ring.
    """
    size, share = 4 * model.parameters, (gpus - 1) / gpus
    if model.way == "ddp":
        return 2 * share * size / (model.rate if gpus <= PER_HOST else min(model.rate, BETWEEN_HOSTS))
    inside, hosts = min(gpus, PER_HOST), max(1, gpus // PER_HOST)
    fetched = 3 * (inside - 1) / inside * size * micro_batches / model.rate
    return fetched + 2 * (hosts - 1) / hosts * size / inside / BETWEEN_HOSTS


def collectives(model: Model, micro_batches: float) -> float:
    """How many in a step: DDP sends buckets of 25 MB, FSDP2 each layer three times a micro-batch."""
    return 4 * model.parameters / 25e6 + 1 if model.way == "ddp" else 3 * (model.layers + 1) * micro_batches


def step(model: Model, gpus: int) -> Step:
    """A step on `gpus` at the model's batch, cut into micro-batches of its size, or of each GPU's share where
    that is less."""
    share = model.batch / gpus
    compute, sending = share / model.speed, 0.0
    if gpus > 1:
        micro_batches = max(1.0, share / model.micro)
        hops = 1 + (gpus > PER_HOST) * (gpus // PER_HOST).bit_length()
        sending = sending_time(model, gpus, micro_batches) + collectives(model, micro_batches) * LATENCY * (
            hops - 1
        )
    seconds = compute + sending
    return Step(gpus, seconds, sending, model.batch / seconds, compute / seconds)


def days(found: Step, tokens: float = TOKENS) -> float:
    """Days for so many tokens, restarts after failures included."""
    hours = tokens / found.tokens_per_second / 3600
    failures = hours * found.gpus / GPU_HOURS_A_FAILURE
    return (hours + failures * RESTART / 3600) / 24


def table(model: Model) -> str:
    """A Markdown table over `GPUS`."""
    head = f"{model.name}, batch {model.batch / 1e6:.2g}M tokens"
    lines = [
        f"| {head} | step | of it sending | tokens/s | efficiency | 1T tokens | cost |",
        "|---" + 6 * "|---:" + "|",
    ]
    for gpus in GPUS:
        found = step(model, gpus)
        time = days(found)
        cells = [
            f"{gpus:,}",
            _duration(found.seconds),
            _duration(found.sending),
            f"{found.tokens_per_second / 1e6:,.3g} M",
        ]
        cells += [f"{100 * found.efficiency:.0f} %", _time(time), f"${_short(time * 24 * gpus * PRICE)}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    return f"{seconds:,.3g} s" if seconds >= 1 else f"{1e3 * seconds:,.3g} ms"


def _time(days: float) -> str:
    return (
        f"{days / 365:,.1f} years"
        if days > 730
        else f"{days:,.0f} days"
        if days >= 10
        else f"{days:,.1f} days"
    )


def _short(dollars: float) -> str:
    return f"{dollars / 1e6:.2f}M" if dollars >= 1e6 else f"{dollars / 1e3:.1f}k"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It has none of its own."""


def main(arguments: argparse.Namespace) -> dict | None:
    say("\n\n".join(table(model) for model in MEASURED))
    return (
        {model.name: [asdict(step(model, gpus)) for gpus in GPUS] for model in MEASURED}
        if arguments.json
        else None
    )
