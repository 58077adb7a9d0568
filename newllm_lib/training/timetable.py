"""When a run logs, evaluates, saves and stops; and where its time goes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from newllm_lib.recipe import Recipe
from newllm_lib.runs import Run, atomic_write_text, may_wait
from newllm_lib.training.progress import Progress


@dataclass
class Decision:
    """What follows a step."""

    log: bool = False
    evaluate: bool = False
    save: bool = False
    stop: bool = False


_MOST = 20  # evaluations in an epoch, with evals_per_epoch auto
_RARE = 20  # tokens that are trained on, for each that is evaluated
# and at least so many: about what some seconds of a small model are; samples and saves cost as much as ever
_LEAST = {"cpu": 1 << 18, "gpu": 1 << 22}


class Timetable:
    """Log every `logging_steps`; evaluate `evals_per_epoch` times an epoch, and at the end; save with every
    evaluation, every `save_steps`, and at least every `save_minutes`.

    Args:
        evaluated: tokens of an evaluation, which "auto" goes by; None: once an epoch.
    """

    def __init__(self, recipe: Recipe, steps_per_epoch: int, total_steps: int, evaluated: int | None = None):
        self.recipe, self.steps_per_epoch, self.total_steps = recipe, steps_per_epoch, total_steps
        self.evals_per_epoch, self.epochs_per_eval = recipe.evals_per_epoch, 1
        if self.evals_per_epoch == "auto":
            self.evals_per_epoch, self.epochs_per_eval = self._automatic(evaluated)
        self.last_save = time.monotonic()

    def _automatic(self, evaluated: int | None) -> tuple[int, int]:
        """Evaluations in an epoch, and epochs for each: by the recipe and the data alone, never by speed."""
        if evaluated is None:
            return 1, 1
        recipe, per = self.recipe, self.steps_per_epoch
        a_step = recipe.batch_size * recipe.max_seq_length
        half = self.total_steps * a_step // 2  # a short run too is looked at on its way
        tokens = max(_RARE * evaluated, min(half, _LEAST["cpu" if recipe.sized_for == "cpu" else "gpu"]))
        steps = max(1, -(-tokens // a_step))
        return max(1, min(_MOST, per // steps)), max(1, -(-steps // per))

    def after(self, step: int) -> Decision:
        """What the step's number alone decides; `is_due` goes by the clock, which processes agree on."""
        last = step >= self.total_steps
        evaluate = self.evaluates_at(step)
        by_steps = self.recipe.save_steps is not None and step % self.recipe.save_steps == 0
        return Decision(
            log=step % self.recipe.logging_steps == 0 or step == 1 or last,
            evaluate=evaluate,
            save=evaluate or by_steps,
            stop=last,
        )

    def evaluates_at(self, step: int) -> bool:
        return step == self.total_steps or self._due(step) > self._due(step - 1)

    def evaluations_from(self, step: int) -> int:
        """How many are still to come, that of `step` included."""
        extra = self._due(self.total_steps) == self._due(self.total_steps - 1)  # the one at the end
        return self._due(self.total_steps) - self._due(step - 1) + extra if step <= self.total_steps else 0

    def _due(self, step: int) -> int:
        """Evaluations up to a step, but for the one at the run's end."""
        return step * self.evals_per_epoch // (self.steps_per_epoch * self.epochs_per_eval)

    def hopeless(self, progress: Progress, step: int) -> str | None:
        """For how long nothing has become better, in words, where that is as long as `patience` says.

        It counts evaluations; epochs, where there are fewer of the former.
        """
        patience = self.recipe.patience
        if self.epochs_per_eval == 1:
            passed, unit = progress.evaluations_without_improvement, "evaluations"
        else:
            passed, unit = (step - progress.best_step) // self.steps_per_epoch, "epochs"
        return f"{patience} {unit}" if patience is not None and passed >= patience else None

    def is_due(self) -> bool:
        """Whether the last save was long enough ago."""
        return time.monotonic() - self.last_save > self.recipe.save_minutes * 60

    def saved(self) -> None:
        self.last_save = time.monotonic()


class Timing:
    """Where a training's seconds go: each belongs to exactly one part, by the wall clock.

    imports, data, model, kernels   up to the first step, and with it (kernels are compiled there)
    steps                           the steps after the first
    evaluation, samples, saving     for as long as they hold up the next step
    report                          what is said at the end

    Args:
        since: when the command began, by `clock`; None: now.
    """

    PARTS = ("imports", "data", "model", "kernels", "steps", "evaluation", "samples", "saving", "report")

    def __init__(self, since: float | None = None, clock: Callable[[], float] = time.monotonic):
        self.clock, self.seconds, self.part = clock, dict.fromkeys(self.PARTS, 0.0), self.PARTS[0]
        self.began = self._since = clock() if since is None else since
        self.first_step: float | None = None  # seconds after the beginning
        self.tokens = {"steps": 0, "evaluation": 0}

    def enter(self, part: str) -> str:
        """From now on the seconds are this part's; returns the part before."""
        now, before = self.clock(), self.part
        self.seconds[before] += now - self._since
        self._since, self.part = now, part
        return before

    @contextmanager
    def within(self, part: str) -> Iterator[None]:
        """The block's seconds are this part's; then those of the part before go on."""
        before = self.enter(part)
        try:
            yield
        finally:
            self.enter(before)

    def first_step_done(self) -> None:
        """Called when the first step is through, on the device too."""
        self.enter("steps")
        self.first_step = self._since - self.began

    def figures(self) -> dict:
        """As in `timing.json`: seconds in all and by part, shares, when the first step was done, tokens/s."""
        self.enter(self.part)
        total = self._since - self.began
        return {
            "total_seconds": round(total, 3),
            "first_step_seconds": self.first_step and round(self.first_step, 3),
            "seconds": {part: round(seconds, 3) for part, seconds in self.seconds.items()},
            "shares": {part: round(seconds / max(1e-9, total), 4) for part, seconds in self.seconds.items()},
            "training_tokens_per_second": self._speed("steps"),
            "evaluation_tokens_per_second": self._speed("evaluation"),
        }

    def _speed(self, part: str) -> float | None:
        return round(self.tokens[part] / self.seconds[part], 1) if self.tokens[part] else None

    def write(self, run: Run) -> dict:
        """`timing.json` in the run's folder: of this training, from its command to now."""
        found = self.figures()
        with may_wait(run.timing_path):
            atomic_write_text(run.timing_path, json.dumps(found, indent=1), durable=False)
        return found


_timing = Timing()
_command: float | None = None


def command_began(since: float) -> None:
    """The next training's time is counted from here, by `time.monotonic`: its command's start."""
    global _command
    _command = since


def begin_timing() -> Timing:
    """A training begins: with its command, or now."""
    global _timing, _command
    _timing, _command = Timing(_command), None
    return _timing


def timing() -> Timing:
    """Of the training that goes on in this process."""
    return _timing
