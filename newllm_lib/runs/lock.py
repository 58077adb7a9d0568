"""One process trains a run. The lock is the operating system's: it is gone with its process."""

from __future__ import annotations

import fcntl
import json
import os
import time
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

from newllm_lib.errors import NewLLMError
from newllm_lib.runs.atomic import clean_leftovers, explained, mark_folder
from newllm_lib.runs.ownership import check_shared, read_json
from newllm_lib.runs.processes import started_at

if TYPE_CHECKING:
    from newllm_lib.runs.run import Run

INHERITED = "NEWLLM_LOCK_FD"  # how a background process is handed the lock that its starter took for it


class AlreadyRunning(NewLLMError):
    """Another process trains this run now."""


class RunLock:
    """`with RunLock(run):` nobody else trains `run`; a killed process's leftovers go first.

    Raises:
        AlreadyRunning: with the pid of the process that holds the run and the commands to follow or stop it.
        UsageError: something that is not ours lies there under a name that a run would write; nothing was
        changed.
    """

    def __init__(self, run: Run):
        self.run = run
        self._descriptor: int | None = None

    def __enter__(self) -> RunLock:
        self.acquire()
        return self

    def __exit__(self, *error) -> None:
        if self._descriptor is not None:
            # also for copies that a library's helper process may have kept
            fcntl.flock(self.descriptor, fcntl.LOCK_UN)
            self._close()

    def acquire(self) -> None:
        check_shared(self.run.path, "run", "--output_dir")
        with explained(self.run.path):
            self.run.path.mkdir(parents=True, exist_ok=True)
            self._descriptor = _inherited(self.run)
            if self._descriptor is None:
                self._descriptor = os.open(self.run.lock_path, os.O_RDWR | os.O_CREAT, 0o644)
        if not self._locked_within(0.5):
            pid = lock_holder(self.run)
            self._close()
            raise AlreadyRunning(
                f"Run {self.run.name} is already training (pid {pid or 'unknown'}): follow it with `newllm "
                f"runs logs {self.run.name} --follow`, stop it with `newllm runs stop {self.run.name}`."
            )
        try:
            self._write_holder(os.getpid())
            mark_folder(self.run.path, "run", self.run.name)
            clean_leftovers(self.run.path)
        except BaseException:
            self._close()
            raise
        _open_locks.add(self)

    def hand_over(self, pid: int) -> None:
        """Leave the lock to process `pid`, which inherited the descriptor: our copy is closed."""
        self._write_holder(pid)
        self._close()

    def _locked_within(self, seconds: float) -> bool:
        # A moment's patience: `is_locked` below holds the lock for an instant when it looks.
        end = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                if time.monotonic() > end:
                    return False
                time.sleep(0.02)

    def _write_holder(self, pid: int) -> None:
        text = json.dumps({"pid": pid, "start": started_at(pid)})
        with explained(self.run.lock_path):
            os.ftruncate(self.descriptor, 0)  # in place: a new file would be a new lock
            os.pwrite(self.descriptor, text.encode(), 0)

    @property
    def descriptor(self) -> int:
        """The open lock file, which a child may inherit.

        Raises:
            ValueError: the lock is not held.
        """
        if self._descriptor is None:
            raise ValueError(f"the lock of {self.run.name} is not held")
        return self._descriptor

    def _close(self) -> None:
        os.close(self.descriptor)
        self._descriptor = None
        _open_locks.discard(self)


def is_locked(run: Run) -> bool:
    """Whether a living process holds `run`."""
    return is_held(run.lock_path)


def is_held(path: Path) -> bool:
    """Whether a living process holds the lock file `path`."""
    try:
        descriptor = os.open(
            path, os.O_RDONLY | os.O_NONBLOCK
        )  # of a pipe, too, nobody waits for the other end
    except OSError:  # nobody has held it yet
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def lock_holder(run: Run) -> int | None:
    """The pid that holds `run`; None if no process does, or if the lock file does not name it rightly."""
    if not is_locked(run):
        return None
    try:
        holder: Any = read_json(run.lock_path)
        pid, start = int(holder["pid"]), holder["start"]
    except (ValueError, KeyError, TypeError, OverflowError):  # taken this instant, not written yet
        return None
    return pid if start is not None and started_at(pid) == start else None


def _inherited(run: Run) -> int | None:
    """The descriptor our starter took the lock with, if it is for this run."""
    number = os.environ.get(INHERITED, "")
    if not number.isdigit():
        return None
    try:
        ours = os.path.samestat(os.fstat(int(number)), os.stat(run.lock_path))
    except OSError:
        return None
    if not ours:
        return None
    del os.environ[INHERITED]
    os.set_inheritable(int(number), False)
    return int(number)


# A forked child (a data loader's worker) copies our descriptors, and would keep the lock after our death.
_open_locks: weakref.WeakSet[RunLock] = weakref.WeakSet()


def _forget_in_child() -> None:
    for lock in list(_open_locks):
        lock._close()


os.register_at_fork(after_in_child=_forget_in_child)
