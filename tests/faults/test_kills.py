"""SIGKILL at any moment of training, saving, mirroring and restoring: the run goes on as if nothing had
happened.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.fault_driver import SAVE_EVERY, STEPS
from tests.helpers.killed import killed as killed_without_a_mirror
from tests.helpers.small_runs import write_text

DRIVER = Path(__file__).parents[1] / "helpers" / "fault_driver.py"


def killed(folder: Path, kills: int, seed: int, kind: str, timeout: float = 300) -> dict:
    words = [sys.executable, str(DRIVER), str(folder), str(kills), str(seed), kind]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=timeout)
    out = (folder / "out").read_text()[-2000:] if (folder / "out").exists() else ""
    assert ended.returncode == 0, ended.stderr[-2000:] + out
    result = json.loads(ended.stdout.splitlines()[-1])
    assert result["kills"] + result["mirrors killed"] >= kills and result["copy"] == result["rows"]
    return result


def check_fake(result: dict) -> None:
    assert [row["step"] for row in result["rows"]] == list(range(1, STEPS + 1))  # none lost, none twice
    repeated = [life["repeats"] for life in result["lives"] if not life["lost"]]
    assert repeated and max(repeated) <= SAVE_EVERY  # of work at most one interval between two saves


def test_killed_and_lost_with_a_mirror(tmp_path):
    result = killed(tmp_path, 12, 3, "fake")
    check_fake(result)
    assert result["machines lost"] >= 1


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_hundred_kills(tmp_path):
    result = killed(tmp_path, 200, 4, "fake", timeout=1800)
    check_fake(result)
    assert result["machines lost"] > 20 and result["mirrors killed"] > 20


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_real_training_killed_and_lost_has_the_curve_of_the_undisturbed_one(tmp_path):
    """40 kills of a real training with a mirror, against the same training left alone."""
    (tmp_path / "alone").mkdir()
    alone = killed_without_a_mirror(tmp_path / "alone", 0, 0)["whole"]
    write_text(tmp_path)
    rows = killed(tmp_path, 40, 5, "real", timeout=1800)["rows"]
    assert [{k: v for k, v in row.items() if k not in ("time", "tokens_per_second")} for row in rows] == alone
