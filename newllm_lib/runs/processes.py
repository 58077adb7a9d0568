"""Which process is which: a pid alone says little, since the system gives it to another process later."""

from __future__ import annotations

import calendar
import os
import subprocess
import time
from pathlib import Path


def started_at(pid: int) -> int | None:
    """When process `pid` started, in the system's ticks; None if there is none, or only a zombie."""
    if Path("/proc/self/stat").exists():
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        except OSError:  # no such process
            return None
        fields = stat.rpartition(")")[2].split()  # the command's name, in brackets, may hold spaces
        return None if fields[0] in "ZX" else int(fields[19])
    return _started_at_by_ps(pid)


def is_alive(pid: int, start: int | None) -> bool:
    """Whether the very process that had `pid` and started at `start` still runs."""
    return start is not None and started_at(pid) == start


def identity() -> str:
    """`<pid>-<start>` of this process, unique on this machine until it boots again."""
    return f"{os.getpid()}-{started_at(os.getpid())}"


def _started_at_by_ps(pid: int) -> int | None:
    """The same where there is no /proc (macOS), to the second."""
    answer = subprocess.run(
        ["ps", "-o", "stat=,lstart=", "-p", str(pid)],
        capture_output=True,
        text=True,
        env={**os.environ, "LC_ALL": "C"},
    )
    state, _, start = answer.stdout.strip().partition(" ")
    if answer.returncode or not start or state.startswith("Z"):
        return None
    return calendar.timegm(time.strptime(start.strip(), "%a %b %d %H:%M:%S %Y"))
