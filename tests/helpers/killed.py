"""A training that is killed again and again."""

import json
import subprocess
import sys
from pathlib import Path

from tests.helpers.small_runs import write_rows, write_text

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
