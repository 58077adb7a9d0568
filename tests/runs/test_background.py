"""Runs as processes of their own: started, followed, stopped; with a training that trains nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from newllm_lib.errors import NewLLMError
from newllm_lib.runs import (
    AlreadyRunning,
    Run,
    exit_code,
    follow,
    is_locked,
    link_log,
    lock_holder,
    read_status,
    start_background,
    stop,
)

SCRIPT = str(Path(__file__).with_name("fake_training.py"))


def command(run: Run, *flags: str) -> list[str]:
    return [sys.executable, SCRIPT, str(run.path), *flags]


@pytest.fixture
def start(tmp_path):
    """Starts fake trainings; whatever still runs at the end is killed."""
    started = []

    def begin(name: str, *flags: str) -> tuple[Run, int]:
        run = Run(tmp_path / name)
        started.append(start_background(command(run, *flags), run))
        return run, started[-1]

    yield begin
    for pid in started:
        if exit_code(pid) is None:
            os.kill(pid, signal.SIGKILL)


def wait_for(condition, seconds: float = 20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_the_log_grows_while_the_run_runs_and_following_ends_with_it(start):
    run, pid = start("run", "--steps", "20")
    text = ""
    for piece in follow(run, interval=0.01):
        text += piece
    assert text.startswith("step 1\n") and text.endswith("step 20\n")
    wait_for(lambda: exit_code(pid) == 0)
    assert read_status(run)["state"] == "done"


def test_output_is_in_the_log_at_once(start):
    run, _ = start("run")
    wait_for(lambda: run.log.exists() and "step 2" in run.log.read_text())
    assert read_status(run)["state"] == "running"


def test_stop_saves_and_stops_that_run_only(start):
    run, pid = start("run")
    other, other_pid = start("other")
    wait_for(lambda: read_status(run)["step"] and read_status(other)["step"])
    status = stop(run, timeout=20)
    assert status["state"] == "interrupted" and "saved at step" in status["message"]
    assert run.latest_checkpoint() is not None
    wait_for(lambda: exit_code(pid) == 130)
    assert exit_code(other_pid) is None and lock_holder(other) == other_pid
    assert stop(run)["state"] == "interrupted"  # nothing to stop: nothing happens


def test_a_process_that_took_over_the_pid_is_not_stopped(start):
    run, pid = start("run")
    wait_for(lambda: read_status(run)["step"])
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        run.lock_path.write_text(f'{{"pid": {bystander.pid}, "start": 1}}')
        with pytest.raises(NewLLMError, match="nothing was stopped"):
            stop(run)
        assert bystander.poll() is None and exit_code(pid) is None
    finally:
        bystander.kill()
        bystander.wait()


def test_a_run_that_does_not_end_is_said_to_be_so(start):
    run, pid = start("run", "--ignore-sigterm")
    wait_for(lambda: read_status(run)["step"])
    with pytest.raises(NewLLMError, match=rf"has not ended.*kill -9 {pid}"):
        stop(run, timeout=0.3)


def test_a_killed_run_is_dead_and_can_be_started_again(start):
    run, pid = start("run")
    wait_for(lambda: read_status(run)["step"])
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not is_locked(run))
    assert read_status(run)["state"] == "dead" and "step" in read_status(run)["message"]
    assert stop(run)["state"] == "dead"
    _, again = start("run", "--steps", "1")
    wait_for(lambda: exit_code(again) == 0)
    assert read_status(run)["state"] == "done"


def test_a_failed_run_says_why(start):
    run, pid = start("run", "--fail")
    wait_for(lambda: exit_code(pid) == 1)
    assert (
        read_status(run)["state"] == "dead"
    )  # the fake writes no "failed"; its last line is shown all the same
    assert "The loss became nan." in read_status(run)["message"]


def test_of_two_starts_one_is_refused_even_before_the_process_has_come_up(start):
    run, _ = start("run")
    with pytest.raises(AlreadyRunning):
        start("run")
    assert is_locked(run)


def test_a_run_survives_the_end_of_its_starter(tmp_path):
    run = Run(tmp_path / "run")
    code = (
        "import sys; from newllm_lib import runs; print(runs.start_background(sys.argv[2:], "
        "runs.Run(sys.argv[1])))"
    )
    starter = subprocess.Popen(
        [sys.executable, "-c", code, str(run.path), *command(run)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    pid = int(starter.communicate()[0])
    try:
        with pytest.raises(ProcessLookupError):
            os.killpg(starter.pid, signal.SIGHUP)  # as a closing terminal does; nothing is left in that group
        wait_for(lambda: read_status(run)["step"])
        assert lock_holder(run) == pid
    finally:
        os.kill(pid, signal.SIGKILL)


def test_on_colab_the_log_is_linked(tmp_path, monkeypatch):
    content = tmp_path / "content"
    content.mkdir()
    run = Run(tmp_path / "checkpoints" / "dolly_layer1")
    assert link_log(run, content) is None  # not on Colab
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release")
    for _ in range(2):
        assert os.readlink(link_log(run, content)) == str(run.log)
    (content / "mine.log").write_text("my own")
    assert link_log(Run(tmp_path / "mine"), content) is None
    assert (content / "mine.log").read_text() == "my own"


def test_a_log_that_has_grown_large_is_moved_aside_and_following_goes_on(start, tmp_path):
    from newllm_lib.runs import rotate_log, tail

    run, _ = start("run", "--steps", "60")
    wait_for(lambda: "step 5\n" in run.log.read_text())
    assert not rotate_log(run.log) and rotate_log(run.log, limit=10)
    assert "step 5\n" in run.log.with_name("train.log.1").read_text()
    text = "".join(follow(run, offset=10**6))  # from where the old log ended
    assert text.rstrip().endswith("step 60") and tail(run, 1) == ["step 60"]
