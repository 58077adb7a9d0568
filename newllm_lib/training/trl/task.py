"""What `trl.run` knows of a run and of what is trained in it. To add a trainer, fill in a `TrlTask`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from transformers import Trainer

from newllm_lib.device import Device
from newllm_lib.recipe import Recipe
from newllm_lib.runs import Run
from newllm_lib.training.progress import Progress


@dataclass
class TrlRun:
    """One run: where it stands, and how far it goes."""

    recipe: Recipe
    run: Run
    device: Device
    checkpoint: Path | None  # what training goes on from
    progress: Progress
    steps_per_epoch: int = 0
    total_steps: int = 0
    rows_a_step: int = 0  # of the data; 0: as many as the batch is large

    @property
    def epochs(self) -> float:
        return self.total_steps / self.steps_per_epoch

    @property
    def longer(self) -> str:
        """The flag that trains longer, by what ended this run."""
        return "--max_steps" if self.total_steps == self.recipe.max_steps else "--epochs"


class TrlTask(ABC):
    """What differs between TRL's trainers: how one is made, and what its figures are called and mean.

    Attributes:
        unit: what a batch holds, in the plural ("pairs").
        memory_advice: what to lower where not even one of them fits into the GPU's memory.
        logged: the trainer's own figures that go into `metrics.jsonl`, by how their names begin.
        least: so many rows at a time at least.
    """

    unit: str
    memory_advice: str
    logged: tuple[str, ...]
    least: int = 1

    @abstractmethod
    def build_trainer(self, model, arguments: dict) -> Trainer:
        """A TRL trainer as it is, with an epoch's rows in its `train_dataset`, prepared by it or us.

        Their order, the optimizer, its schedule and the callbacks are given to it afterwards.

        Args:
            model: the base, dropout switched off.
            arguments: for the trainer's configuration (`trl.arguments`).
        """

    @abstractmethod
    def initial_figures(self) -> dict:
        """Figures of the base on what is held out, known before training."""

    @abstractmethod
    def measure(self, model) -> dict:
        """Figures of the model as it is now on what is held out; the lowest `loss` is the best."""

    @abstractmethod
    def as_row(self, figures: dict) -> dict:
        """Held-out figures as flat keys of `metrics.jsonl`, each beginning with `eval_`."""

    @abstractmethod
    def in_words(self, figures: dict) -> str:
        """Held-out figures for the log's line, after the loss."""

    def progress_words(self, row: dict) -> str:
        """What of a row of the training log is shown beside its loss."""
        return ""

    def reason_to_end(self, row: dict) -> str | None:
        """Why it makes no sense to go on after a row of the training log, and what to do: one line."""
        return None

    def problem(self, figures: dict) -> str | None:
        """What is wrong with a model of these held-out figures: found twice in a row it ends the training."""
        return None

    def sample(self, model, step: int, epoch: float, figures: dict) -> None:
        """Let the model say something at an evaluation."""
        return None

    @abstractmethod
    def plot(self, run: Run) -> None:
        """Draw `curves.png` from `metrics.jsonl`."""
