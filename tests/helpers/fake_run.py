"""A run folder with a metrics.jsonl as training writes it, for tests of what reads it."""

from __future__ import annotations

import json
import math
from pathlib import Path

from newllm_lib.runs import Run, write_status

STEPS_PER_EPOCH = 100


def rows(epochs: int = 3, level: float = 3.0, pace: float = 0.05) -> list[dict]:
    """Logged steps every 20 and an evaluation each epoch; `pace` is seconds a step."""
    found = []
    for step in range(20, epochs * STEPS_PER_EPOCH + 1, 20):
        loss = level * (1 + math.exp(-step / 100))
        found.append(
            {
                "step": step,
                "epoch": step / STEPS_PER_EPOCH,
                "loss": loss,
                "learning_rate": 1e-3,
                "grad_norm": 0.5,
                "tokens_per_second": 40_000.0,
                "time": 1e9 + step * pace,
            }
        )
        if step % STEPS_PER_EPOCH == 0:
            found.append(
                {
                    "step": step,
                    "epoch": step / STEPS_PER_EPOCH,
                    "eval_loss": loss + 0.1,
                    "eval_bits_per_byte": loss / 2,
                    "best": True,
                    "time": 1e9 + step * pace,
                }
            )
    return found


def append(run: Run, new: list[dict]) -> None:
    run.path.mkdir(parents=True, exist_ok=True)
    with open(run.metrics_path, "a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in new)


def finished(folder: Path, **options) -> Run:
    """A run that is done."""
    run = Run(folder)
    append(run, rows(**options))
    write_status(run, state="done", step=300, total_steps=300, message="finished")
    return run
