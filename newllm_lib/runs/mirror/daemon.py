"""The process that keeps a run's mirror: started with a training, ends when that has ended and all is copied.

It is a process of its own, so a slow, full or vanished Drive never holds up training, and a training that was
killed still gets its last save copied. What it does stands in `mirror.json` in the run's folder.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from newllm_lib.errors import NewLLMError
from newllm_lib.runs.atomic import atomic_write_bytes
from newllm_lib.runs.lock import INHERITED, is_held, is_locked
from newllm_lib.runs.mirror.owner import Superseded
from newllm_lib.runs.mirror.sync import LOCK, START, STATUS, Mirror
from newllm_lib.runs.ownership import read_json
from newllm_lib.runs.processes import command_of, environment_of
from newllm_lib.runs.run import Run

SMALL_FILES_EVERY = 30.0  # seconds: log and metrics grow all the time
FIRST_WAIT, LONGEST_WAIT = 2.0, 120.0  # seconds between two tries at a place that fails, doubled each time
LONGEST_WAIT_AT_END = 10.0
_MODULE = "newllm_lib.runs.mirror.daemon"
STARTS_WITHIN = 60.0  # seconds; a mirror that said nothing by then never started
GIVE_UP_AFTER = 600.0  # seconds of trying when training has ended


_NUMBER = (int, float)
_FIELDS: dict[str, tuple] = {  # of mirror.json: kinds, and what stands for anything else
    "folder": (str, ""),
    "state": (str, ""),
    "message": (str, ""),
    "pid": (int, None),
    "step": (int, None),
    "began": (_NUMBER, -1.0),
    "ended": (_NUMBER, 0.0),
    "updated": (_NUMBER, 0.0),
}


def start_mirror(run: Run, folder: Path | str) -> float:
    """Start the process that copies `run` to `folder` until training ends; at most one works at a time.

    Call it with the run's lock held; returns what `wait_for_mirror` wants to know of this start.
    """
    since = time.monotonic()  # one clock for all processes, and none that can be set
    atomic_write_bytes(run.path / START, repr(since).encode(), durable=False)
    note(run, folder=str(Path(folder).absolute()), state="starting", message="", pid=None, began=since)
    environment = environment_of()
    environment.pop(INHERITED, None)
    subprocess.Popen(
        command_of(_MODULE, str(run.path.absolute()), str(Path(folder).absolute()), repr(since)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env=environment,
    )
    return since


def mirror_status(run: Run) -> dict | None:
    """`folder`, `state` (starting, current, trouble, done or failed), `message`, `step` (what is there to
    continue from), `updated`; None for a run that is not mirrored. A mirror that died without a word has the
    state "dead"."""
    status = _read(run)
    if status is None:
        return None
    age = time.monotonic() - status["began"]  # negative: of before the machine was started
    starts = status["pid"] is None and 0 <= age < STARTS_WITHIN
    if (
        status.get("state") in ("starting", "current", "trouble")
        and not starts
        and not is_held(run.path / LOCK)
    ):
        return {
            **status,
            "state": "dead",
            "message": "the copying process was killed; it is started again with the run",
        }
    return status


def wait_for_mirror(
    run: Run, tell: Callable[[str], None], since: float = 0.0, timeout: float = GIVE_UP_AFTER + 60
) -> dict | None:
    """Wait, when training has ended, until the mirror has all; `tell` gets lines for the user.

    Args:
        since: what `start_mirror` returned. The mirror of a life that was killed may end only now: what it
            found when the run's lock was free is not what this life has written.
    """
    end, told, again = time.monotonic() + timeout, None, True
    while (status := mirror_status(run)) is not None and time.monotonic() < end:
        if status["state"] == "dead" and again:
            again, since = False, start_mirror(run, status["folder"])
            continue
        if status["state"] == "dead" or (status["state"] in ("done", "failed") and status["ended"] > since):
            break
        if status["message"] != told and status["state"] == "trouble":
            told = status["message"]
            tell(told)
        time.sleep(0.2)
    if status is not None and status["state"] == "done":
        tell(
            f"{run.name} is copied to {status['folder']}"
            + (f" (step {status['step']})" if status["step"] else "")
        )
    elif status is not None:
        tell(f"Not all of {run.name} is in {status['folder']}: {status['message'] or 'still copying'}")
    return status


def note(run: Run, **changes) -> None:
    """Change fields of mirror.json."""
    text = json.dumps({**(_read(run) or {"step": None}), **changes, "updated": time.time()})
    # a deleted run stays deleted
    atomic_write_bytes(run.path / STATUS, text.encode(), durable=False, parents=False)


def _read(run: Run) -> dict | None:
    """mirror.json, with values of the right kinds; None where there is none, or something else."""
    status = read_json(run.path / STATUS)
    if not isinstance(status, dict):
        return None
    return {
        key: status[key] if isinstance(status.get(key), kind) else empty
        for key, (kind, empty) in _FIELDS.items()
    }


def main(path: str, folder: str, since: str) -> int:
    """Mirror until training ends, then bring over what is left. `since`: which start this one belongs to."""
    run = Run(path)
    with open(run.path / LOCK, "a+") as lock:
        # The mirror of the life before works: it goes on with this life, or, where it believes that all has
        # ended, ends. In case it does, the one of the newest start waits for its turn.
        while not _locks(lock):
            if _newest_start(run) != since:
                return 0
            time.sleep(0.5)
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        os.nice(5)
        keeper = _Keeper(run, folder)
        note(run, **keeper.who)  # the first copy of a large run takes minutes
        try:
            return keeper.keep()
        except Superseded as error:
            note(run, **keeper.who, state="failed", message=str(error), ended=time.monotonic())
            return 1
        except Exception as error:  # nobody sees this process's output
            message = f"copying failed: {type(error).__name__}: {error}"
            note(run, **keeper.who, state="failed", message=message, ended=time.monotonic())
            raise


class _Keeper:
    """Copies when something is due, waits longer and longer where it fails, and says so."""

    def __init__(self, run: Run, folder: str):
        self.run, self.folder, self.mirror = run, folder, Mirror(run, folder)
        self.next_try = 0.0
        self.wait: float | None = None  # seconds, while it fails
        self.ended_at: float | None = None  # (monotonic) when training was first seen to have ended
        self.who = {"pid": os.getpid(), "folder": folder}

    def keep(self) -> int:
        """Go on until training ended and all is there (0), the run is gone (0), or it is unreachable (1)."""
        while self.run.path.is_dir() and self._wanted_folder() in (None, self.folder):
            # looked at before copying: what was saved before the end is copied below
            ended = not is_locked(self.run)
            now = time.monotonic()
            self.ended_at = (self.ended_at or now) if ended else None
            if self._is_time(ended) and self._try() and self.ended_at:
                note(self.run, **self.who, state="done", ended=self.ended_at)
                return 0
            if self.ended_at and now - self.ended_at > GIVE_UP_AFTER:
                note(self.run, **self.who, state="failed", ended=self.ended_at)
                return 1
            time.sleep(0.5)
        return 0

    def _is_time(self, ended: bool) -> bool:
        if self.wait is not None:  # failing
            return time.monotonic() >= self.next_try - (
                max(0.0, self.wait - LONGEST_WAIT_AT_END) if ended else 0.0
            )
        return ended or time.monotonic() >= self.next_try or self.mirror.is_due()

    def _try(self) -> bool:
        try:
            self.mirror.copy()
        except Superseded:
            raise
        except NewLLMError as error:
            note(self.run, **self.who, state="trouble", message=str(error))
            self.wait = min(2 * (self.wait or FIRST_WAIT / 2), LONGEST_WAIT)
            self.next_try = time.monotonic() + self.wait
            return False
        note(self.run, **self.who, state="current", message="", step=self.mirror.newest_step())
        self.next_try, self.wait = time.monotonic() + SMALL_FILES_EVERY, None
        return True

    def _wanted_folder(self) -> str | None:
        return (_read(self.run) or {}).get("folder")


def _newest_start(run: Run) -> str | None:
    try:
        return (run.path / START).read_text(encoding="utf-8")
    except OSError:  # the run is gone
        return None


def _locks(lock) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
