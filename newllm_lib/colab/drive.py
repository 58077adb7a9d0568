"""Runs on Google Drive (or in any other folder): whole copies that can be brought back and continued on another
machine.

A copy is made under a temporary name and renamed when every file is there at its full size, so what stands under a
run's name is always whole; until then the copy before it stays.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from newllm_lib.colab.environment import on_colab
from newllm_lib.console import Progress, say
from newllm_lib.errors import NewLLMError, UsageError
from newllm_lib.runs import WHOLE, Run, clean_leftovers, is_whole, missing_files, staged_directory

MOUNT_POINT = Path("/content/drive")
FOLDER = "new-llm"  # in MyDrive
_LEFT_OUT = {"run.lock", WHOLE}  # belong to this machine, or to one copy


def mount(mount_point: Path = MOUNT_POINT) -> Path:
    """Mount Google Drive (Colab asks for permission) and return `MyDrive/new-llm`, made if missing.

    Raises:
        UsageError: this is not Colab. NewLLMError: Drive was refused or cannot be written.
    """
    if not on_colab():
        raise UsageError("Google Drive can be mounted in Colab only: give a folder instead, as in save(run, 'backup').")
    from google.colab import drive

    try:
        drive.mount(str(mount_point))
        folder = mount_point / "MyDrive" / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
    except Exception as error:  # google.colab raises ValueError, MessageError and more, each with its own words
        cause = str(error).strip().split("\n")[0] or type(error).__name__
        raise NewLLMError(
            f"Google Drive could not be mounted ({cause}): allow it in the window that opens, and try again."
        ) from error
    return folder


def save(run: Run, folder: str | Path | None = None) -> Path:
    """Copy a run to `folder` (default: Drive) and return where it lies. A run that is being trained may be copied too.

    Raises:
        NewLLMError: the folder is full, gone or cannot be written; the copy before is kept.
    """
    folder = Path(folder) if folder else mount()
    files = _files(run.path)
    need = sum(file.stat().st_size for file in files)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        clean_leftovers(folder)
        free = shutil.disk_usage(folder).free
        if need > free:
            raise NewLLMError(
                f"{folder} has {_mib(free)} free and {run.name} needs {_mib(need)}: delete old runs there (and empty "
                "Drive's bin), then save again."
            )
        with staged_directory(folder / run.name) as staging:
            _copy(run.path, staging, files, f"saving {run.name}", need)
    except OSError as error:
        raise NewLLMError(
            f"{run.name} could not be saved to {folder} ({error.strerror}): the copy before is kept."
        ) from error
    say(f"Saved {run.name} to {folder / run.name} ({_mib(need)})")
    return folder / run.name


def saved(folder: str | Path | None = None) -> list[str]:
    """Names of the runs in `folder` (default: Drive) that are whole."""
    folder = Path(folder) if folder else mount()
    return sorted(p.name for p in folder.iterdir() if is_whole(p)) if folder.is_dir() else []


def restore(name: str, folder: str | Path | None = None, into: str | Path = "checkpoints") -> Run:
    """Bring a saved run back to `into/name`; the same form or command then continues it.

    Raises:
        UsageError: no such run there, or one of that name is here already. NewLLMError: the copy is not whole.
    """
    folder = Path(folder) if folder else mount()
    source, target = folder / name, Path(into) / name
    if target.exists():
        raise UsageError(f"{target} is here already and stays as it is: move it away to restore {name} from {folder}.")
    if folder.is_dir():
        clean_leftovers(folder)
    if not source.is_dir():
        there = ", ".join(saved(folder)) or "nothing"
        raise UsageError(f"There is no run {name!r} in {folder} (there is {there}).")
    if missing := missing_files(source):
        raise NewLLMError(
            f"{source} is not whole ({', '.join(missing[:3])} missing or cut short): it was not restored."
        )
    files = _files(source)
    with staged_directory(target) as staging:
        _copy(source, staging, files, f"restoring {name}", sum(file.stat().st_size for file in files))
    (target / WHOLE).unlink()  # a run grows; only its parts are sealed
    say(f"Restored {name} to {target}")
    return Run(target)


def _files(folder: Path) -> list[Path]:
    """The plain files of a run: no links, nothing hidden (half-written), and of saved folders only whole ones."""
    found = []
    for entry in sorted(folder.iterdir()):
        if entry.name in _LEFT_OUT or entry.name.startswith(".") or entry.is_symlink():
            continue
        if entry.is_file():
            found.append(entry)
        elif not (entry / WHOLE).exists() or is_whole(entry):
            found += [p for p in sorted(entry.rglob("*")) if p.is_file() and not p.is_symlink()]
    return found


def _copy(source: Path, target: Path, files: list[Path], label: str, total: int) -> None:
    """Copy `files` below `source` to the same places below `target`; each is checked by its size."""
    progress, done = Progress(label, total / 2**20, "MiB"), 0
    for file in files:
        copy = target / file.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        try:
            size = file.stat().st_size
            shutil.copyfile(file, copy)
        except FileNotFoundError:  # training has replaced this checkpoint meanwhile
            continue
        if copy.stat().st_size < size:  # a log may have grown
            raise NewLLMError(f"{copy} was cut short while copying ({copy.stat().st_size} of {size} bytes): try again.")
        done += size
        progress.update(done / 2**20)
    for folder in {target / file.parent.relative_to(source) for file in files if file.name == WHOLE}:
        if not is_whole(folder):  # replaced while it was copied: the newer one comes with the next copy
            shutil.rmtree(folder)


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"
