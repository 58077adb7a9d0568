"""How long a user waits for the first training step: `newllm train demo` from its start to its first logged loss.

    python benchmarks/bench_first_step.py [--cold_disk] [--out benchmarks/results.csv]

Twice, each in a process of its own with empty caches for compiled kernels (TRITON_CACHE_DIR, TORCHINDUCTOR_CACHE_DIR): first
with no data prepared, so that the tokenizer is trained and the dialogues are packed in that time, then with the data there. The
setting is that of `newllm bench speed`: 512 x 128 tokens, vocabulary 8,192. --cold_disk lets the system forget the packages'
files before.
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

from newllm_lib.benchmarks.rows import Rows
from newllm_lib.importing import PACKAGES
from newllm_lib.runs import Run

KEYS = {
    "vocab_size": 8192, "max_seq_length": 128, "batch_size": 512, "hidden_size": 256, "context_dim": 256, "num_layers": 4,
    "mlp_size": 1024, "optimizer": "adamw", "learning_rate": 0.001, "dropout": 0.0, "epochs": 1000, "max_steps": 1000,
}  # fmt: skip


def seconds_to_the_first_loss(folder: Path, cache: Path, extra: list[str], limit: float) -> float | None:
    """None: it did not come within the limit."""
    run = Run(folder / "run")
    command = [sys.executable, "-m", "newllm_lib", "train", "demo", "--output_dir", str(run.path)]
    command += [word for key, value in KEYS.items() for word in (f"--{key}", str(value))] + extra
    environment = {**os.environ, "NEWLLM_CACHE": str(cache), "TRITON_CACHE_DIR": str(folder / "triton"),
                   "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")}  # fmt: skip
    began = time.time()
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            while time.time() - began < limit and process.poll() is None:
                rows = [row for row in run.metrics() if "loss" in row] if run.metrics_path.exists() else []
                if rows:
                    return rows[0]["time"] - began
                time.sleep(0.02)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # with what compiles for it
            process.wait()
    print((folder / "log").read_text()[-2000:], file=sys.stderr)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cold_disk", action="store_true")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds to wait for a loss")
    parser.add_argument("--out", default="benchmarks/results.csv")
    arguments, extra = parser.parse_known_args()
    disk = ", the disk cold" if arguments.cold_disk else ""
    rows = Rows("first step", "python benchmarks/bench_first_step.py" + (" --cold_disk" if arguments.cold_disk else ""))
    with tempfile.TemporaryDirectory() as cache:
        for state in ("nothing prepared", "data prepared"):
            if arguments.cold_disk:
                forget_packages()
            with tempfile.TemporaryDirectory() as folder:
                found = seconds_to_the_first_loss(Path(folder), Path(cache), extra, arguments.limit)
            print(f"{state}{disk}: " + ("no loss" if found is None else f"first loss after {found:.1f} s"), flush=True)
            if found is not None:
                note = "512 x 128, vocabulary 8,192; no compiled kernel in any cache" + disk
                rows.add("New-LLM, newllm train demo", f"first loss after the start, {state}", found, "s", note)
    rows.append_to(Path(arguments.out))


if __name__ == "__main__":
    main()
