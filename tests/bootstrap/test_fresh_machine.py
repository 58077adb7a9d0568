"""The real thing on a fresh machine: an empty home, a fresh clone, a fresh environment. Minutes, and the
network.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.helpers.working_tree import copy_working_tree, git

TINY = (
    "--sized_for cpu --max_steps 4 --max_samples 200 --vocab_size 400 --num_layers 1 --hidden_size 16 "
    "--context_dim 16 --mlp_size 16 --batch_size 4 --max_seq_length 32"
).split()


@pytest.fixture(scope="module")
def fresh(tmp_path_factory) -> tuple[Path, dict]:
    """A clone of this working tree, and the environment of a user who has nothing yet."""
    folder = tmp_path_factory.mktemp("fresh")
    (folder / "home").mkdir()
    clone = folder / "new-llm"
    copy_working_tree(clone)
    git(clone, "init", "--quiet")
    own = ("HF_", "NEWLLM_", "PYTHONPATH", "VIRTUAL_ENV", "PYTEST_")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(own)}
    return clone, {**environment, "HOME": str(folder / "home")}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_one_line_from_nothing_to_the_comparison(fresh):
    clone, environment = fresh
    job = ["bash", "colab_bootstrap.sh", "demo", "--foreground", *TINY]
    done = subprocess.run(job, cwd=clone, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for expected in ("bits per byte", "unigram", "bigram", "Next: .venv/bin/newllm chat"):
        assert expected in done.stdout
    again = subprocess.run(
        ["make", "--dry-run", "test"], cwd=clone, env=environment, capture_output=True, text=True
    )
    assert again.returncode == 0 and "colab_bootstrap.sh --setup-only demo,dev" in again.stdout


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_with_everything_there_the_first_loss_comes_within_a_minute(fresh):
    clone, environment = fresh
    made = ["bash", "colab_bootstrap.sh", "--setup-only", "demo"]  # at once where the test above has run
    assert subprocess.run(made, cwd=clone, env=environment, capture_output=True).returncode == 0
    long = ["--run_name", "second", "--max_steps", "1000000", "--epochs", "1000000"]
    job = ["bash", "colab_bootstrap.sh", "wikitext", "--data", "demo", *TINY, *long]
    done = subprocess.run(job, cwd=clone, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "First loss" in done.stdout
    stop = [".venv/bin/newllm", "runs", "stop", "second"]
    stopped = subprocess.run(stop, cwd=clone, env=environment, capture_output=True, text=True, timeout=60)
    assert stopped.returncode == 0 and "second: interrupted" in stopped.stdout, (
        stopped.stdout + stopped.stderr
    )
