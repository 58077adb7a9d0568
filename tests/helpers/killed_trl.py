"""A training by one of TRL's trainers that is killed when a checkpoint is written and not sealed yet."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

from newllm_lib.recipe import Recipe
from newllm_lib.runs import Run
from newllm_lib.training import train

_SCRIPT = """
import os, signal
from newllm_lib.recipe import load_recipe
from newllm_lib.training import train
from newllm_lib.training.preferences import preference_task
from newllm_lib.training.trl import callbacks
preference_task._WATCHED = 3
preference_task.collapsed = lambda now, before: None
make = callbacks.SealCallback.__init__
def made(self, job, trainer):
    make(self, job, trainer)
    write = self.write
    def written(*arguments):
        write(*arguments)
        if trainer.state.global_step == {step}: os.kill(os.getpid(), signal.SIGKILL)
    self.write = written
callbacks.SealCallback.__init__ = made
train(load_recipe({name!r}, {choices!r}))
"""
_TIMED = ("time", "step_time")


def killed_while_saving(name: str, recipe: Recipe, step: int, environment: dict | None = None) -> Run:
    """Train in another process until SIGKILL in the middle of the save of `step`; the run as it lies there.

    Args:
        name: the recipe's name as a command says it.
        environment: of that process, beside this one's.
    """
    script = _SCRIPT.format(step=step, name=name, choices=dict(recipe.origin[1]))
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=os.environ | (environment or {})
    )
    assert ended.returncode == -9, ended.stderr[-2000:]
    run = Run(recipe.run_path())
    assert run.checkpoints() and not run.checkpoint(step).exists()
    assert any(path.name.startswith(".trainer") for path in run.path.iterdir())
    return run


def check_a_kill(name: str, make: Callable[..., Recipe], step: int) -> None:
    """A training killed while it saves `step` goes on to the curve of one left alone.

    Args:
        make: the recipe of a run called so.
    """
    whole, killed = train(make("whole")), make("killed")
    killed_while_saving(name, killed, step)
    again = train(killed)
    assert curve(again) == curve(whole) and again.latest_checkpoint().name == whole.latest_checkpoint().name


def curve(run: Run) -> list[dict]:
    """The rows of a run's metrics, without what a clock measured."""
    return [
        {k: v for k, v in row.items() if k not in _TIMED and not k.endswith("_per_second")}
        for row in run.metrics()
    ]
