"""Bring a run back from the folder that a mirror filled."""

from __future__ import annotations

from pathlib import Path

from newllm_lib.console import Progress, say
from newllm_lib.errors import NewLLMError
from newllm_lib.runs.atomic import (
    clean_leftovers,
    explained,
    is_complete,
    mark_folder,
    remove_directory,
)
from newllm_lib.runs.mirror.copy import DamagedCopy, Replaced, copy_folder, copy_plain, recorded_sums
from newllm_lib.runs.mirror.owner import CopyOwner
from newllm_lib.runs.ownership import (
    LOCAL_FILES,
    RUN_FILES,
    is_part,
    read_mark,
)
from newllm_lib.runs.run import Run, checkpoint_step, link_model
from newllm_lib.runs.security import check_checkpoint_dir, check_name


def is_ahead(copy: Run, run: Run) -> bool:
    """Whether the copy can be continued from a later step than the run here."""
    there, here = copy.latest_checkpoint(), run.latest_checkpoint()
    return there is not None and (here is None or checkpoint_step(there) > checkpoint_step(here))


def bring_back(copy: Run, run: Run) -> None:
    """Make `run` what `copy` is, each part atomically, so a kill in between loses nothing.

    Raises:
        NewLLMError: damaged, or it holds what is not read from elsewhere.
    """
    while True:
        mark = read_mark(copy.path)
        bring_all(copy, run)
        if read_mark(copy.path) == mark:
            break
        say(f"Another session took {copy.path} while it was read: it is read again.")
    CopyOwner(run, copy).adopt()


def bring_all(copy: Run, run: Run) -> None:
    """As `bring_back`, of a copy that nobody changes meanwhile."""
    folders = [p for p in sorted(copy.path.iterdir()) if _is_part(p)]
    checkpoints = sorted((p for p in folders if p in copy.checkpoints()), key=checkpoint_step, reverse=True)
    ordered = [
        p for p in folders if p not in checkpoints
    ] + checkpoints  # the newest checkpoint makes it a run to continue
    for part in ordered:
        check_checkpoint_dir(part)
    run.path.mkdir(parents=True, exist_ok=True)
    mark_folder(run.path, "run", run.name)
    clean_leftovers(run.path)
    for file in sorted(copy.path.iterdir()):
        if file.name in RUN_FILES and file.is_symlink():
            raise NewLLMError(f"{file} is a link: refused. Delete it, and restore again.")
        if file.name in RUN_FILES and file.is_file() and file.name not in LOCAL_FILES:
            check_name(file)
            if file.name == run.log.name and run.log.is_file():
                _put_before(file, run.log)
            else:
                copy_plain(file, run.path / file.name)
    progress = Progress(f"restoring {run.name}", len(ordered), "folders")
    for number, part in enumerate(ordered):
        _bring_part(part, run)
        progress.update(number + 1)
    if checkpoints and not run.checkpoints():
        if copy.checkpoints() != checkpoints[::-1]:  # whoever writes there dropped them, for newer ones
            return bring_all(copy, run)
        raise NewLLMError(f"No checkpoint in {copy.path} is undamaged: nothing can be continued from it.")
    for other in run.checkpoints() if checkpoints else ():  # of another session: a folder is of one
        if other.name not in {part.name for part in checkpoints}:
            remove_directory(other)
    newest = run.latest_checkpoint()
    if newest:
        link_model(newest, run.last)


def _put_before(earlier: Path, log: Path) -> None:
    """Put the earlier log before the present one, in place: a background run writes into this very file."""
    then, now = earlier.read_bytes(), log.read_bytes()
    if not now.startswith(then):  # else an attempt that was killed has done it
        with explained(log), open(log, "r+b") as file:
            file.write(then + now)


def _bring_part(part: Path, run: Run) -> None:
    try:
        copy_folder(part, run.path / part.name, check=recorded_sums(part) or {})
    except DamagedCopy as error:  # an older checkpoint may still be good
        say(str(error))
    except (Replaced, FileNotFoundError):
        # a mirror that is still at work there has newer ones, and dropped it
        say(f"{part} went while it was read: left out.")
    except OSError as error:
        raise NewLLMError(
            f"{part} could not be read ({error.strerror}): try again when the disk is back."
        ) from error


def _is_part(folder: Path) -> bool:
    return is_part(folder) and folder.is_dir() and not folder.is_symlink() and is_complete(folder)
