"""What tests of whole trainings share: a little text, a run that is stopped at a step, and the rows that two runs must share."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
from pathlib import Path

import pytest

from newllm_lib.errors import Interrupted


def write_text(folder: Path, documents: int = 60) -> None:
    words = random.Random(0)
    vocabulary = ["the", "cat", "sees", "a", "red", "house", "and", "sleeps", "near", "water"]
    text = "\n\n".join(" ".join(words.choices(vocabulary, k=words.randint(5, 60))) + "." for _ in range(documents))
    (folder / "text").mkdir()
    (folder / "text" / "train.txt").write_text(text)


def write_rows(folder: Path, documents: int = 100) -> None:
    """The same in records, which can be streamed."""
    write_text(folder, documents)
    path = folder / "text" / "train.txt"
    rows = [json.dumps({"text": text}) for text in path.read_text().split("\n\n")]
    path.with_suffix(".jsonl").write_text("\n".join(rows))
    path.unlink()


def rows(run) -> list[dict]:
    return [json.loads(line) for line in run.metrics_path.read_text().splitlines()]


def curve(run) -> list[dict]:
    """The rows without what no two runs share."""
    return [{k: v for k, v in row.items() if k not in ("time", "tokens_per_second")} for row in rows(run)]


def losses(run) -> list[float]:
    return [row["loss"] for row in rows(run) if "loss" in row]


@contextlib.contextmanager
def stopped_after(step: int):
    """The training inside is sent SIGTERM in the step after `step`, which it finishes and saves; it must say so."""
    from newllm_lib.training.trainer import RunTrainer

    real = RunTrainer.training_step

    def interrupted(self, *args, **kwargs):
        if self.state.global_step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted, match=f"Stopped at step {step + 1} .* saved"):
        patch.setattr(RunTrainer, "training_step", interrupted)
        yield
