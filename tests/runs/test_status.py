"""What a run says of itself, checked against the lock."""

from __future__ import annotations

import os

import pytest

from newllm_lib.runs import (
    Run,
    RunLock,
    is_finished,
    last_line,
    read_status,
    status as status_module,
    tail,
    write_status,
)


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path / "run")


def test_a_run_goes_from_new_over_running_to_done(run):
    assert read_status(run)["state"] == "new"
    with RunLock(run):
        write_status(run, state="running", total_steps=10)
        write_status(run, step=4)
        status = read_status(run)
        assert (status["state"], status["step"], status["total_steps"], status["pid"]) == (
            "running",
            4,
            10,
            os.getpid(),
        )
        assert status["started"] <= status["updated"]
        write_status(run, state="done", message="finished")
    assert read_status(run)["state"] == "done" and is_finished(run)


def test_a_run_whose_process_is_gone_is_dead_and_shows_its_last_line(run):
    write_status(run, state="running", step=7)
    run.log.write_text("step 7\nRuntimeError: CUDA error\n\n")
    status = read_status(run)
    assert (
        status["state"] == "dead" and "RuntimeError: CUDA error" in status["message"] and status["step"] == 7
    )
    assert not is_finished(run)


def test_a_finished_run_that_is_started_again_is_running(run):
    write_status(run, state="done")
    with RunLock(run):
        assert read_status(run)["state"] == "running" and not is_finished(run)


@pytest.mark.parametrize("text", ["", "{", "[1]", "null"])
def test_a_damaged_status_is_as_none(run, text):
    run.path.mkdir()
    run.status_path.write_text(text)
    assert read_status(run)["state"] == "new"


def test_a_field_or_state_that_does_not_exist_is_a_mistake_of_ours(run):
    with pytest.raises(ValueError, match="stepp"):
        write_status(run, stepp=3)
    with pytest.raises(ValueError, match="finished"):
        write_status(run, state="finished")


def test_the_end_of_a_long_log(run):
    assert tail(run, 5) == [] and last_line(run) == ""
    run.path.mkdir()
    run.log.write_text("".join(f"line {i}\n" for i in range(100_000)) + "\n")
    assert tail(run, 3) == ["line 99998", "line 99999", ""] and last_line(run) == "line 99999"


def test_a_dead_run_is_shown_with_its_last_error(run):
    run.path.mkdir(exist_ok=True)
    write_status(run, state="running", step=3)
    run.log.write_text(
        "step 3\nTraceback (most recent call last):\ntorch.OutOfMemoryError: 3 GiB\n  cleaning up\n\n"
    )
    assert read_status(run)["message"].endswith("its log ends with: torch.OutOfMemoryError: 3 GiB")


def test_a_run_that_shows_no_sign_of_life_is_said_to(run, monkeypatch):
    with RunLock(run):
        write_status(run, state="running", message="training")
        assert read_status(run)["message"] == "training"
        monkeypatch.setattr(status_module.time, "time", lambda real=status_module.time.time: real() + 900)
        assert "no sign of life for 15.0 min" in read_status(run)["message"]
        run.log.touch()  # preparing writes no steps, but lines
        os.utime(run.log, (status_module.time.time(),) * 2)
        assert read_status(run)["message"] == "training"
