"""Google Drive (or another folder) as runs' second place: mount it, save a run there, bring one back.

While a run trains, `mirror_dir` keeps its copy up to date by itself (`newllm_lib.runs.mirror.sync`); the
notebooks' forms set it.
"""

from __future__ import annotations

from pathlib import Path

from newllm_lib import runs
from newllm_lib.colab.environment import on_colab
from newllm_lib.console import say
from newllm_lib.errors import NewLLMError, UsageError
from newllm_lib.runs import Mirror, Run

MOUNT_POINT = Path("/content/drive")
FOLDER = "new-llm"  # in MyDrive


def mount(mount_point: Path = MOUNT_POINT) -> Path:
    """Mount Google Drive (Colab asks for permission) and return `MyDrive/new-llm`, made if missing.

    Raises:
        UsageError: this is not Colab.
        NewLLMError: Drive was refused or cannot be written.
    """
    if not on_colab():
        raise UsageError(
            "Google Drive can be mounted in Colab only: give a folder instead, as in save(run, 'backup')."
        )
    from google.colab import drive

    try:
        drive.mount(str(mount_point))
        folder = mount_point / "MyDrive" / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
    except Exception as error:
        # google.colab raises ValueError, MessageError and more, each with its own words
        cause = str(error).strip().split("\n")[0] or type(error).__name__
        raise NewLLMError(
            f"Google Drive could not be mounted ({cause}): allow it in the window that opens, and try again; "
            "without Drive clear its field in the form."
        ) from error
    return folder


def save(run: Run, folder: str | Path | None = None) -> Path:
    """Update a run's copy in `folder` (default: Drive), also while it trains; returns its place.

    Raises:
        NewLLMError: the folder is full, gone or cannot be written; what was whole there still is.
    """
    folder = _made(folder) if folder else mount()
    Mirror(run, folder).copy()
    say(f"Saved {run.name} to {folder / run.name}")
    return folder / run.name


def saved(folder: str | Path | None = None) -> list[str]:
    """Names of the runs in `folder` (default: Drive) that can be brought back."""
    return runs.saved(folder or mount())


def restore(name: str, folder: str | Path | None = None, into: str | Path = "checkpoints") -> Run:
    """Bring a saved run back to `into/name`; the same form or command then continues it.

    Raises:
        UsageError: no such run there, or one of that name is here already.
        NewLLMError: the copy is damaged, or holds what is not read from elsewhere.
    """
    return runs.restore(name, folder or mount(), into)


def _made(folder: str | Path) -> Path:
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NewLLMError(f"{folder} cannot be made ({error.strerror}): choose another folder.") from error
    return Path(folder)
