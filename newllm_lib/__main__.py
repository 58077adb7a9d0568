"""`newllm` and `python -m newllm_lib`."""

from __future__ import annotations

import os
import signal
import sys


def run() -> None:
    """Run the command line and leave with its exit code (0 done, 1 failed, 2 bad usage, 130 interrupted)."""
    from newllm_lib.cli import main

    signal.signal(signal.SIGTERM, _terminate)
    code = main(sys.argv[1:])
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read our output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def _terminate(number, frame):
    # SIGTERM ends a command as Ctrl-C does; training puts its own handler in place, which saves first.
    raise KeyboardInterrupt


if __name__ == "__main__":
    run()
