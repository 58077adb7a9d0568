"""What each way to save memory costs in learning: one model, one text, the same tokens in the same order, several optimizers.

    python -m newllm_lib.benchmarks.lowmem_quality [--steps 1000] [--parallel 3] [--rows "AdamW float32,Adafactor 4-bit"]
    python -m newllm_lib.benchmarks.lowmem_quality --picture docs/lowmem_quality.png       (trains, then draws)

Each row is a training by `newllm_lib.training.train` on ChitChat (New-LLM of 104M parameters, batches of 16 x 128 tokens), and
its validation loss at the end beside that of AdamW on float32 weights. `--small` takes a model of 0.9M parameters, for any
machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

LIGHT = {"weights_dtype": "bf16", "step_in_backward": True, "gradient_checkpointing": "on"}
REFERENCE = "AdamW float32"
ROWS = {
    REFERENCE: {"optimizer": "adamw"},
    "Adafactor 8-bit": {**LIGHT, "optimizer": "adafactor", "momentum_bits": 8},
    "Adafactor 4-bit": {**LIGHT, "optimizer": "adafactor", "momentum_bits": 4},
    "Adafactor without momentum": {**LIGHT, "optimizer": "adafactor", "momentum_bits": 0},
    "Muon float32": {"optimizer": "muon"},
    "Muon 4-bit": {**LIGHT, "optimizer": "muon", "momentum_bits": 4},
    "torchao AdamW 8-bit": {**LIGHT, "optimizer": "adamw8bit"},
    "torchao AdamW 4-bit": {**LIGHT, "optimizer": "adamw4bit"},
    "Adafactor 4-bit, nearest rounding": {**LIGHT, "optimizer": "adafactor", "momentum_bits": 4},
}
SIZES = {"hidden_size": 1024, "context_dim": 1024, "mlp_size": 4096, "num_layers": 8}
SMALL = {"hidden_size": 128, "context_dim": 128, "mlp_size": 384, "num_layers": 3}


def folder_of(row: str, folder: str) -> Path:
    return Path(folder) / row.replace(" ", "_").replace(",", "")


def recipe(row: str, arguments):
    from newllm_lib.recipe import load_recipe

    keys = {
        "sized_for": "h100", "batch_size": 16, "max_seq_length": 128, "max_steps": arguments.steps, "epochs": 100, "dropout": 0.0,
        "learning_rate": arguments.learning_rate, "learning_rate_batch_size": 16, "warmup_steps": 0.1, "schedule": "cosine",
        "compile": "replay", "carry_state": False, "logging_steps": 50, "save_minutes": 1000, "micro_batch_size": 16,
        "force": True, "evals_per_epoch": 1, "output_dir": str(folder_of(row, arguments.folder)),
    }  # fmt: skip
    return load_recipe("demo", {**keys, **(SMALL if arguments.small else SIZES), **ROWS[row]})


def nearest() -> None:
    """Round to the nearest value from now on, on any device: what stochastic rounding is there to avoid."""
    import torch

    from newllm_lib.ops import rounded_step
    from newllm_lib.ops.rounded_step import reference
    from newllm_lib.training.lowmem import adafactor

    reference.stochastic_round = lambda x, generator=None: x.to(torch.bfloat16)
    rounded_step.rounded_step_ = adafactor.rounded_step_ = reference.rounded_step_


def train_one(row: str, arguments) -> dict:
    from newllm_lib.training import train

    if "nearest" in row:
        nearest()
    began = time.monotonic()
    run = train(recipe(row, arguments))
    rows = list(run.metrics())
    last = [r for r in rows if "eval_loss" in r][-1]
    losses = [r["loss"] for r in rows if "loss" in r]
    return {"row": row, "validation_loss": last["eval_loss"], "bits_per_byte": last["eval_bits_per_byte"],
            "training_loss": sum(losses[-4:]) / 4, "seconds": round(time.monotonic() - began, 1)}  # fmt: skip


def table(found: list[dict]) -> str:
    lines = ["| optimizer | validation loss | against AdamW float32 | bits per byte |", "|---|---:|---:|---:|"]
    base = next((r["validation_loss"] for r in found if r["row"] == REFERENCE), None)
    for r in found:
        against = f"{100 * (r['validation_loss'] / base - 1):+.2f} %" if base else "–"
        lines.append(f"| {r['row']} | {r['validation_loss']:.4f} | {against} | {r['bits_per_byte']:.4f} |")
    return "\n".join(lines)


def draw(found: list[dict], folder: str, path: Path) -> None:
    """The training losses over the steps, and how far each lies above the reference's."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (losses, gaps) = pyplot.subplots(1, 2, figsize=(11, 4.2))
    curves = {}
    for row in found:
        lines = (folder_of(row["row"], folder) / "metrics.jsonl").read_text().splitlines()
        curves[row["row"]] = {r["step"]: r["loss"] for r in map(json.loads, lines) if "loss" in r}
    base = curves.get(REFERENCE, {})
    for name, curve in curves.items():
        losses.plot(list(curve), list(curve.values()), label=name)
        both = [step for step in curve if step in base]
        gaps.plot(both, [100 * (curve[step] / base[step] - 1) for step in both])
    losses.set(xlabel="steps of 16 x 128 tokens", ylabel="training loss, nats")
    gaps.set(xlabel="steps", ylabel=f"above {REFERENCE}, %", ylim=(-8, 8))
    losses.legend(fontsize=7)
    for axis in (losses, gaps):
        axis.grid(alpha=0.3)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", default=",".join(r.replace(",", "") for r in ROWS), help="; ".join(ROWS))
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--parallel", type=int, default=1, help="trainings at a time")
    parser.add_argument("--folder", default="checkpoints/lowmem_quality")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--picture", type=Path, help="draw the losses there")
    parser.add_argument("--one", help="internal: this row, in this process")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(train_one(arguments.one, arguments)))
        return
    from newllm_lib.data import prepare

    rows = [word.strip() for word in arguments.rows.split(",")]
    rows = [next(r for r in ROWS if r.replace(",", "") == row) for row in rows]
    prepare(recipe(rows[0], arguments)).close()  # once, not by each process
    words = [f"--{k}={getattr(arguments, k)}" for k in ("steps", "learning_rate", "folder")]
    words += ["--small"] if arguments.small else []

    def run(row: str) -> dict | None:
        command = [sys.executable, "-m", "newllm_lib.benchmarks.lowmem_quality", "--one", row, *words]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        print(done.stdout.splitlines()[-1] if not done.returncode else f"{row} failed: {done.stderr[-1500:]}", flush=True)
        return None if done.returncode else json.loads(done.stdout.splitlines()[-1])

    with ThreadPoolExecutor(arguments.parallel) as pool:
        found = [r for r in pool.map(run, rows) if r]
    print(table(found))
    if arguments.picture:
        draw(found, arguments.folder, arguments.picture)


if __name__ == "__main__":
    main()
