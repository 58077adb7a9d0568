"""When a run logs, evaluates, saves and stops."""

from __future__ import annotations

import time
from dataclasses import dataclass

from newllm_lib.recipe import Recipe


@dataclass
class Decision:
    """What follows a step."""

    log: bool = False
    evaluate: bool = False
    save: bool = False
    stop: bool = False


class Timetable:
    """Log every `logging_steps`; evaluate `evals_per_epoch` times an epoch, and at the end; save with every
    evaluation, every `save_steps`, and at least every `save_minutes`."""

    def __init__(self, recipe: Recipe, steps_per_epoch: int, total_steps: int):
        self.recipe, self.steps_per_epoch, self.total_steps = recipe, steps_per_epoch, total_steps
        self.last_save = time.monotonic()

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
        times, per = self.recipe.evals_per_epoch, self.steps_per_epoch
        return step == self.total_steps or step * times // per > (step - 1) * times // per

    def is_due(self) -> bool:
        """Whether the last save was long enough ago."""
        return time.monotonic() - self.last_save > self.recipe.save_minutes * 60

    def saved(self) -> None:
        self.last_save = time.monotonic()
