"""Training from a cell, in a process that outlives the cell, the kernel's interrupts and the browser."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from newllm_lib import runs
from newllm_lib.colab import buttons, drive, live_widgets, secrets
from newllm_lib.colab.environment import hear_no_more, on_colab, shell
from newllm_lib.colab.forms import Settings
from newllm_lib.colab.live import watch
from newllm_lib.console import say
from newllm_lib.errors import Interrupted, NewLLMError
from newllm_lib.recipe import Recipe
from newllm_lib.runs import HUB, AlreadyRunning, Run


@dataclass(frozen=True)
class Started:
    """A training that goes on by itself: its run, and its process if this kernel started it."""

    run: Run
    pid: int | None = None


_started: dict[Path, Started] = {}  # what this kernel has started, by the run's folder


def train(settings: Settings, every: float = 2.0, **more) -> Run:
    """Train what the form chose and show it; run the cell again to look again, or to continue a stopped run.

    In a notebook the cell ends at once and the picture goes on (`wait` waits); elsewhere it returns when
    training has ended.

    Args:
        every: seconds between two looks.
        more: recipe keys on top of the form (`model="tiny_gpt2"`).

    Raises:
        NewLLMError: training failed; says why. Interrupted: it was stopped, after saving.
    """
    started = start(settings, **more)
    status = watch(started.run, every=every)[0]
    if shell():
        return started.run
    if status["state"] == "running":  # only the view was closed
        raise Interrupted(
            f"{started.run.name} is still training: run this cell again to see it, then the cells below."
        )
    check(started)
    return started.run


def wait(*waited: Run, every: float = 0.3) -> None:
    """Wait until these runs are trained, so that the cells below find them finished. ■ ends the waiting
    alone.

    Raises:
        NewLLMError: a training failed; says why. Interrupted: it was stopped after saving, or the waiting
        was.
    """
    for run in waited:
        if runs.read_status(run)["state"] == "running":
            say(
                f"Waiting for {run.name}. Training goes on without this tab. ■ ends the waiting only: "
                "then you can "
                "run the training cell again to see it, or chat with the best model so far."
            )
        try:
            while runs.read_status(run)["state"] == "running":
                buttons.wait(every)
        except KeyboardInterrupt:
            hear_no_more()
            raise Interrupted(
                f"{run.name} is still training: run its training cell again to see it, then this cell."
            ) from None
        live_widgets.settle(run)  # its last picture is there before what the cells below show
        check(_started.get(run.path.absolute(), Started(run)))


def start(settings: Settings, **more) -> Started:
    """Start the training in the background, unless it runs already or is finished.

    Raises:
        UsageError: the settings are not valid.
    """
    run, more = place(settings, **{**_second_place(settings), **more})
    _let_the_hub_know_us(settings.recipe(**more))
    if runs.is_finished(run):
        say(f"{run.name} is finished already: shown as it is. Change the form for another run.")
        return Started(run)
    try:
        pid = runs.start_background(settings.command(**more), run)
    except AlreadyRunning:
        say(f"{run.name} is already training: shown as it goes.")
        return Started(run)
    say(f"{run.name}: training in the background (pid {pid}), log {run.log}")
    _started[run.path.absolute()] = Started(run, pid)
    return _started[run.path.absolute()]


def _let_the_hub_know_us(recipe: Recipe) -> None:
    """Hand on the token of Colab's secrets where the training process may need it: a model of the hub may be
    gated or private, a copy on the hub is written. It cannot read the secrets itself."""
    from_hub = bool(recipe.from_run) and not Path(recipe.from_run).exists()
    if recipe.task != "train" or from_hub or (recipe.mirror_dir or "").startswith(HUB):
        if token := secrets.hub_token():
            os.environ.setdefault(secrets.NAME, token)


def _second_place(settings: Settings) -> dict:
    """Drive, if the form asks for it on Colab: the run is mirrored there while it trains."""
    if not settings.extra.get("save_to_drive") or not on_colab() or "mirror_dir" in settings.overrides:
        return {}
    return {"mirror_dir": str(drive.mount())}


def place(settings: Settings, **more) -> tuple[Run, dict]:
    """The run for these settings, and the recipe keys to start it with.

    Settings that name a run folder which another recipe fills (`epochs` is not in its name) get the next one,
    `<name>_2`.
    """
    path = settings.recipe(**more).run_path()
    number, candidate = 1, path
    mirror = {**settings.overrides, **more}.get("mirror_dir")
    while differences := _differences(settings, more, _known(Run(candidate), mirror)):
        say(f"{candidate} was trained with other settings ({'; '.join(differences)}: now | then).")
        number += 1
        candidate = path.with_name(f"{path.name}_{number}")
    if number > 1:
        more = {**more, "output_dir": str(candidate)}
    return Run(candidate), more


def _known(run: Run, mirror: str | None) -> Run:
    """The run here, or where there is none its copy in the second place."""
    copy = Run(Path(mirror) / run.name) if mirror and not mirror.startswith(HUB) else run
    return copy if copy.recipe_path.is_file() and not run.recipe_path.is_file() else run


def _differences(settings: Settings, more: dict, run: Run) -> list[str]:
    if not run.recipe_path.is_file():
        return []
    recorded = Recipe.from_yaml(run.recipe_path)
    chosen = {**settings.overrides, **more}
    # a run keeps the preset of the machine it began on
    kind = None if "sized_for" in chosen else recorded.sized_for
    return settings.recipe(device_kind=kind, **more).differences(recorded)


def check(started: Started) -> None:
    """Raise what went wrong in a training that is over.

    Raises:
        NewLLMError: it failed or died. Interrupted: it was stopped, after saving.
    """
    run, status = started.run, runs.read_status(started.run)
    if started.pid is not None and status["pid"] != started.pid:  # it ended before it wrote its first status
        raise NewLLMError(f"{run.name} did not start: {_last_words(run)} (the whole log: {run.log})")
    if status["state"] == "interrupted":
        raise Interrupted(f"{run.name} was stopped and is saved: run its training cell again to continue it.")
    if status["state"] != "done":
        raise NewLLMError(f"{run.name}: {status['message'] or _last_words(run)} (the whole log: {run.log})")


def _last_words(run: Run) -> str:
    return runs.last_line(run).removeprefix("newllm: ") or "it left no word"
