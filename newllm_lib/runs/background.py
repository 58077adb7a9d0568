"""Runs that outlive the cell, the terminal and the notebook: start, follow, stop."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from newllm_lib.errors import NewLLMError
from newllm_lib.runs.atomic import explained
from newllm_lib.runs.lock import INHERITED, RunLock, is_locked, lock_holder
from newllm_lib.runs.processes import environment_of
from newllm_lib.runs.run import Run
from newllm_lib.runs.status import BACKGROUND, last_line, link_log, read_status, rotate_log

# kept so that an ended child is noticed, and does not stay as a zombie
_children: dict[int, subprocess.Popen] = {}


def start_background(command: list[str], run: Run) -> int:
    """Start `command` in its own session, its output appended to the run's log. Returns the pid.

    The run's lock is taken here and inherited by the process, so of two starts at the same moment one is
    refused.

    Raises:
        AlreadyRunning: the run is being trained now.
    """
    lock = RunLock(run)
    lock.acquire()
    environment = environment_of(
        **{"PYTHONUNBUFFERED": "1", BACKGROUND: "1", INHERITED: str(lock.descriptor)}
    )
    try:
        rotate_log(run.log)
        with explained(run.log), open(run.log, "ab") as log:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=(lock.descriptor,),
                env=environment,
            )
    except BaseException:
        lock.__exit__()
        raise
    _children[child.pid] = child
    lock.hand_over(child.pid)
    link_log(run)
    return child.pid


def exit_code(pid: int) -> int | None:
    """The exit code of a process that `start_background` of this process started; None while it runs."""
    return _children[pid].poll()


def follow(run: Run, offset: int = 0, interval: float = 0.3) -> Iterator[str]:
    """Text of the run's log from byte `offset` on, as it grows, until no process trains the run.

    An empty piece is given when nothing new came for `interval` seconds, so that the caller can look at other
    things.
    """
    while True:
        ended = not _holds(run)  # looked at before reading: what came in between is read below
        text, offset = _read_from(run.log, offset, whole_lines=not ended)
        yield text
        if ended and not text:
            return
        if not text:
            time.sleep(interval)


def stop(run: Run, timeout: float = 180.0) -> dict:
    """Ask the process that trains `run` to save and stop; wait until it did. Returns the status.

    A run that nobody trains is left as it is.

    Raises:
        NewLLMError: it is still saving after `timeout` seconds, or its process cannot be told for certain.
    """
    end = time.monotonic() + timeout
    pid = lock_holder(run)
    if pid is None and _holds(run):
        raise NewLLMError(
            f"Run {run.name} is being trained, but {run.lock_path} does not say by which process: nothing "
            "was stopped. Try again in a moment."
        )
    if pid is not None:
        os.kill(pid, signal.SIGTERM)
        while lock_holder(run) == pid:
            if time.monotonic() > end:
                raise NewLLMError(
                    f"Run {run.name} (pid {pid}) has not ended {timeout:.0f} s after it was asked to; its "
                    f"last line: {last_line(run)}. Wait for it, or `kill -9 {pid}` and lose what came after "
                    "the last save."
                )
            _holds(run)
            time.sleep(0.1)
    return read_status(run)


def ask_to_save(run: Run) -> bool:
    """Ask the process that trains `run` for a checkpoint after its present step; False if none trains it."""
    if not _holds(run):
        return False
    with explained(run.save_request):
        run.save_request.touch()
    return True


def _holds(run: Run) -> bool:
    for child in _children.values():
        child.poll()
    return is_locked(run)


def _read_from(path: Path, offset: int, whole_lines: bool) -> tuple[str, int]:
    """The text of `path` from `offset` on (`whole_lines`: up to the last complete line), and its end."""
    try:
        if not path.is_file():
            return "", offset
        with open(path, "rb") as file:
            if file.seek(0, os.SEEK_END) < offset:  # it was rotated
                offset = 0
            file.seek(offset)
            data = file.read()
    except FileNotFoundError:
        return "", offset
    if whole_lines:
        data = data[: data.rfind(b"\n") + 1]
    return data.decode("utf-8", errors="replace"), offset + len(data)
