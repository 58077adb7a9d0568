"""The scaling benchmark at a size for any machine: every model alone and by two processes, with the same
losses.
"""

import csv
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_each_model_is_measured_alone_and_together(tmp_path):
    out = tmp_path / "results.csv"
    models = ("phase7_100m_replayed", "phase7_1.5b", "new_llm")
    command = [
        sys.executable,
        "-m",
        "newllm_lib",
        "bench",
        "scaling",
        "--tiny",
        "--gpus",
        "2",
        "--out",
        str(out),
        "--models",
    ]
    done = subprocess.run([*command, *models], cwd=tmp_path, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = {(row["model"], row["metric"]): row for row in csv.DictReader(out.open())}
    for model in models:
        one, two = (rows[model, f"training, {where}"] for where in ("1 GPU", "2 GPUs"))
        assert one["note"] == two["note"] and float(one["value"]) > 0  # the losses, to four digits
        ratio = float(two["value"]) / float(one["value"])
        assert float(rows[model, "2 GPUs against 1"]["value"]) == pytest.approx(ratio, rel=1e-3)
