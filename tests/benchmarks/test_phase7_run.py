"""The benchmark of one run: stopped, continued by another process, its saves and loads measured, its loss drawn."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.small_runs import write_text

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "phase7_run.py"


@pytest.mark.slow
def test_a_run_is_stopped_continued_measured_and_drawn(tmp_path):
    write_text(tmp_path)
    out, picture = tmp_path / "rows.csv", tmp_path / "loss.png"
    words = ["--recipe", "phase7_test", "--steps", "10", "--stop", "5", "--work", str(tmp_path / "run"), "--out", str(out)]
    keys = [f"data_dir={tmp_path / 'text'}", "vocab_size=300", "max_seq_length=32", "logging_steps=5"]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *words, "--picture", str(picture), "--set", *keys],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Stopped at step 6" in done.stdout and "Continuing from checkpoint-6" in done.stdout
    with out.open(newline="") as file:
        found = {row["metric"]: float(row["value"]) for row in csv.DictReader(file)}
    assert found["training loss, last logged (step 10)"] < found["training loss, first logged (step 1)"]
    assert {"save, time", "load weights, time", "load states, host memory beyond what was held"} <= set(found)
    assert picture.read_bytes().startswith(b"\x89PNG")
