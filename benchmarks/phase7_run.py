"""One run of a recipe as `newllm train` does it: its loss on text, its memory, and what saving and loading cost.

    python benchmarks/phase7_run.py --work checkpoints/phase7_run --out benchmarks/phase7_run.csv --picture docs/phase7_1.5b.png

The recipe (phase7_1.5b) trains on ChitChat for `--steps` steps. At step `--stop` it is interrupted, which saves; a second process
loads that and goes on to the end. Memory of the host is what the process holds beyond what it held before, files in the system's
cache not counted. Memory of the GPU is the most that was reserved before the first evaluation.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

GIB = 2**30


def host_bytes() -> int:
    """What this process holds of the host's memory, its pinned memory too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssShmem")))


@contextmanager
def watched(what: str):
    """Print how long this took, and the most that the process held meanwhile beyond what it held before."""
    before = most = host_bytes()
    ended, began = threading.Event(), time.monotonic()

    def watch():
        nonlocal most
        while not ended.wait(0.005):
            most = max(most, host_bytes())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        seconds = time.monotonic() - began
        ended.set()
        thread.join()
        say(what=what, seconds=round(seconds, 2), extra_gib=round((most - before) / GIB, 3))


def say(**found) -> None:
    print("MEASURED " + json.dumps(found), flush=True)


def train_part(recipe, stop: int | None) -> None:
    """Train in this process; with `stop`, interrupt it at that step as Ctrl-C does."""
    import torch

    from newllm_lib.errors import Interrupted
    from newllm_lib.training import run, train
    from newllm_lib.training.loop import TrainingLoop
    from newllm_lib.training.strategies import Autograd

    class Watched(TrainingLoop):
        before_evaluation = True

        @watched("save")
        def save(self):
            super().save()

        def evaluate(self):
            self.before_evaluation = False
            super().evaluate()

        def after_step(self, norm):
            super().after_step(norm)
            if self.before_evaluation and torch.cuda.is_available():
                say(what="reserved", step=self.step, gib=round(torch.cuda.max_memory_reserved() / GIB, 3))
            if stop is not None and self.step == stop:
                os.kill(os.getpid(), signal.SIGINT)

    Autograd.load_weights = watched("load weights")(Autograd.load_weights)
    Autograd.load_state = watched("load states")(Autograd.load_state)
    run.TrainingLoop = Watched
    try:
        train(recipe)
    except Interrupted as stopped:
        print(stopped, flush=True)


def in_a_process(arguments, part: str) -> list[dict]:
    """What a process of its own measured; its output is shown as it comes."""
    words = [sys.executable, "-u", __file__, "--part", part, "--recipe", arguments.recipe, "--work", arguments.work]
    words += ["--steps", str(arguments.steps), "--stop", str(arguments.stop), "--set", *arguments.set]
    found = []
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            if line.startswith("MEASURED "):
                found.append(json.loads(line.removeprefix("MEASURED ")))
    if process.returncode:
        raise SystemExit(f"The {part} part ended with {process.returncode}.")
    return found


def losses(work: str) -> list[dict]:
    rows = [json.loads(line) for line in (Path(work) / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "loss" in row]


def add_rows(arguments, measured: list[dict]) -> None:
    from newllm_lib.benchmarks.rows import Rows

    rows = Rows("phase7 run", "python benchmarks/" + shlex.join([Path(__file__).name, *sys.argv[1:]]))
    curve = losses(arguments.work)
    name, note = arguments.recipe, f"ChitChat, {arguments.steps} steps, stopped and continued at step {arguments.stop}"
    for which, row in (("first", curve[0]), ("last", curve[-1])):
        rows.add(name, f"training loss, {which} logged (step {row['step']})", row["loss"], "nats", note)
    fast = sorted(row["tokens_per_second"] for row in curve)
    rows.add(name, "training, median of the log's lines", fast[len(fast) // 2], "tokens/s", note)
    reserved = [m["gib"] for m in measured if m["what"] == "reserved"]
    if reserved:
        rows.add(name, "peak memory reserved, before the first evaluation", max(reserved), "GiB", note)
    for what in ("save", "load weights", "load states"):
        some = [m for m in measured if m["what"] == what]
        if some:
            rows.add(name, f"{what}, time", max(m["seconds"] for m in some), "s", note)
            rows.add(name, f"{what}, host memory beyond what was held", max(m["extra_gib"] for m in some), "GiB", note)
    rows.append_to(Path(arguments.out))


def draw(arguments) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    curve = losses(arguments.work)
    figure, axis = pyplot.subplots(figsize=(6, 4))
    axis.plot([row["step"] for row in curve], [row["loss"] for row in curve])
    axis.axvline(arguments.stop, color="0.5", linestyle=":", label="stopped, and continued by another process")
    axis.set(xlabel="steps of 16 x 1,024 tokens", ylabel="training loss, nats", title=f"{arguments.recipe} on ChitChat")
    axis.grid(alpha=0.3)
    axis.legend()
    figure.tight_layout()
    Path(arguments.picture).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.picture, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="phase7_1.5b")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--stop", type=int, default=200, help="interrupted at this step, which must be a logged one")
    parser.add_argument("--work", default="checkpoints/phase7_run", help="the run's folder")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="recipe keys")
    parser.add_argument("--out", help="append the rows to this CSV file")
    parser.add_argument("--picture", help="draw the loss there")
    parser.add_argument("--part", choices=("first", "second"), help="internal: this part, in this process")
    arguments = parser.parse_args()
    if arguments.part:
        from newllm_lib.recipe import load_recipe

        keys = {
            "data": "demo", "loss_on": "everything", "max_steps": arguments.steps, "epochs": 100, "logging_steps": 5,
            "warmup_steps": 30, "evals_per_epoch": 1, "save_minutes": 1000, "save_steps": 100_000, "sample_tokens": 0,
            "output_dir": arguments.work,
        }  # fmt: skip
        changes = dict(pair.split("=", 1) for pair in arguments.set)
        train_part(load_recipe(arguments.recipe, {**keys, **changes}), arguments.stop if arguments.part == "first" else None)
        return
    measured = in_a_process(arguments, "first") + in_a_process(arguments, "second")
    if arguments.out:
        add_rows(arguments, measured)
    if arguments.picture:
        draw(arguments)


if __name__ == "__main__":
    main()
