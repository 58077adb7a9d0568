"""One of the processes that `launch` starts: python -m newllm_lib.training.distributed.worker
RECIPE.yaml new|finished
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import traceback
from pathlib import Path

from newllm_lib.errors import NewLLMError
from newllm_lib.recipe import Recipe

_DIES_WITH_PARENT = 1  # Linux's PR_SET_PDEATHSIG


def main(path: str, before: str) -> int:
    """Train the recipe; the exit code. Errors go to the launcher, which prints them."""
    _end_with_the_launcher()
    signal.signal(signal.SIGTERM, _terminate)
    try:
        from newllm_lib.training import train

        train(Recipe.from_yaml(Path(path)), was_finished=before == "finished")
    except NewLLMError as error:
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except Exception:  # a mistake of ours: the launcher's one line would not be enough
        traceback.print_exc()
        return 1
    finally:  # it ends by itself now: a KeyboardInterrupt while Python goes would only be printed
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return 0


def _terminate(number, frame):
    raise KeyboardInterrupt


def _end_with_the_launcher() -> None:
    """The launcher holds the run's lock: when it is killed, nobody may go on writing."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(_DIES_WITH_PARENT, signal.SIGKILL)
    launcher = os.environ.get("NEWLLM_LAUNCHED", "")
    if launcher and os.getppid() != int(launcher):  # it died before this line
        os._exit(1)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
