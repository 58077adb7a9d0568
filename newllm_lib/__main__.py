"""`newllm` and `python -m newllm_lib`."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


def run(*words: str) -> None:
    """Run `words` (default: the command line) and leave with its exit code (see `cli`)."""
    began = time.monotonic() - _age()
    from newllm_lib import console
    from newllm_lib.cli import main

    for number in ENDING:
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
            signal.signal(number, _terminate)
    code = main(list(words) or sys.argv[1:], began)
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except (OSError, ValueError):  # whoever read our output has left, or it is full
            console.silence(stream)
    sys.exit(code)


def _age() -> float:
    """Seconds since this process was started, with Python's own start; 0 where the system tells nothing."""
    try:
        started = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError, IndexError):
        return 0.0
    return max(0.0, age)


def _terminate(number, frame):
    # SIGTERM, or the terminal's going, ends a command as Ctrl-C does; training's own handler saves first.
    raise KeyboardInterrupt


if __name__ == "__main__":
    run()
