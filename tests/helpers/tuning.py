"""Dialogue training from a pretrained model, small."""

import random
import shutil

import pytest

from newllm_lib.recipe import load_recipe

TINY = {
    "sized_for": "cpu",
    "vocab_size": 300,
    "hidden_size": 16,
    "context_dim": 16,
    "mlp_size": 16,
    "num_layers": 1,
    "num_heads": 2,
    "max_seq_length": 16,
    "batch_size": 8,
    "epochs": 1,
    "logging_steps": 5,
}


SHORT = {"batch_size": "8", "max_steps": "6", "logging_steps": "3", "epochs": "2", "evals_per_epoch": "2"}


def write_talks(folder):
    words = random.Random(1)
    vocabulary = ["hello", "how", "are", "you", "the", "cat", "is", "red", "water", "fine"]
    turn = lambda: " ".join(words.choices(vocabulary, k=words.randint(2, 9))) + " . __eou__"  # noqa: E731
    (folder / "talks").mkdir()
    lines = (" ".join(turn() for _ in range(words.randint(2, 6))) for _ in range(80))
    (folder / "talks" / "train.txt").write_text("\n".join(lines) + "\n")


@pytest.fixture
def folder(pretrained, tmp_path, monkeypatch):
    shutil.copytree(pretrained, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def tuned(folder, **changes):
    """DailyDialog's recipe on the small talks, as it is asked for on a command line."""
    return load_recipe(
        "dailydialog", {"data_dir": str(folder / "talks"), "sized_for": "cpu", **SHORT, **changes}
    )
