"""Colab takes the machine away in the middle of a training: in a new clone, with only Drive left, the
notebook goes on.

Each machine is a clone of its own with a cache of its own; losing it kills every process that began there and
deletes both.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from newllm_lib.runs import Run, checkpoint_step, is_complete, is_finished
from tests.helpers.notebooks import TINY
from tests.helpers.working_tree import copy_working_tree

pytest.importorskip("nbclient")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]
COLAB = Path(__file__).with_name("colab")  # its own package, faked
NAME = "01_wikitext_pretraining"
STEPS = 300
SETTINGS = {**TINY[NAME], "max_steps": STEPS, "epochs": 50.0, "save_steps": 20}
RUN_ALL = """
import sys, nbclient, nbformat
notebook = nbformat.read(sys.argv[1], as_version=4)
where = {"metadata": {"path": sys.argv[2]}}
nbclient.NotebookClient(notebook, timeout=900, kernel_name="python3", resources=where).execute()
nbformat.write(notebook, sys.argv[1])
"""


class Machine:
    """A fresh clone whose notebook runs from the top, as on Colab with this Drive."""

    def __init__(self, folder: Path, drive: Path):
        self.folder, self.drive = folder, drive
        self.clone = folder / "new-llm"
        self.clone.mkdir(parents=True)
        copy_working_tree(self.clone)
        self.notebook = self.clone / "notebooks" / f"{NAME}.ipynb"
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join((str(COLAB), str(self.clone), *_packages())),
            "FAKE_DRIVE": str(drive),
            "COLAB_RELEASE_TAG": "release-colab",
            "NEWLLM_CACHE": str(folder / "cache"),
            "MACHINE": str(folder),
            "NEWLLM_NOTEBOOK_OVERRIDES": json.dumps(SETTINGS),
        }
        with open(folder / "out", "w") as out:
            words = [sys.executable, "-c", RUN_ALL, str(self.notebook), str(self.notebook.parent)]
            self.process = subprocess.Popen(
                words, env=environment, stdout=out, stderr=out, start_new_session=True
            )

    def run(self) -> Run:
        return next(
            (Run(p) for p in (self.clone / "checkpoints").glob("new_llm_demo*") if p.is_dir()), Run("nowhere")
        )

    def copy(self) -> Run:
        return Run(self.drive / "MyDrive" / "new-llm" / self.run().name)

    def until(self, condition, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None and time.monotonic() < end, (self.folder / "out").read_text()[
                -3000:
            ]
            time.sleep(0.05)

    def ended(self) -> int:
        code = self.process.wait(1200)
        assert code == 0, (self.folder / "out").read_text()[-3000:]
        return code

    def lose(self) -> None:
        """SIGKILL to kernel, training, copier and whatever else began here; then the disk is gone."""
        while found := self._processes():
            for pid in found:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)
        self.process.wait()
        shutil.rmtree(self.folder)

    def _processes(self) -> list[int]:
        mark, found = f"MACHINE={self.folder}".encode(), []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:  # it ended, or is somebody else's
                continue
        return found


def _packages() -> list[str]:
    """What PYTHONPATH holds besides this clone."""
    root = str(Path(__file__).parents[2])
    return [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path != root]


def curve(run: Run) -> list[dict]:
    return [{k: v for k, v in row.items() if k not in ("time", "tokens_per_second")} for row in run.metrics()]


def test_with_only_drive_left_it_goes_on_at_the_next_step_with_the_same_curve(tmp_path):
    pytest.importorskip("chitchat_dataset", reason="needs the demo data: pip install chitchat-dataset")
    lost = Machine(tmp_path / "first", tmp_path / "drive")
    lost.until(lambda: (newest := lost.copy().latest_checkpoint()) and checkpoint_step(newest) >= 40, 600)
    name = lost.run().name
    lost.lose()
    copy = Run(tmp_path / "drive" / "MyDrive" / "new-llm" / name)
    saved = checkpoint_step(copy.latest_checkpoint())
    assert 40 <= saved < STEPS

    second = Machine(tmp_path / "second", tmp_path / "drive")
    second.ended()
    log = second.run().log.read_text()
    assert (
        "further than here: it is brought back and continued" in log
        and f"Continuing from checkpoint-{saved}\n" in log
    )
    assert is_finished(second.run()) and second.run().name == name

    alone = Machine(tmp_path / "alone", tmp_path / "another drive")
    alone.ended()
    rows = curve(alone.run())
    assert rows[-1]["step"] == STEPS and curve(second.run()) == rows  # to the last bit
    assert "downloaded" in second.notebook.read_text() and is_complete(copy.best)
    assert curve(copy) == rows  # the copy was brought up to date as well
