"""`newllm` as a process, with training replaced by tests/cli/fakes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from newllm_lib.runs import list_runs, lock_holder

FAKES = Path(__file__).with_name("fakes")


@pytest.fixture
def newllm(tmp_path):
    """Runs `newllm WORDS` in a folder of its own; `how` says how the fake training goes."""

    def environment(how: str, **more: str) -> dict:
        path = os.pathsep.join((str(FAKES), os.environ["PYTHONPATH"]))
        return {**os.environ, "PYTHONPATH": path, "FAKE_TRAINING": how, **more}

    def call(
        *words: str, how: str = "steps=3", timeout: float = 60, **more: str
    ) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "newllm_lib", *words],
            cwd=tmp_path,
            env=environment(how, **more),
            timeout=timeout,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )

    def begin(*words: str, how: str = "forever") -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-m", "newllm_lib", *words],
            cwd=tmp_path,
            env=environment(how),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            preexec_fn=lambda: signal.signal(
                signal.SIGINT, signal.SIG_DFL
            ),  # ignored where a shell runs the tests behind `&`
        )

    call.begin, call.folder = begin, tmp_path
    yield call
    for run in list_runs(tmp_path / "checkpoints"):
        if pid := lock_holder(run):
            os.kill(pid, signal.SIGKILL)
