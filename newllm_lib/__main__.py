"""`newllm` and `python -m newllm_lib`."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path


def run(*words: str) -> None:
    """Run `words` (default: the command line) and leave with its exit code (see `cli`)."""
    began = time.monotonic() - _age()
    from newllm_lib.cli import main

    signal.signal(signal.SIGTERM, _terminate)
    code = main(list(words) or sys.argv[1:], began)
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read our output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
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
    # SIGTERM ends a command as Ctrl-C does; training puts its own handler in place, which saves first.
    raise KeyboardInterrupt


if __name__ == "__main__":
    run()
