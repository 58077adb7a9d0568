"""A run's second place (`mirror_dir`): brought back from there before training, kept up to date during it."""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from newllm_lib import console
from newllm_lib.errors import NewLLMError, UsageError
from newllm_lib.recipe import Recipe
from newllm_lib.runs import HUB, Run, check_shared, mirror


def mirror_of(recipe: Recipe, run: Run) -> Run | None:
    """The run as it stands in `mirror_dir`; None if it is not mirrored.

    Raises:
        UsageError: there is no such folder, or what it holds under the run's name is no copy of one.
    """
    if not recipe.mirror_dir:
        return None
    if recipe.mirror_dir.startswith(HUB):
        return mirror.copy_on_hub(recipe.mirror_dir, run.name, console.say)
    if not Path(recipe.mirror_dir).is_dir():
        raise UsageError(f"--mirror_dir {recipe.mirror_dir} is no folder: make it, or mount Drive first.")
    if run.path.absolute() == Path(recipe.mirror_dir).absolute() / run.name:
        raise UsageError(
            f"--mirror_dir {recipe.mirror_dir} is where the run lies itself: choose a folder elsewhere."
        )
    copy = Run(Path(recipe.mirror_dir) / run.name)
    check_shared(copy.path, "mirror", "--mirror_dir")
    return copy


def continue_from_copy(copy: Run | None, recipe: Recipe, run: Run) -> bool:
    """Claim the copy for this session, and where it is ahead of this folder (on a new machine), restore it;
    whether it was.

    A checkpoint asked for by name is taken from here. Call it with the run's lock held.
    """
    if copy is None:
        return False
    on_hub = isinstance(copy, mirror.HubCopy)
    try:
        others = copy.claim(run) if on_hub else mirror.claim_copy(run, copy.path.parent)
        if others:
            console.say(f"{copy.where} was written by a session on {others}: it stops, and this one goes on")
    except UsageError:
        raise
    except Exception as error:
        # as soon as the place can be written, the process that copies claims it, and says so
        if not (on_hub or isinstance(error, NewLLMError | OSError)):
            raise
    if recipe.resume != "auto" or not mirror.is_ahead(copy, run):
        return False
    console.say(
        f"{run.name} is in {os.path.dirname(copy.where)}, further than here: it is brought back and continued"
    )
    copy.bring_back(run) if on_hub else mirror.bring_back(copy, run)
    return True


class MirroredRun:
    """`with MirroredRun(recipe, run) as mirror, RunLock(run): mirror.begin()` copies the run from now on;
    the block's end, when the lock is free again, waits until all is there."""

    def __init__(self, recipe: Recipe, run: Run):
        self.recipe, self.run, self.since = recipe, run, None

    def __enter__(self) -> MirroredRun:
        return self

    def begin(self) -> None:
        if self.recipe.mirror_dir:
            self.since = mirror.start_mirror(self.run, self.recipe.mirror_dir)

    def __exit__(self, *error) -> None:
        if self.since is not None:
            mirror.wait_for_mirror(self.run, console.say, self.since)


class MirrorLog:
    """Says in the log when the mirror is in trouble, and when it is well again; once each. Where its process
    died, it is started again, at most once in `every` seconds.
    """

    def __init__(self, run: Run, every: float = 60.0):
        self.run, self.told, self.every, self.started = run, "", every, float("-inf")

    def look(self) -> None:
        """Say what has changed since the last look."""
        status = mirror.mirror_status(self.run)
        if status is None or status["state"] == "starting":
            return
        if status["state"] == "dead" and time.monotonic() - self.started > self.every:
            self.started = mirror.start_mirror(self.run, status["folder"])
        if status["message"] == self.told:
            return
        self.told = status["message"]
        console.say(f"  Mirror: {self.told or 'all is copied again'}")


@contextmanager
def plain_unpickling_errors(folder: Path | None) -> Iterator[None]:
    """Say in one line that a checkpoint's state holds a program; torch refuses to run it."""
    try:
        yield
    except pickle.UnpicklingError as error:
        cause = next(
            (
                line.strip()
                for line in str(error).splitlines()
                if "Unsupported" in line or "not an allowed" in line
            ),
            "",
        )
        raise NewLLMError(
            f"The state in {folder} is no plain data ({cause[:160] or 'a pickle of something else'}): "
            "refused. Take another checkpoint with --resume, or copy it again from where it was trained."
        ) from error
