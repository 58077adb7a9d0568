"""The next command to type, as it works from the folder where the user is."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import sysconfig
from pathlib import Path

from newllm_lib.runs import Run, list_runs


def command(*words: str) -> str:
    """`newllm` with these words, as the user can type it.

    With the environment's path where `newllm` alone is not found, and with a `cd` in front where
    colab_bootstrap.sh was started from another folder.
    """
    line = " ".join([_program(), *(shlex.quote(word) for word in words)])
    started_in = os.environ.get("NEWLLM_STARTED_IN")
    if started_in and Path(started_in).resolve() != Path.cwd():
        return f"cd {shlex.quote(str(Path.cwd()))} && {line}"
    return line


def word_for(run: Run) -> str:
    """What to call a run in a command: its name if that is enough to find it, else its folder."""
    path = str(run.path) if not str(run.path).startswith("-") else os.path.join(".", run.path)
    for known in list_runs():
        if known.name == run.name and not run.name.startswith("-"):  # that would be read as a flag
            return run.name if known.path.resolve() == run.path.resolve() else path
    return path


def _program() -> str:
    ours = Path(sysconfig.get_path("scripts")) / "newllm"
    if not ours.exists():  # the package is used without being installed
        return f"{sys.executable} -m newllm_lib"
    found = shutil.which("newllm")
    if found and os.path.samefile(found, ours):
        return "newllm"
    return str(ours.relative_to(Path.cwd())) if ours.is_relative_to(Path.cwd()) else str(ours)
