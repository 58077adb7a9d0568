"""Starts the process that keeps a run's mirror (`daemon`), tells how it does, and waits for it."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from newllm_lib.errors import without_secrets
from newllm_lib.runs.atomic import atomic_write_bytes, may_wait
from newllm_lib.runs.lock import INHERITED, is_held
from newllm_lib.runs.ownership import read_json
from newllm_lib.runs.processes import command_of, environment_of
from newllm_lib.runs.run import HUB, Run

STATUS = "mirror.json"  # in the run's folder: what the process does
LOCK = "mirror.lock"  # likewise: held by it
START = "mirror.start"  # which start of a mirror was the last one
STARTS_WITHIN = 60.0  # seconds; a mirror that said nothing by then never started
GIVE_UP_AFTER = 600.0  # seconds of trying when training has ended
_MODULE = "newllm_lib.runs.mirror.daemon"
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
    with may_wait(run.path / START):
        atomic_write_bytes(run.path / START, repr(since).encode(), durable=False)
    folder = str(folder if str(folder).startswith(HUB) else Path(folder).absolute())
    note(run, folder=folder, state="starting", message="", pid=None, began=since)
    environment = environment_of()
    environment.pop(INHERITED, None)
    command = command_of(_MODULE, str(run.path.absolute()), folder, repr(since))
    null = subprocess.DEVNULL
    try:
        subprocess.Popen(
            command, stdin=null, stdout=null, stderr=null, start_new_session=True, env=environment
        )
    except OSError as error:  # no process can be made now; it is tried again while the run trains
        note(run, state="trouble", message=f"The copying process did not start ({error.strerror})")
    return since


def mirror_status(run: Run) -> dict | None:
    """`folder`, `state` (starting, current, trouble, done or failed), `message`, `step` (what is there to
    continue from), `updated`; None for a run that is not mirrored. A mirror that died without a word has the
    state "dead"."""
    status = read_mirror_json(run)
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
    found = read_mirror_json(run) or {"step": None}
    text = without_secrets(json.dumps({**found, **changes, "updated": time.time()}))
    with may_wait(run.path / STATUS):  # a deleted run stays deleted
        atomic_write_bytes(run.path / STATUS, text.encode(), durable=False, parents=False)


def read_mirror_json(run: Run) -> dict | None:
    """mirror.json, with values of the right kinds; None where there is none, or something else."""
    status = read_json(run.path / STATUS)
    if not isinstance(status, dict):
        return None
    return {
        key: status[key] if isinstance(status.get(key), kind) else empty
        for key, (kind, empty) in _FIELDS.items()
    }
