"""How busy the machine is: the GPU's use and memory, or the process's memory where there is no GPU."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

EVERY = 5.0  # seconds between two looks
_QUERY = [
    "nvidia-smi",
    "--query-gpu=utilization.gpu,memory.used,memory.total",
    "--format=csv,noheader,nounits",
]


class GpuMonitor:
    """Asked as often as one likes; looks every few seconds."""

    def __init__(self):
        self._at, self._text = -EVERY, ""

    def describe(self, pid: int | None) -> str:
        """`GPU 97 %, 5.1 of 14.7 GiB` or `2.3 GiB of host memory`; empty where neither is known.

        Args:
            pid: the process that trains.
        """
        if time.monotonic() - self._at >= EVERY:
            self._at, self._text = time.monotonic(), _gpu() or _host(pid)
        return self._text


def _gpu() -> str:
    if shutil.which(_QUERY[0]) is None:
        return ""
    try:
        answer = subprocess.run(_QUERY, capture_output=True, text=True, timeout=5)
        use, used, total = (float(part) for part in answer.stdout.splitlines()[0].split(","))
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError):
        # no GPU behind the command, or one that keeps silent
        return ""
    return f"GPU {use:.0f} %, {used / 1024:.1f} of {total / 1024:.1f} GiB"


def _host(pid: int | None) -> str:
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return ""
    kib = next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:")), 0)
    # a process that has just begun has read nothing yet
    return f"{kib / 2**20:.1f} GiB of host memory" if kib > 2**20 / 20 else ""
