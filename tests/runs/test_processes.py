"""Our other processes never run a file of the folder that they are started in."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
import yaml  # noqa: F401  (here, not in the hostile folder)

from newllm_lib.colab.forms import Settings
from newllm_lib.runs import Run, RunLock, mirror_status, start_background, start_mirror, wait_for_mirror
from newllm_lib.runs.processes import command_of, environment_of
from tests.helpers.fake_run import finished

NAMES = ("calendar", "random", "runpy", "json", "os", "sitecustomize", "tempfile", "yaml", "torch", "numpy")


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    """A current folder full of programs with the names of modules; Python has it on its path, as with -m."""
    here = tmp_path / "mine"
    here.mkdir()
    for name in NAMES:
        (here / f"{name}.py").write_text(f"open({str(tmp_path / 'was_run')!r}, 'a').write(__name__)\n1 / 0\n")
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "path", ["", str(here), *sys.path])
    monkeypatch.setenv("PYTHONPATH", os.pathsep + os.environ["PYTHONPATH"])
    yield here
    assert not (tmp_path / "was_run").exists()


def test_the_command_itself_and_what_the_forms_and_launchers_start(hostile):
    commands = (
        command_of("newllm_lib.__main__", "recipes", name="run"),
        [*Settings("demo", {}).command(), "--no-such-flag"],
        command_of("newllm_lib.training.distributed.worker", "no.yaml", "new"),
        command_of("newllm_lib.training.precompile_process", "no such recipe", "{}"),
    )
    for words, code, says in zip(
        commands, (0, 2, 2, 1), ("demo", "no-such-flag", "no.yaml", "no such recipe"), strict=True
    ):
        done = subprocess.run(words, capture_output=True, text=True, env=environment_of(), timeout=120)
        said = done.stdout + done.stderr
        assert done.returncode == code and (says in said or says == "no.yaml"), said


def test_a_run_in_the_background_and_its_mirror(hostile, tmp_path):
    run = finished(tmp_path / "runs" / "a")
    (tmp_path / "copies").mkdir()
    with RunLock(run):
        since = start_mirror(run, tmp_path / "copies")
    assert wait_for_mirror(run, print, since, timeout=60)["state"] == "done"
    assert mirror_status(run)["state"] == "done" and (tmp_path / "copies" / "a" / "metrics.jsonl").is_file()
    other = Run(tmp_path / "runs" / "b")
    start_background(command_of("newllm_lib.__main__", "recipes", name="run"), other)
    end = time.monotonic() + 60
    while "Next:" not in (other.log.read_text() if other.log.exists() else ""):
        assert time.monotonic() < end, other.log.read_text()
        time.sleep(0.05)
