"""What tests of whole trainings share: a little text, a tiny recipe, a run stopped at a step, the rows two
runs must share.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
from pathlib import Path

import pytest

from newllm_lib.errors import Interrupted
from newllm_lib.recipe import load_recipe


def write_text(folder: Path, documents: int = 60) -> None:
    words = random.Random(0)
    vocabulary = ["the", "cat", "sees", "a", "red", "house", "and", "sleeps", "near", "water"]
    text = "\n\n".join(
        " ".join(words.choices(vocabulary, k=words.randint(5, 60))) + "." for _ in range(documents)
    )
    (folder / "text").mkdir()
    (folder / "text" / "train.txt").write_text(text)


def write_rows(folder: Path, documents: int = 100) -> None:
    """The same in records, which can be streamed."""
    write_text(folder, documents)
    path = folder / "text" / "train.txt"
    rows = [json.dumps({"text": text}) for text in path.read_text().split("\n\n")]
    path.with_suffix(".jsonl").write_text("\n".join(rows))
    path.unlink()


def recipe(folder: Path, **changes):
    """The demo's, tiny, on the text that `write_text` wrote into `folder`."""
    return load_recipe(
        "demo",
        {
            "sized_for": "cpu",
            "data_dir": str(folder / "text"),
            "vocab_size": 300,
            "max_seq_length": 16,
            "batch_size": 8,
            "hidden_size": 16,
            "context_dim": 16,
            "mlp_size": 16,
            "num_layers": 1,
            "num_heads": 2,
            "epochs": 2,
            "evals_per_epoch": 1,
            "logging_steps": 5,
            "output_dir": str(folder / "run"),
            **changes,
        },
    )


def rows(run) -> list[dict]:
    return [json.loads(line) for line in run.metrics_path.read_text().splitlines()]


def curve(run) -> list[dict]:
    """The rows without what no two runs share."""
    return [{k: v for k, v in row.items() if k not in ("time", "tokens_per_second")} for row in rows(run)]


def losses(run) -> list[float]:
    return [row["loss"] for row in rows(run) if "loss" in row]


@contextlib.contextmanager
def stopped_after(step: int):
    """The training inside is sent SIGTERM in the step after `step`, which it finishes and saves; it must say
    so.
    """
    from newllm_lib.training.loop import TrainingLoop

    real = TrainingLoop.train_step

    def interrupted(self, batches):
        if self.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, batches)

    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(Interrupted, match=f"Stopped at step {step + 1} .* saved"),
    ):
        patch.setattr(TrainingLoop, "train_step", interrupted)
        yield
