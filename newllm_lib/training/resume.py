"""Resuming: the recorded recipe, the checkpoint, and the rows and checkpoints that come after it."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from newllm_lib import console
from newllm_lib.errors import NewLLMError, UsageError
from newllm_lib.recipe import Recipe, load_recipe
from newllm_lib.runs import (
    Run,
    atomic_write_text,
    checkpoint_step,
    missing_files,
    replace_directory,
    resolve_path,
)
from newllm_lib.training.samples import forget_after as forget_samples_after


def match_recorded_recipe(recipe: Recipe, run: Run) -> Recipe:
    """The recipe as recorded. A run started on another kind of machine keeps that machine's preset.

    Raises:
        UsageError: the folder holds a run with another recipe.
    """
    if not run.recipe_path.is_file():
        return recipe
    recorded = Recipe.from_yaml(run.recipe_path)
    if recorded.sized_for != recipe.sized_for and recipe.origin and "sized_for" not in recipe.origin[1]:
        recipe = load_recipe(*recipe.origin, device_kind=recorded.sized_for)
    recipe.keep(recorded)
    different = recipe.differences(recorded)
    if different:
        free = free_name(run) if run.where == str(run.path) else f"{run.name}_2"  # of a copy on the hub
        raise UsageError(
            f"{run.where} holds a run with another recipe ({'; '.join(different)}: yours | its): give yours "
            f"its own folder, e.g. --output_dir {free}."
        )
    if recipe.resume == "never" and run.latest_checkpoint():
        raise UsageError(
            f"{run.path} holds a run already and --resume is never: choose another --output_dir, e.g. "
            f"{free_name(run)}."
        )
    return recipe


def free_name(run: Run) -> str:
    """A folder beside the run's that is not there yet, to propose."""
    number = 2
    while run.path.with_name(f"{run.name}_{number}").exists():
        number += 1
    return str(run.path.with_name(f"{run.name}_{number}"))


def checkpoint_to_resume(recipe: Recipe, run: Run) -> Path | None:
    """The newest whole checkpoint of the run, or the one that --resume names.

    Raises:
        UsageError: --resume names none.
        NewLLMError: a file of it is missing or cut short.
    """
    if recipe.resume in ("auto", "never"):
        return run.latest_checkpoint()
    wanted = os.path.normpath(resolve_path(recipe.resume))
    if wanted == "last":
        if run.latest_checkpoint() is None:
            raise UsageError(
                f"--resume last: {run.path} has no checkpoint yet. Train it first, without --resume."
            )
        return run.latest_checkpoint()
    name = os.path.basename(wanted)
    folder, elsewhere = run.path / name, os.path.dirname(wanted)
    other_run = elsewhere and os.path.realpath(elsewhere) != os.path.realpath(run.path)
    if not re.fullmatch(r"checkpoint-\d+", name) or other_run or not folder.is_dir():
        there = ", ".join(p.name for p in run.checkpoints()) or "none"
        raise UsageError(f"--resume {recipe.resume}: name a checkpoint of {run.path} ({there}), or use auto.")
    missing = missing_files(folder)
    if missing:
        raise NewLLMError(
            f"{folder} is not whole ({', '.join(missing[:3])} missing or cut short): use --resume auto."
        )
    return folder


def truncate_metrics(run: Run, checkpoint) -> None:
    """Drop rows of `metrics.jsonl` past the checkpoint: those steps are trained again."""
    step = checkpoint_step(checkpoint) if checkpoint else -1  # a start's own figures have step 0
    forget_samples_after(run, step)
    if not run.metrics_path.exists():
        return
    rows = [row for row in run.metrics() if row["step"] <= step]
    atomic_write_text(run.metrics_path, "".join(json.dumps(row) + "\n" for row in rows))


def retire_newer_checkpoints(run: Run, checkpoint) -> None:
    """Rename checkpoints newer than the resumed one, so that they are not taken for its future."""
    for newer in run.checkpoints():
        if checkpoint is not None and checkpoint_step(newer) > checkpoint_step(checkpoint):
            aside = newer.with_name(f"superseded-{newer.name}")
            replace_directory(newer, aside)
            console.say(f"  {newer.name} is newer than what is resumed: kept as {aside.name}")
