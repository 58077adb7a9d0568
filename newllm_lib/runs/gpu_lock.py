"""One run a GPU: two at once are slower than one after the other, and run out of memory together."""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from newllm_lib.console import say
from newllm_lib.errors import NewLLMError
from newllm_lib.runs.run import Run


class GpuBusy(NewLLMError):
    """Another run uses this GPU."""


@contextmanager
def gpu_for(run: Run, index: int = 0, force: bool = False) -> Iterator[None]:
    """Hold GPU `index` (as this process counts them) for `run` while the block runs.

    Raises:
        GpuBusy: another run holds it and `force` is not given; names that run.
    """
    # the lock is the system's: gone with the process, however that ends
    with ExitStack() as held:
        try:
            file = held.enter_context(open(_place(index), "a+"))
        except OSError as error:  # no run ends for that
            say(f"  {error.filename}: {error.strerror}. Whether another run uses this GPU is not known.")
        else:
            if _taken(file):
                _write_holder(file, run)
            elif not force:
                raise GpuBusy(_refusal(file, index, run))
        yield


def _write_holder(file, run: Run) -> None:
    holder = {"run": run.name, "path": str(run.path.absolute()), "pid": os.getpid()}
    with suppress(OSError):  # a full disk: then nobody reads whose it is
        os.truncate(file.fileno(), 0)
        os.write(file.fileno(), json.dumps(holder).encode())


def _taken(file) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a folder without locks
        return True
    return True


def _refusal(file, index: int, run: Run) -> str:
    file.seek(0)
    try:
        holder = json.loads(file.read())
        name, by = holder["run"], f"{holder['run']} (pid {holder['pid']})"
    except (ValueError, KeyError, TypeError):  # taken this instant
        name, by = "RUN", "another run"
    return (
        f"GPU {index} trains {by}: wait until it ends, stop it with `newllm runs stop {name}`, or train "
        f"{run.name} beside it with --force true."
    )


def _place(index: int) -> Path:
    """One file for each GPU of the machine and user, whatever this process calls it."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = [name.strip() for name in visible.split(",") if name.strip()]
    name = names[index] if index < len(names) else str(index)
    folder = Path(tempfile.gettempdir()) / f"newllm-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder / f"gpu-{''.join(c if c.isalnum() else '-' for c in name)}.lock"
