"""What a run is doing, for whoever looks from outside: status.json, checked against the lock."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

from newllm_lib.console import duration
from newllm_lib.errors import without_secrets
from newllm_lib.runs.atomic import atomic_write_text, may_wait
from newllm_lib.runs.lock import is_locked, lock_holder
from newllm_lib.runs.ownership import read_json
from newllm_lib.runs.run import Run

QUIET = 600.0  # seconds without a step or a line after which a running run is reported as silent
_ERROR = re.compile(
    r"^(\w+\.)*\w*(Error|Exception|Killed|Interrupt)\b|^newllm: |[Oo]ut of memory|Segmentation fault"
)
BACKGROUND = "NEWLLM_BACKGROUND"  # set in a process whose output is its run's log already
LARGEST_LOG = 10 * 2**20  # bytes
STATES = ("running", "done", "failed", "interrupted")
_EMPTY = {"state": "new", "message": ""} | dict.fromkeys(("pid", "started", "updated", "step", "total_steps"))


_unwritten: dict[Path, dict] = {}


def write_status(run: Run, **changes) -> None:
    """Change some fields of status.json: `state` (one of `STATES`), `step`, `total_steps`, `message`.

    `pid`, `started` (when the state becomes "running") and `updated` (seconds since 1970) are filled in. A
    disk that does not take it now gets it with the next change.

    Raises:
        ValueError: an unknown field or state.
    """
    if unknown := set(changes) - set(_EMPTY):
        raise ValueError(f"status.json has no {', '.join(sorted(unknown))}")
    if changes.get("state", "running") not in STATES:
        raise ValueError(f"state must be one of {', '.join(STATES)}, not {changes['state']!r}")
    now = time.time()
    if changes.get("state") == "running" and "started" not in changes:
        changes["started"] = now
    if "message" in changes:
        changes["message"] = without_secrets(changes["message"])
    changes = _unwritten.pop(run.status_path, {}) | changes
    status = {**_read(run), "pid": os.getpid(), "updated": now} | changes
    _unwritten[run.status_path] = changes
    for seconds in (0.2, 1.0, 4.0, 0.0) if "state" in changes else (0.0,):  # a state is worth waiting for
        with may_wait(run.status_path):
            atomic_write_text(run.status_path, json.dumps(status, indent=1), durable="state" in changes)
            del _unwritten[run.status_path]
            return
        time.sleep(seconds)


def read_status(run: Run) -> dict:
    """status.json with the truth about the process: `state` is one of `STATES`, "new" or "dead".

    "dead": it says "running", but no process holds the run's lock. While the lock is held, the run is
    running.
    """
    status = _read(run)
    if is_locked(run):
        message = status["message"] if status["state"] == "running" else "starting"
        quiet = time.time() - max(status["updated"] or 0.0, _changed(run.log))
        if status["updated"] and quiet > QUIET:
            message += (
                f"; no sign of life for {duration(quiet)} (`newllm runs stop {run.name}` saves it, if "
                "it still can)"
            )
        return {**status, "state": "running", "message": message, "pid": lock_holder(run) or status["pid"]}
    if status["state"] == "running":
        status = _read(run)  # it may have ended between our two looks
    if status["state"] == "running":
        last = last_error(run)
        message = "ended without a word (killed, or out of memory)" + (
            f"; its log ends with: {last}" if last else ""
        )
        return {**status, "state": "dead", "message": message}
    return status


def read_status_file(run: Run) -> dict:
    """status.json as written, for the lock's holder, who knows that no other process trains the run."""
    return _read(run)


def last_line(run: Run) -> str:
    """The last line of the run's log that is not empty."""
    lines = tail(run, 20)
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def last_error(run: Run) -> str:
    """The last line of the run's log that speaks of an error, among its last 40; else its last line."""
    lines = [line.strip() for line in tail(run, 40)]
    return next((line for line in reversed(lines) if _ERROR.search(line)), "") or last_line(run)


def read_timing(run: Run) -> dict | None:
    """Where the last training's time went, as `training.timetable.Timing.figures` has it; None: not told."""
    found: Any = read_json(run.timing_path)
    try:
        timing_in_words(found)
    except (
        KeyError,
        TypeError,
        ValueError,
        OverflowError,
        AttributeError,
    ):  # an older version's run, or odd
        return None
    return found


def timing_in_words(timing: dict) -> str:
    """`Time: 51 s | start 29 s 56 % (imports 12, data 3, model 2, kernels 12) | steps 13 s 25 % | …`"""
    total, seconds = timing["total_seconds"], dict(timing["seconds"])
    begin = {part: seconds.pop(part) for part in ("imports", "data", "model", "kernels")}
    inside = ", ".join(f"{part} {taken:.3g}" for part, taken in begin.items())
    parts = [("start", sum(begin.values()), f" ({inside})"), *((p, s, "") for p, s in seconds.items() if s)]
    said = [f"{name} {taken:.3g} s {taken / max(1e-9, total):.0%}{more}" for name, taken, more in parts]
    return " | ".join([f"Time: {duration(total)}", *said])


def is_finished(run: Run) -> bool:
    """Whether the run was trained to its end."""
    return read_status(run)["state"] == "done"


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def tail(run: Run, lines: int) -> list[str]:
    """The last `lines` lines of the run's log, read from its end (logs grow large)."""
    try:
        if not run.log.is_file():
            return []
        with open(run.log, "rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(0, size - 400 * lines - 4096))
            text = log.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    return text.splitlines()[-lines:]


def rotate_log(log: Path, limit: int = LARGEST_LOG) -> bool:
    """Move a log of over `limit` bytes to `<log>.1` (which is replaced); whether it was.

    The file itself stays and is emptied: processes that append to it go on.
    """
    if not log.is_file() or log.stat().st_size <= limit:
        return False
    with may_wait(log):
        shutil.copyfile(log, log.with_name(f"{log.name}.1"))
        os.truncate(log, 0)
        return True
    return False


def link_log(run: Run, folder: Path = Path("/content")) -> Path | None:
    """On Colab, show the run's log as `/content/<run>.log`, where the file browser opens; returns the link.

    Elsewhere, and where a file of the user's own stands there, nothing is done (None).
    """
    if "COLAB_RELEASE_TAG" not in os.environ or not folder.is_dir():
        return None
    link = folder / f"{run.name}.log"
    if os.path.lexists(link) and not (link.is_symlink() and os.readlink(link).endswith("/train.log")):
        return None  # the user's own
    link.unlink(missing_ok=True)
    link.symlink_to(run.log.absolute())
    return link


def _read(run: Run) -> dict:
    status = read_json(run.status_path)
    if not isinstance(status, dict) or status.get("state", "new") not in (*STATES, "new"):
        return dict(_EMPTY)  # never started; or copied here in pieces
    return _EMPTY | {key: value for key, value in status.items() if key in _EMPTY and _fits(key, value)}


def _fits(key: str, value: object) -> bool:
    if key in ("state", "message"):
        return isinstance(value, str)
    return value is None or (isinstance(value, (int, float)) and math.isfinite(value))
