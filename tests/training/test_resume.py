"""A run killed at any moment and started again gives, step by step, the numbers of the run that was never
killed.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.small_runs import write_rows, write_text

DRIVER = Path(__file__).with_name("kill_driver.py")


def killed(folder: Path, kills: int, seed: int, *how: str) -> dict:
    (write_rows if how else write_text)(folder)
    process = subprocess.run(
        [sys.executable, str(DRIVER), str(folder), str(kills), str(seed), *how],
        capture_output=True,
        text=True,
        timeout=900,
    )
    logs = "\n".join(p.read_text()[-2000:] for p in folder.glob("*.out"))
    assert process.returncode == 0, process.stderr[-2000:] + logs
    return json.loads(process.stdout.splitlines()[-1])


def check(result: dict, kills: int) -> None:
    assert result["kills"] == kills
    assert len(result["whole"]) > 8
    assert (
        result["killed"] == result["whole"]
    )  # steps, losses, rates, norms, evaluations, marks: to the last bit


def test_a_run_killed_three_times_equals_the_undisturbed_one(tmp_path):
    check(killed(tmp_path, 3, seed=1), 3)


def test_a_run_on_data_prepared_meanwhile_equals_the_undisturbed_one(tmp_path):
    """With caches of their own, so that the preparation is killed with the run."""
    check(killed(tmp_path, 2, 1, "streamed"), 2)
    packed = list(tmp_path.glob("cache-killed/streams/*/*/*.bin"))
    assert len(packed) > 6 and all(
        path.read_bytes()
        == (tmp_path / "cache-whole" / path.relative_to(tmp_path / "cache-killed")).read_bytes()
        for path in packed
    )


@pytest.mark.slow
def test_a_streamed_run_killed_twenty_times_equals_the_undisturbed_one(tmp_path):
    check(killed(tmp_path, 20, 2, "streamed"), 20)


@pytest.mark.slow
def test_a_run_killed_twenty_times_equals_the_undisturbed_one(tmp_path):
    check(killed(tmp_path, 20, seed=2), 20)
