"""Evaluating beside training: tokens per second of both in one run, and what context health adds.

    newllm bench evaluation [--sizes 4M 25M 124M phase7_small] [--models new_llm tiny_gpt2]

Each is trained on the demo's dialogues by `train(recipe)` and evaluated five times on the way. Training's
speed is the median of the log's rows; an evaluation's that of all but the first, which sets up and compiles.
Context health is counted by a thread while samples are drawn: its row says how long a run without samples
would wait for it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks import common
from benchmarks.common import Rows
from newllm_lib.console import say
from newllm_lib.recipe import load_recipe


def _sizes(hidden: int, layers: int) -> dict:
    keys = {"hidden_size": hidden, "context_dim": hidden, "mlp_size": 4 * hidden}
    return keys | {"num_layers": layers, "num_heads": hidden // 64}


SIZES: dict[str, tuple[str, dict]] = {
    "4M": ("demo", {}),
    "25M": (
        "demo",
        {"hidden_size": 512, "context_dim": 512, "mlp_size": 2048, "num_layers": 7, "num_heads": 8},
    ),
    "124M": (
        "demo",
        {"hidden_size": 1024, "context_dim": 1024, "mlp_size": 4096, "num_layers": 9, "num_heads": 16},
    ),
    "phase7_small": ("phase7_small", {"data": "demo"}),
}
EVALUATIONS = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_out(parser)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["4M", "25M"], help="which models")
    parser.add_argument("--models", nargs="+", default=["new_llm", "tiny_gpt2"], help="of which kinds")
    parser.add_argument("--steps", type=common.positive, default=200, help="training steps (default: 200)")
    parser.add_argument(
        "--profile", metavar="FILE", help="write the last evaluation's kernels and calls there"
    )
    common.add_set(parser)


def main(arguments: argparse.Namespace) -> dict | None:
    rows = Rows("evaluation")
    for size in arguments.sizes:
        models = ["phase7"] if size.startswith("phase7") else arguments.models
        for model in models:
            found = measured(size, model, arguments)
            speeds = found["evaluating"][0] / found["training"][0]
            say(f"{model} {size}: " + ", ".join(f"{k} {v:,.4g} {u}" for k, (v, u) in found.items()))
            found["evaluating, of training"] = speeds, "times"
            for metric, (value, unit) in found.items():
                rows.add(f"{model}, {size}", metric, value, unit, "; ".join(["ChitChat", *arguments.set]))
    return common.record(rows, arguments)


def measured(size: str, model: str, arguments: argparse.Namespace) -> dict[str, tuple[float, str]]:
    """Train once, evaluating on the way; figures with their units."""
    from newllm_lib.training import train

    name, keys = SIZES[size]
    keys = {**keys, **({} if model == "phase7" else {"model": model}), **common.changes(arguments.set)}
    if model == "tiny_gpt2":
        keys["carry_state"] = False
    with tempfile.TemporaryDirectory() as folder:
        keys |= {"output_dir": str(Path(folder) / "run"), "max_steps": arguments.steps, "sample_tokens": 0}
        recipe = load_recipe(name, keys)
        seconds: list[tuple[float, float, int]] = []
        with watched(seconds, arguments.steps):
            run = train(recipe)
        speeds = [row["tokens_per_second"] for row in run.metrics() if "tokens_per_second" in row][2:]
    later = seconds[1:]
    evaluating = statistics.median(tokens / passes for passes, _, tokens in later)
    health = statistics.median(wait for _, wait, _ in later)
    return {
        "training": (statistics.median(speeds), "tokens/s"),
        "evaluating": (evaluating, "tokens/s"),
        "first evaluation": (seconds[0][0], "s"),
        "an evaluation": (statistics.median(passes for passes, *_ in later), "s"),
        "waiting for health": (health, "s"),
    }


@contextmanager
def watched(seconds: list[tuple[float, float, int]], steps: int) -> Iterator[None]:
    """Within it a training evaluates `EVALUATIONS` times in so many steps, and notes of each the seconds of
    its passes, the seconds of waiting for health, and its tokens."""
    from newllm_lib.training.loop import TrainingLoop
    from newllm_lib.training.timetable import Timetable

    measure, evaluates_at = TrainingLoop._measure, Timetable.evaluates_at

    def timed(loop: TrainingLoop, split):
        began = time.perf_counter()
        found, health = measure(loop, split)
        passed = time.perf_counter()
        figures = health()
        seconds.append((passed - began, time.perf_counter() - passed, found["tokens"]))
        return found, lambda: figures

    TrainingLoop._measure = timed
    Timetable.evaluates_at = lambda table, step: step % max(1, steps // EVALUATIONS) == 0
    try:
        yield
    finally:
        TrainingLoop._measure, Timetable.evaluates_at = measure, evaluates_at
