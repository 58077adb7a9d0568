"""How long the first training step takes: `newllm train demo` from its start to its first logged loss.

    newllm bench first_step [--cold_disk]

Twice, each in a process of its own with empty caches for compiled kernels (TRITON_CACHE_DIR,
TORCHINDUCTOR_CACHE_DIR): first with no data prepared, so that the tokenizer is trained and the dialogues are
packed in that time, then with the data there. The setting is that of `newllm bench speed`: 512 x 128 tokens,
vocabulary 8,192. --cold_disk lets the system forget the packages' files before.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import common
from benchmarks.common import Rows
from newllm_lib.console import say
from newllm_lib.preload import PACKAGES
from newllm_lib.runs import Run

KEYS = {
    "vocab_size": 8192,
    "max_seq_length": 128,
    "batch_size": 512,
    "hidden_size": 256,
    "context_dim": 256,
    "num_layers": 4,
    "mlp_size": 1024,
    "optimizer": "adamw",
    "learning_rate": 0.001,
    "dropout": 0.0,
    "epochs": 1000,
    "max_steps": 1000,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_out(parser)
    parser.add_argument("--cold_disk", action="store_true", help="let the system forget the packages' files")
    parser.add_argument(
        "--limit", type=float, default=300.0, help="seconds to wait for a loss (default: 300)"
    )
    common.add_set(parser)


def main(arguments: argparse.Namespace) -> dict | None:
    disk = ", the disk cold" if arguments.cold_disk else ""
    keys, rows = {**KEYS, **common.changes(arguments.set)}, Rows("first step")
    note = "512 x 128, vocabulary 8,192; no compiled kernel in any cache" + disk
    note += f"; {' '.join(arguments.set)}" if arguments.set else ""
    with tempfile.TemporaryDirectory() as cache:
        for state in ("nothing prepared", "data prepared"):
            if arguments.cold_disk:
                forget_packages()
            with tempfile.TemporaryDirectory() as folder:
                found = seconds_to_the_first_loss(Path(folder), Path(cache), keys, arguments.limit)
            say(f"{state}{disk}: " + ("no loss" if found is None else f"first loss after {found:.1f} s"))
            if found is not None:
                metric = f"first loss after the start, {state}"
                rows.add("New-LLM, newllm train demo", metric, found, "s", note)
    return common.record(rows, arguments)


def seconds_to_the_first_loss(folder: Path, cache: Path, keys: dict, limit: float) -> float | None:
    """None: it did not come within the limit."""
    run = Run(folder / "run")
    words = [sys.executable, "-m", "newllm_lib", "train", "demo", "--output_dir", str(run.path)]
    words += [word for key, value in keys.items() for word in (f"--{key}", str(value))]
    caches = {"TRITON_CACHE_DIR": str(folder / "triton"), "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")}
    environment = {**os.environ, "NEWLLM_CACHE": str(cache), **caches}
    began = time.time()
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(
            words, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            while time.time() - began < limit and process.poll() is None:
                if rows := common.losses_of(run):
                    return rows[0]["time"] - began
                time.sleep(0.02)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # with what compiles for it
            process.wait()
    say((folder / "log").read_text()[-2000:])
    return None


def forget_packages() -> None:
    """Let the system forget what it has read of the packages that training imports (Linux)."""
    for name in (*PACKAGES, "pyarrow", "tokenizers", "jinja2", "mpmath"):
        spec = importlib.util.find_spec(name)
        for place in (spec.submodule_search_locations or ()) if spec else ():
            for file in Path(place).rglob("*"):
                if file.is_file():
                    number = os.open(file, os.O_RDONLY)
                    os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
                    os.close(number)
