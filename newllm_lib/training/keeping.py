"""A run's second place (`mirror_dir`): brought back from there before training, kept up to date during it."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers import TrainerCallback

from newllm_lib import console
from newllm_lib.errors import NewLLMError, UsageError
from newllm_lib.recipe import Recipe
from newllm_lib.runs import Run, bring_back, is_ahead, mirror_status, start_mirror, wait_for_mirror


def copy_of(recipe: Recipe, run: Run) -> Run | None:
    """The run as it stands in `mirror_dir`; None if it is not mirrored.

    Raises:
        UsageError: there is no such folder.
    """
    if not recipe.mirror_dir:
        return None
    if not Path(recipe.mirror_dir).is_dir():
        raise UsageError(f"--mirror_dir {recipe.mirror_dir} is no folder: make it, or mount Drive first.")
    if run.path.absolute() == Path(recipe.mirror_dir).absolute() / run.name:
        raise UsageError(f"--mirror_dir {recipe.mirror_dir} is where the run lies itself: choose a folder elsewhere.")
    return Run(Path(recipe.mirror_dir) / run.name)


def continue_from_copy(copy: Run | None, recipe: Recipe, run: Run) -> None:
    """Where the copy is further than the folder here (a new machine, say), make the folder what the copy is.

    A checkpoint asked for by name is taken from here. Call it with the run's lock held.
    """
    if copy is not None and recipe.resume == "auto" and is_ahead(copy, run):
        console.say(f"{run.name} is in {copy.path.parent} already, further than here: brought back and continued")
        bring_back(copy, run)


@contextmanager
def mirrored(recipe: Recipe, run: Run) -> Iterator[None]:
    """Copy the run while the block runs; afterwards wait until all is there. Enter it before the run's lock is taken."""
    if not recipe.mirror_dir:
        yield
        return
    begun = _Begin(recipe, run)
    try:
        yield begun
    finally:
        if begun.started:
            wait_for_mirror(run, console.say)


class _Begin:
    """Starts the mirror once the lock is held: it ends when it finds the run unlocked."""

    def __init__(self, recipe: Recipe, run: Run):
        self.recipe, self.run, self.started = recipe, run, False

    def __call__(self) -> None:
        start_mirror(self.run, self.recipe.mirror_dir)
        self.started = True
        console.say(f"  copied to {self.recipe.mirror_dir} while it trains")


class MirrorNews(TrainerCallback):
    """Says in the log when the mirror is in trouble, and when it is well again; once each."""

    def __init__(self, run: Run):
        self.run, self.told = run, ""

    def on_log(self, args, state, control, **kwargs):
        status = mirror_status(self.run)
        if status is None or status["state"] == "starting" or status["message"] == self.told:
            return
        self.told = status["message"]
        console.say(f"  Mirror: {self.told or 'all is copied again'}")


@contextmanager
def only_data_is_read(folder: Path | None) -> Iterator[None]:
    """Say in one line that a checkpoint's state holds a program; torch refuses to run it."""
    try:
        yield
    except pickle.UnpicklingError as error:
        cause = next((line.strip() for line in str(error).splitlines() if "Unsupported" in line or "not an allowed" in line), "")
        raise NewLLMError(
            f"The state in {folder} is no plain data ({cause[:160] or 'a pickle of something else'}): refused. Take another "
            "checkpoint with --resume, or copy it again from where it was trained."
        ) from error
