"""The process that keeps a run's mirror: started with a training, ends when that has ended and all is copied.

It is a process of its own, so a slow, full or vanished Drive never holds up training, and a training that was
killed still gets its last save copied. What it does stands in `mirror.json` in the run's folder.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from newllm_lib.errors import NewLLMError
from newllm_lib.runs.lock import is_locked
from newllm_lib.runs.mirror.hub import HubMirror
from newllm_lib.runs.mirror.owner import Superseded
from newllm_lib.runs.mirror.start import GIVE_UP_AFTER, LOCK, START, note, read_mirror_json
from newllm_lib.runs.mirror.sync import Mirror
from newllm_lib.runs.run import HUB, Run

FIRST_WAIT, LONGEST_WAIT = 2.0, 120.0  # seconds between two tries at a place that fails, doubled each time
LONGEST_WAIT_AT_END = 10.0


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


def mirror_in(run: Run, folder: Path | str) -> Mirror | HubMirror:
    """What copies the run to a folder, or to a repository of the hub (`hf://OWNER/NAME`)."""
    if str(folder).startswith(HUB):
        return HubMirror(run, str(folder))
    return Mirror(run, folder)


class _Keeper:
    """Copies when something is due, waits longer and longer where it fails, and says so."""

    def __init__(self, run: Run, folder: str):
        self.run, self.folder, self.mirror = run, folder, mirror_in(run, folder)
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
        self.next_try, self.wait = time.monotonic() + self.mirror.small_files_every, None
        return True

    def _wanted_folder(self) -> str | None:
        return (read_mirror_json(self.run) or {}).get("folder")


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
