"""A whole command, from its start to its end: wall-clock, where it went, memory.

    newllm bench whole_run [RECIPE …] [--model new_llm] [--cores 2] [--cold] [--set max_steps=300]

Each recipe is trained by `newllm train` in a process of its own and a folder that is thrown away; the parts
are what the run itself has measured (`timing.json`). --cold gives it empty caches for kernels and data,
--cores 2 as many processors as Colab has. Host memory is the largest resident set of the process and of those
it starts; GPU memory is what nvidia-smi shows of the card beyond what was in use before, context included.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks import common
from benchmarks.common import Rows
from newllm_lib.console import say
from newllm_lib.errors import NewLLMError, UsageError
from newllm_lib.runs import Run, read_timing, timing_in_words


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_out(parser)
    parser.add_argument("recipes", nargs="*", default=["demo"], metavar="RECIPE", help="default: demo")
    parser.add_argument("--model", default="new_llm", help="which model (default: new_llm)")
    parser.add_argument("--cores", type=common.positive, help="use only the first so many processors (Linux)")
    parser.add_argument("--cold", action="store_true", help="nothing compiled and nothing prepared before")
    parser.add_argument("--repeats", type=common.positive, default=1, help="a row for each (default: 1)")
    common.add_set(parser)


def main(arguments: argparse.Namespace) -> dict | None:
    if arguments.cores and not hasattr(os, "sched_setaffinity"):
        raise UsageError("--cores needs Linux: leave it out.")
    rows = Rows("whole run")
    where = f"{arguments.cores} cores" if arguments.cores else f"{os.cpu_count()} cores"
    device = os.environ.get("NEWLLM_DEVICE")
    note = ", ".join([where, "cold" if arguments.cold else "warm", *([f"as a {device}"] if device else [])])
    note = ", ".join([note, *arguments.set])
    for recipe in arguments.recipes * arguments.repeats:
        with tempfile.TemporaryDirectory() as folder:
            found = measured(recipe, Path(folder), arguments)
        for metric, (value, unit) in found.items():
            rows.add(f"{arguments.model}, newllm train {recipe}", metric, value, unit, note)
    return common.record(rows, arguments)


def measured(recipe: str, folder: Path, arguments: argparse.Namespace) -> dict[str, tuple[float, str]]:
    """Train once; figures with their units.

    Raises:
        NewLLMError: the command failed.
    """
    run = Run(folder / "run")
    words = [sys.executable, "-m", "newllm_lib", "train", recipe, "--model", arguments.model]
    words += ["--output_dir", str(run.path)]
    words += [w for key, value in common.changes(arguments.set).items() for w in (f"--{key}", value)]
    caches = {
        name: str(folder / name) for name in ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "NEWLLM_CACHE")
    }
    with gpu_memory() as peak, open(folder / "log", "w") as log:
        began = time.monotonic()
        code = subprocess.call(
            words,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | (caches if arguments.cold else {}),
            preexec_fn=(lambda: os.sched_setaffinity(0, range(arguments.cores))) if arguments.cores else None,
        )
        wall = time.monotonic() - began
    timing = read_timing(run)
    if code or timing is None:
        raise NewLLMError(f"newllm train {recipe} failed: {common.last_line((folder / 'log').read_text())}")
    say(f"{recipe}: {wall:.1f} s; {timing_in_words(timing)}")
    return figures(wall, timing, peak)


def figures(wall: float, timing: dict, peak: list[float]) -> dict[str, tuple[float, str]]:
    """What is written of a run: its wall-clock, its own account, memory (`peak`: the GPU's in GiB)."""
    seconds = timing["seconds"]
    around = sum(seconds[part] for part in ("evaluation", "samples", "saving"))
    found = {
        "wall-clock": (wall, "s"),
        "first step": (timing["first_step_seconds"], "s"),
        **{f"in {part}": (value, "s") for part, value in seconds.items()},
        "evaluation, samples, saving": (around / timing["total_seconds"], "share"),
        "host memory": (resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20, "GiB"),
    }
    for name in ("training", "evaluation"):
        if speed := timing[f"{name}_tokens_per_second"]:
            found[f"{name} speed"] = (speed, "tokens/s")
    return found | ({"GPU memory, nvidia-smi": (peak[0], "GiB")} if peak else {})


@contextmanager
def gpu_memory() -> Iterator[list[float]]:
    """Within it nvidia-smi is asked five times a second; then the list has the peak in GiB, or nothing."""
    ask = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    seen, done, peak = [], threading.Event(), []

    def watch() -> None:
        while not done.is_set():
            try:
                answer = subprocess.run(ask, capture_output=True, text=True, check=True).stdout
            except (OSError, subprocess.CalledProcessError):
                return
            seen.append(float(answer.splitlines()[0]) / 1024)
            done.wait(0.2)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()
        peak += [max(seen) - seen[0]] if seen else []
