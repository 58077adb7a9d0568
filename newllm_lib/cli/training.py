"""`newllm train` and `newllm demo`, in the foreground or as a process of their own."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from newllm_lib import console, lazy_dynamo, runs
from newllm_lib.cli.hints import command, word_for
from newllm_lib.console import duration, printable, say
from newllm_lib.device import guess_kind
from newllm_lib.errors import Interrupted, NewLLMError, UsageError
from newllm_lib.lazy import without
from newllm_lib.preload import (
    as_one_process,
    distributions_by_name,
    read_ahead,
    read_models_once,
    without_collecting,
)
from newllm_lib.recipe import Recipe, load_recipe, overrides, refuse_without_effect
from newllm_lib.runs import Run


def train(arguments: argparse.Namespace) -> dict | int:
    """Train a recipe, continuing its run if it was stopped before."""
    console.go_on_without_reader()
    compiling = _begin_at_once(arguments, arguments.name)
    recipe = _recipe(arguments, arguments.name)
    refuse_without_effect(recipe.origin[1], recipe)
    if arguments.background:
        run = Run(recipe.run_path())
        say(f"{run.name}: starting in the background; everything it says is in {run.log}")
        return _start_in_background(arguments, run, [run])
    what = recipe.base if recipe.task != "train" else recipe.model
    say(f"Training {what} with recipe {recipe.recipe} in {recipe.run_path()} (Ctrl-C saves and stops)")
    run = _trainer(recipe, compiling, arguments.began)(recipe)
    say(f"Next: {command('evaluate', word_for(run))}   or   {command('chat', word_for(run))}")
    return {"run": str(run.path), "status": runs.read_status(run)} if arguments.json else 0


# What the demo's second model has of its own: attention carries no state, whatever the flags say of New-LLM.
BASELINE = {"model": "tiny_gpt2", "carry_state": False}


def demo(arguments: argparse.Namespace) -> dict | int:
    """The main job: New-LLM and TinyGPT2 on the same data, then their comparison."""
    console.go_on_without_reader()
    compiling = _begin_at_once(arguments, "demo")
    ours = _recipe(arguments, "demo")
    baseline = _recipe(arguments, "demo", **BASELINE)
    refuse_without_effect(ours.origin[1], ours, baseline)
    job = Run(ours.output_dir or ours.run_path().with_name(ours.run_name.removeprefix("new_llm_")))
    if ours.output_dir:  # one folder for the whole demo, a run each inside
        ours = _recipe(arguments, "demo", output_dir=str(job.path / ours.run_name))
        baseline = _recipe(arguments, "demo", output_dir=str(job.path / baseline.run_name), **BASELINE)
    both = [Run(recipe.run_path()) for recipe in (ours, baseline)]
    _refuse_others_folders(ours, job, both)
    say(f"Demo: trains {both[0].name} and {both[1].name} on real dialogues, then compares them in {job.path}")
    if arguments.background:
        return _start_in_background(arguments, job, both)
    with _recorded(job):
        # What the two say goes to their own logs too, also when this process's output is the demo's log.
        os.environ.pop(runs.BACKGROUND, None)
        say(f"  {_expected_time(ours, baseline)}; Ctrl-C saves and stops, the same command continues")
        run_training = _trainer(ours, compiling, arguments.began)
        from newllm_lib.evaluation.compare.compare import compare

        for recipe in (ours, baseline):
            run_training(recipe)
        result = compare(both[0], both[1], output_dir=job.path)
    if ours.mirror_dir:
        _keep_comparison(job, ours.mirror_dir)
    say(f"Next: {command('chat', word_for(both[0]))}")
    return result if arguments.json else 0


def _refuse_others_folders(recipe: Recipe, job: Run, both: list[Run]) -> None:
    """Raise UsageError, before anything is made, where others' files are in the way of the demo."""
    if job.recipe_path.exists():
        raise UsageError(
            f"{job.path} holds recipe.yaml, which no demo of ours wrote: give another --output_dir."
        )
    for run in (job, *both):
        runs.check_shared(run.path, "run", "--output_dir")
        if recipe.mirror_dir and not recipe.mirror_dir.startswith(runs.HUB):
            runs.check_shared(Path(recipe.mirror_dir) / run.name, "mirror", "--mirror_dir")


def _begin_at_once(arguments: argparse.Namespace, name: str) -> subprocess.Popen | None:
    """What goes on by itself while this process imports: the packages' files are read, the data prepared, and
    kernels compiled by the process that is returned (None: by nobody).
    """
    from newllm_lib.data import ahead
    from newllm_lib.training.precompile_process import start_process

    if arguments.background:  # the process that trains does it all
        return None
    read_ahead()
    keys = overrides(arguments)
    ahead.start(name, keys)
    return start_process(name, keys)


def _trainer(recipe: Recipe, compiling: subprocess.Popen | None, began: float) -> Callable[[Recipe], Run]:
    """`training.train`; what compiles for a GPU starts before its imports, not after them.

    Args:
        began: when the command did, by `time.monotonic`.
    """
    from newllm_lib.training.compile import needs_no_compiler
    from newllm_lib.training.precompile_process import is_known_ahead

    compiles = recipe.compile in ("on", "graphs")
    compiles |= recipe.compile == "auto" and not needs_no_compiler(recipe)
    with without_collecting(), without("sklearn"), distributions_by_name():
        from newllm_lib.ops import precompile

        if compiling is not None and is_known_ahead(recipe):
            precompile.wait_for_process(compiling)
        precompile.start(compiles)
        read_models_once()
        if guess_kind() == "cpu":  # nobody has tried it on a GPU
            lazy_dynamo.install()
            as_one_process()
        from newllm_lib.training import run, timetable  # noqa: F401
    from newllm_lib.training import train

    timetable.command_began(began)

    return train


def _recipe(arguments: argparse.Namespace, name: str, **forced: object) -> Recipe:
    return load_recipe(name, {**overrides(arguments), **forced})


def _expected_time(*recipes: Recipe) -> str:
    from newllm_lib.device import probe
    from newllm_lib.training.estimate import estimate

    device = probe()
    needs = [estimate(recipe, device) for recipe in recipes]
    hours = [need["hours_estimate"] for need in needs]
    memory = f"at most {max(need['memory_estimate_gib'] for need in needs):.1f} GiB"
    if None in hours:
        return f"on {device.name}, {memory}; how long is known when the data is read"
    return f"on {device.name} about {duration(3600 * sum(hours))} of training, {memory}"


@contextmanager
def _recorded(job: Run) -> Iterator[None]:
    """Hold the job's lock and keep its status true."""
    with runs.RunLock(job):
        runs.write_status(job, state="running", message="training two models")
        try:
            yield
        except (Interrupted, KeyboardInterrupt):
            runs.write_status(job, state="interrupted", message="saved; the same command continues")
            raise
        except BaseException as error:
            runs.write_status(job, state="failed", message=str(error).partition("\n")[0])
            raise
        runs.write_status(job, state="done", message="finished")


def _keep_comparison(job: Run, folder: str) -> None:
    """Copy the job's own files (comparison, log) beside its runs, which are mirrored already."""
    mirror = runs.mirror_in(job, folder)
    try:
        mirror.copy()
    except NewLLMError as error:  # what was asked for is done, and stands in the job's folder
        say(f"The comparison was not copied: {error}")
    else:
        say(f"The comparison is copied to {mirror.where}")


def _start_in_background(arguments: argparse.Namespace, job: Run, trained: list[Run]) -> int:
    """Start this same command as a process of its own, show what it says until the first loss or its end."""
    words = [word for word in arguments.argv if word not in ("--background", "--foreground")]
    start = job.log.stat().st_size if job.log.exists() else 0
    before = {run.path: _losses(run) for run in trained}
    pid = runs.start_background(runs.command_of("newllm_lib.__main__", *words, name="run"), job)
    try:
        loss = _watch_until_loss(job, start, trained, before)
    except KeyboardInterrupt:  # only our looking on is interrupted: the run is a session of its own
        loss = "(not waited for)"
    if loss is None:
        return _ended(pid, job)
    name = word_for(job)
    say(f"\nTraining goes on in the background (pid {pid}). First loss {loss}")
    say(f"  follow   {command('runs', 'logs', name, '--follow')}   (or: tail -f {job.log.absolute()})")
    say(f"  state    {command('runs', 'status', name)}   (GPU: nvidia-smi)")
    say(f"  stop     {command('runs', 'stop', name)}   (saves first)")
    say(f"  resume   {command(*words)}   (add --background; the same after a disconnect)")
    return 0


def _losses(run: Run) -> list[tuple]:
    """What was logged of a run's loss: step, loss, and when (by a clock that may be set back)."""
    return [(row["step"], row["loss"], row.get("time")) for row in run.metrics() if "loss" in row]


def _watch_until_loss(job: Run, start: int, trained: list[Run], before: dict[Path, list]) -> str | None:
    """Show the job's log from byte `start` on as it grows, until a run logs a loss; returns that as text.

    None if the job ended before. What was logged `before`, by folder, does not count.
    """
    pieces = runs.follow(job, start)
    for text in pieces:
        _show(text)
        for run in trained:
            if new := [row for row in _losses(run) if row not in before[run.path]]:
                time.sleep(0.5)  # the line in the log comes just after the row
                _show(next(pieces, ""))
                return f"{new[0][1]:.3f} at step {new[0][0]} of {run.name}"
    return None


def _ended(pid: int, job: Run) -> int:
    """The exit code of a job that ended before its first loss (finished already, or failed)."""
    while (code := runs.exit_code(pid)) is None:
        time.sleep(0.05)
    if code == 0:
        return 0
    print(f"newllm: {job.name} ended with exit code {code}; its log is {job.log.absolute()}", file=sys.stderr)
    return code if code > 0 else 1  # negative: killed by that signal


def _show(text: str) -> None:
    if text:
        print(printable(text), end="", flush=True)
