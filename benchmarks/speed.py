"""Training tokens/s and memory: whole steps of New-LLM and its peers on random tokens, each in a process.

The setting is one for all: blocks, vocabulary, bf16 matrix products on a GPU, fused AdamW, no dropout. Ways
to run a step:

    eager       as it is
    compiled    model and loss by torch.compile
    graphs      the same, replayed from CUDA graphs ("reduce-overhead"), the optimizer launched after them
    replay      loss and gradients as they are in one CUDA graph: what New-LLM's training does
    captured    the whole step in one CUDA graph, the optimizer in it
    trainer     `newllm train` on ChitChat, with its clipping, schedule and log

At 4M parameters, or with --size at another of `peers.SIZES`: for New-LLM, TinyGPT2, modern attention, and
nanoGPT (`nanogpt:compiled`, as its own `train.py` has it) from the folder that --nanogpt names.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import common, nanogpt, speed_ways
from benchmarks.common import Rows
from newllm_lib.console import say
from newllm_lib.errors import UsageError

WAYS = (
    "seed:eager",
    "gpt2:eager",
    "gpt2:compiled",
    "gpt2:graphs",
    "gpt2:captured",
    "attention:graphs",
    "attention:captured",
    "lstm:eager",
    "tiny_gpt2:graphs",
    "new_llm:eager",
    "new_llm:compiled",
    "new_llm:graphs",
    "new_llm:replay",
    "new_llm:captured",
    "new_llm:trainer",
)
CPU_WAYS = ("seed_equal:eager", "new_llm:eager")
NANOGPT = "nanogpt:compiled"
SETTING = {"batch": 512, "length": 128, "vocabulary": 8192}
CPU_SETTING = {"batch": 1, "length": 128, "vocabulary": 4096}
_TITLES = {
    "seed": "seed recurrence",
    "gpt2": "GPT-2 (transformers)",
    "tiny_gpt2": "TinyGPT2",
    "attention": "modern attention",
    "lstm": "LSTM (cuDNN)",
    "new_llm": "New-LLM",
    "nanogpt": "nanoGPT",
    "seed_equal": "seed recurrence, New-LLM's parameters",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from benchmarks.table import picture_of

    common.add_out(parser, str(picture_of("speed")))
    parser.add_argument("--ways", nargs="+", metavar="WAY", help="only these (default: all)")
    parser.add_argument("--steps", type=common.positive, default=60, help="timed steps (default: 60)")
    parser.add_argument(
        "--jobs",
        type=common.positive,
        default=1,
        help="processes that prepare side by side, to be timed in turn (default: 1)",
    )
    for name, default in (
        ("batch", "512, without a GPU 1"),
        ("length", "128"),
        ("vocabulary", "8,192, without a GPU 4,096"),
    ):
        parser.add_argument(
            f"--{name}", type=common.positive, help=f"of the training step (default: {default})"
        )
    parser.add_argument(
        "--size", default="4M", choices=("4M", "10M", "25M", "124M"), help="parameters (default: 4M)"
    )
    parser.add_argument("--nanogpt", type=Path, metavar="DIR", help="a clone of nanoGPT (only read)")
    parser.add_argument("--one", nargs=2, metavar=("WAY", "SETTING"), help=argparse.SUPPRESS)


def main(arguments: argparse.Namespace) -> dict | None:
    from benchmarks.table import record_and_draw
    from newllm_lib.device import probe

    if arguments.one:
        way, setting = arguments.one
        print(
            json.dumps(speed_ways.measure(*way.split(":"), _wait_for_the_word, **json.loads(setting))),
            flush=True,
        )
        return None
    on_a_cpu = probe().torch_device == "cpu"
    ways = arguments.ways or (CPU_WAYS if on_a_cpu else WAYS)
    ways = common.choose(ways, [*WAYS, *CPU_WAYS, NANOGPT], "way")
    _check(ways, arguments)
    setting = CPU_SETTING if on_a_cpu else SETTING
    setting = {name: getattr(arguments, name) or usual for name, usual in setting.items()}
    setting |= {"size": arguments.size, "clone": arguments.nanogpt and str(arguments.nanogpt)}
    say("Timing training steps, each way in a process of its own: " + ", ".join(ways))
    name = "speed on a CPU" if on_a_cpu else "speed"
    rows = Rows(name if arguments.size == "4M" else f"{name}, {arguments.size}")
    run(rows, ways, steps=arguments.steps, jobs=arguments.jobs, **setting)
    return record_and_draw(rows, arguments) if arguments.size == "4M" else common.record(rows, arguments)


def _check(ways, arguments: argparse.Namespace) -> None:
    fixed = [way for way in ways if way.split(":")[0] not in speed_ways.SIZED or way.endswith(":trainer")]
    if arguments.size != "4M" and fixed:
        raise UsageError(
            f"--size is not for {fixed[0]}: choose from {', '.join(speed_ways.SIZED)} with --ways."
        )
    if NANOGPT in ways and not arguments.nanogpt:
        raise UsageError(f"--ways {NANOGPT} needs --nanogpt DIR, the folder of a nanoGPT clone.")
    if arguments.nanogpt:
        nanogpt.check(arguments.nanogpt)


def run(rows: Rows, ways=WAYS, *, steps: int = 60, jobs: int = 1, **setting) -> None:
    """Measure each way and add its rows; one that fails is reported, and the others go on.

    Args:
        jobs: so many processes import and compile at a time, and then are timed one after the other while the
            rest wait. How long a first step takes is recorded only of one that was alone.
    """
    setting = {**SETTING, **setting, "steps": steps}
    for first in range(0, len(ways), jobs):
        together = [_Child(way, setting, alone=jobs == 1) for way in ways[first : first + jobs]]
        for child in together:
            child.ready()
        for child in together:
            found = child.measured()
            if found is None:
                say(f"{child.way}: failed: {child.complaint}")
            else:
                _record(rows, child.way, found, setting, alone=jobs == 1)


def _record(rows: Rows, way: str, found: dict, setting: dict, alone: bool) -> None:
    name, how = way.split(":")
    title = f"{_TITLES[name]}, {how}"
    note = f"{found['parameters']:,} parameters, {setting['batch']} x {setting['length']}"
    note += f", vocabulary {setting['vocabulary']:,}"
    if found["carries"]:
        note += "; the state goes in and out"
    rows.add(title, "training step", found["tokens_per_second"], "tokens/s", note)
    text = f"{title:<44} {found['tokens_per_second'] / 1e6:>7.3f} M tokens/s"
    if found["waited"] is not None:
        rows.add(title, "each training step waited for", found["waited"], "tokens/s", note)
        text += f" ({found['waited'] / 1e6:.3f} when each step is waited for)"
    if found["gib"] is not None:
        rows.add(title, "peak memory of a training step", found["gib"], "GiB", note)
        text += f", {found['gib']:.2f} GiB"
    if found["first_step"] is not None:
        text += f", first step {found['first_step']:.1f} s"
        if alone:
            rows.add(title, "first training step after the start", found["first_step"], "s", note)
        else:
            text += " (beside others)"
    say(text)


class _Child:
    """A process that prepares one way, reports that it is ready, and measures on request."""

    def __init__(self, way: str, setting: dict, alone: bool):
        self.way, self.complaint = way, "no message"
        words = common.command("speed", "--one", way, json.dumps(setting))
        self._errors = tempfile.TemporaryFile("w+")
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._errors, "text": True}
        # Beside others, torch compiles in the process itself: each would start a helper a core.
        environment = os.environ if alone else {**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": "1"}
        self._process = subprocess.Popen(words, env=environment, **pipes)

    def ready(self) -> None:
        self._line("ready")

    def measured(self) -> dict | None:
        """What came out; None if it failed, and `complaint` is its last line."""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write("go\n")
            self._process.stdin.close()
        line = self._line("{")
        if self._process.wait() or line is None:
            self._errors.seek(0)
            self.complaint = common.last_line(self._errors.read())
            return None
        return json.loads(line)

    def _line(self, begins: str) -> str | None:
        """Its next line that begins so; None if it ends before."""
        return next((line for line in self._process.stdout if line.startswith(begins)), None)


def _wait_for_the_word(out=sys.stdout) -> None:
    print("ready", file=out, flush=True)  # not the redirected one
    sys.stdin.readline()
