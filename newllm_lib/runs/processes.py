"""Our other processes: how they are started, and which is which.

A pid alone says little, since the system gives it to another process later.
"""

from __future__ import annotations

import calendar
import os
import subprocess
import sys
import time
from pathlib import Path

_PROGRAM = """import sys; sys.path[:] = {path!r}
from {module} import {name} as main
sys.exit(main(*sys.argv[1:]))"""


def command_of(module: str, *words: str, name: str = "main") -> list[str]:
    """The command that calls `name(*words)` of one of our modules in a process of its own.

    It never imports from the current folder first, as `python -m` and `python -c` do: a user's calendar.py
    would be run (`-P` is Python 3.11's).
    """
    return [sys.executable, "-c", _PROGRAM.format(path=_search_path(), module=module, name=name), *words]


def environment_of(**more: str) -> dict[str, str]:
    """This process's environment for another one of ours, without the current folder on PYTHONPATH."""
    places = [place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place]
    return os.environ | {"PYTHONPATH": os.pathsep.join(places)} | more


def _search_path() -> list[str]:
    """Where such a process finds its modules: as this one, but never in the current folder; where the package
    itself lies there (a clone), in that last."""
    home = str(Path(__file__).parents[2])
    try:
        here = os.path.realpath(os.getcwd())
    except FileNotFoundError:  # it was deleted
        here = home
    return [place for place in sys.path if place and os.path.realpath(place) != here] + [home]


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
