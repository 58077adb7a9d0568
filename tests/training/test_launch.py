"""`newllm train --num_gpus 2` on a CPU: one log, one set of files; what goes wrong in one process ends all
and is said.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from newllm_lib.errors import Interrupted, NewLLMError, UsageError
from newllm_lib.runs import Run
from newllm_lib.training.distributed.launch import _cause
from tests.helpers.small_runs import write_text
from tests.helpers.two_processes import FLAGS, state, wait_for_step

STOP = (sys.executable, "-m", "newllm_lib", "runs", "stop", "run")


def start(folder: Path, *more: str, command=(sys.executable, "-m", "newllm_lib")) -> subprocess.Popen:
    environment = {**os.environ, "NEWLLM_DEVICE": "cpu"}
    return subprocess.Popen(
        [*command, "train", "demo", *FLAGS, *more],
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def workers(process: subprocess.Popen) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(process.pid).children():
        with contextlib.suppress(psutil.ZombieProcess):  # one that has ended already
            if "newllm_lib.training.distributed.worker" in " ".join(child.cmdline()):
                found.append(child)
    return found


def test_a_killed_process_ends_the_run_which_says_so_and_goes_on_with_one(tmp_path):
    write_text(tmp_path)
    launcher = start(tmp_path, "--epochs", "200")
    wait_for_step(tmp_path, 3, launcher)
    ours = workers(launcher)
    assert len(ours) == 2
    ours[1].send_signal(signal.SIGKILL)
    said, errors = launcher.communicate(timeout=300)
    assert launcher.returncode == 1 and not any(p.is_running() for p in ours)
    last = errors.strip().splitlines()[-1]
    assert last.startswith("newllm: Process 1 of 2 was ended by SIGKILL") and "Traceback" not in errors
    assert said.count("Epoch 1/200") == 1 and "2 processes, DDP" in said  # one of them speaks
    assert state(tmp_path)["state"] == "failed" and "SIGKILL" in state(tmp_path)["message"]
    log = (tmp_path / "run" / "train.log").read_text()
    assert log.count("Epoch 1/200") == 1
    steps = [row["step"] for row in Run(tmp_path / "run").metrics() if "loss" in row]
    assert steps == sorted(set(steps))


def failed(folder: Path, *ends: tuple[int, str | None]) -> ChildFailedError:
    """What the launcher is told where processes ended with these exit codes, having said this (None:
    nothing).
    """
    failures = {}
    for rank, (code, said) in enumerate(ends):
        path = folder / f"{rank}.json"
        if said is not None:
            path.write_text(
                json.dumps({"message": {"message": said, "extraInfo": {"timestamp": str(100 + rank)}}})
            )
        failures[rank] = ProcessFailure(rank, 4000 + rank, code, str(path))
    return ChildFailedError("train", failures)


@pytest.mark.parametrize(
    ("ends", "kind", "words"),
    [
        ([(2, "UsageError: no such thing"), (2, "UsageError: no such thing")], UsageError, "no such thing"),
        (
            [(1, "LostPeer: another one has ended"), (1, "NewLLMError: the disk is full")],
            NewLLMError,
            "the disk is full",
        ),
        (
            [(1, "LostPeer: another one has ended"), (-9, None)],
            NewLLMError,
            "Process 1 of 2 was ended by SIGKILL",
        ),
        ([(130, "Interrupted: saved"), (130, "Interrupted: saved")], Interrupted, "saved"),
        ([(1, "KeyError: 'x'"), (-15, None)], NewLLMError, "Process 0 of 2: KeyError: 'x'"),
        ([(3, None), (-15, None)], NewLLMError, "Process 0 of 2 ended with exit code 3"),
    ],
)
def test_the_cause_is_told_and_not_what_followed_from_it(ends, kind, words, tmp_path):
    cause = _cause(failed(tmp_path, *ends), len(ends))
    assert type(cause) is kind and words in str(cause) and "\n" not in str(cause)


@pytest.mark.slow
def test_a_stop_saves_and_a_mistake_is_said_once(tmp_path):
    write_text(tmp_path)
    launcher = start(tmp_path, "--epochs", "200")
    wait_for_step(tmp_path, 3, launcher)
    stop = subprocess.run(STOP, cwd=tmp_path, capture_output=True, text=True)
    assert stop.returncode == 0, stop.stderr
    said, errors = launcher.communicate(timeout=300)
    assert (
        launcher.returncode == 130
        and "Stopped at step" in errors
        and state(tmp_path)["state"] == "interrupted"
    )
    assert Run(tmp_path / "run").latest_checkpoint() is not None
    again = start(tmp_path, "--epochs", "200", "--resume", "checkpoint-99999")  # found wrong by the processes
    said, errors = again.communicate(timeout=300)
    assert again.returncode == 2 and errors.count("newllm:") == 1 and "checkpoint-99999" in errors


@pytest.mark.slow
def test_torchrun_restarts_what_was_killed(tmp_path):
    """With plain torchrun, which is told to try twice."""
    write_text(tmp_path)
    torchrun = (
        "-m torch.distributed.run --standalone --nproc_per_node 2 --max-restarts 2 -m newllm_lib".split()
    )
    launcher = start(tmp_path, "--epochs", "3", command=(sys.executable, *torchrun))
    wait_for_step(tmp_path, 3, launcher)
    next(p for p in psutil.Process(launcher.pid).children() if "train" in p.cmdline()).send_signal(
        signal.SIGKILL
    )
    said, errors = launcher.communicate(timeout=400)
    assert launcher.returncode == 0, errors[-2000:]
    assert state(tmp_path)["state"] == "done" and "Continuing from checkpoint-" in said
    steps = [row["step"] for row in Run(tmp_path / "run").metrics() if "loss" in row]
    assert steps == list(range(1, len(steps) + 1))


@pytest.mark.slow
def test_in_the_background_with_a_lock_that_is_the_launchers(tmp_path):
    write_text(tmp_path)
    started = start(tmp_path, "--epochs", "200", "--background")
    said, errors = started.communicate(timeout=300)
    assert started.returncode == 0, errors + said
    twice = start(tmp_path, "--epochs", "200")
    _, errors = twice.communicate(timeout=300)
    assert twice.returncode == 1 and "already training" in errors
    stop = subprocess.run(STOP, cwd=tmp_path, capture_output=True, text=True)
    assert stop.returncode == 0 and state(tmp_path)["state"] == "interrupted", stop.stderr
