"""Any trainer of TRL's inside a run's folder: resumed, logged, evaluated, saved and stopped as every run.

The trainer is used as it is, through its public interface: it is given an order of its rows, an optimizer, a
schedule and callbacks. It writes into a folder of its own, from which `SealCallback` moves each checkpoint
into the run when it is whole; so what a kill tears has never had a checkpoint's name. To go on, the trainer
reads the checkpoint as plain data (`weights_only`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from huggingface_hub import constants
from torch.utils.data import Dataset
from transformers import PrinterCallback, ProgressCallback, Trainer, set_seed

from newllm_lib import console
from newllm_lib.device import Device
from newllm_lib.errors import Interrupted, NewLLMError, UsageError
from newllm_lib.models.lora import without_dropout
from newllm_lib.recipe import Recipe
from newllm_lib.runs import (
    Run,
    atomic_write_text,
    check_checkpoint_dir,
    checkpoint_step,
    explained,
    scratch_directory,
    write_status,
)
from newllm_lib.training.memory.peak import count_from_here, with_smaller_micro_batches
from newllm_lib.training.mirror_callbacks import plain_unpickling_errors
from newllm_lib.training.optim.build import build_optimizer, build_scheduler
from newllm_lib.training.progress import Progress
from newllm_lib.training.resume import (
    checkpoint_to_resume,
    free_name,
    retire_newer_checkpoints,
    truncate_metrics,
)
from newllm_lib.training.signals import Signals
from newllm_lib.training.timetable import timing
from newllm_lib.training.trl.arguments import reporters, trainer_arguments
from newllm_lib.training.trl.base import Base
from newllm_lib.training.trl.callbacks import (
    EvaluationCallback,
    FlowCallback,
    RowsCallback,
    SealCallback,
    StatusCallback,
)
from newllm_lib.training.trl.task import TrlRun, TrlTask

# TRL would report each run to the hub; the variable was read long ago
constants.HF_HUB_DISABLE_TELEMETRY = True


def open_run(recipe: Recipe, run: Run, device: Device, fingerprint: str, rows: str) -> TrlRun:
    """The run as it stands: new, or at the checkpoint that is to be continued.

    Args:
        fingerprint: of the training data.
        rows: what they are called ("pairs").

    Raises:
        UsageError: it was started with other data, or `--resume` names no checkpoint.
        NewLLMError: the checkpoint is damaged.
    """
    count_from_here()
    checkpoint = checkpoint_to_resume(recipe, run)
    if checkpoint:
        check_checkpoint_dir(checkpoint)
    progress = Progress.load(checkpoint) if checkpoint else Progress()
    if progress.data_fingerprint not in ("", fingerprint):
        raise UsageError(
            f"The {rows} are not what {run.path} was started with: bring those back, or start a new run with "
            f"--output_dir {free_name(run)}."
        )
    progress.data_fingerprint = fingerprint
    return TrlRun(recipe, run, device, checkpoint, progress)


def plan_steps(job: TrlRun, count: int, rows: str) -> None:
    """Set the optimizer steps of an epoch over `count` rows, and in all.

    Raises:
        NewLLMError: the rows are fewer than one batch.
    """
    recipe = job.recipe
    job.rows_a_step = job.rows_a_step or recipe.batch_size
    job.steps_per_epoch = count // job.rows_a_step
    if not job.steps_per_epoch:
        raise NewLLMError(
            f"{count} {rows} to train on are fewer than one batch of {job.rows_a_step}: lower --batch_size."
        )
    total = max(1, round(recipe.epochs * job.steps_per_epoch))
    job.total_steps = min(total, recipe.max_steps) if recipe.max_steps else total


def is_trained(job: TrlRun) -> bool:
    """Whether the last step has been made, and no older checkpoint is asked for."""
    return (
        job.checkpoint is not None
        and job.recipe.resume == "auto"
        and checkpoint_step(job.checkpoint) >= job.total_steps
    )


def begin_run(job: TrlRun) -> None:
    """Record the recipe; what lies behind the checkpoint is trained again."""
    atomic_write_text(job.run.recipe_path, job.recipe.to_yaml())
    truncate_metrics(job.run, job.checkpoint)
    retire_newer_checkpoints(job.run, job.checkpoint)


def train_task(job: TrlRun, task: TrlTask, base: Base, micro_batch: int) -> None:
    """Train to the last step; where memory is short, take fewer rows at a time from the last save on.

    Raises:
        Interrupted: stopped by a signal, after saving.
        NewLLMError: the loss is not finite, the disk is full, or memory is too small.
    """

    def attempt(micro: int, first: bool) -> None:
        if not first:
            _return_to_last_save(job)
            base.forget_model()  # it is the trainer's, changed and on the GPU
        _fit(job, task, base.model, micro)

    micro, batch = max(micro_batch, task.least), job.recipe.batch_size
    with_smaller_micro_batches(micro, batch, task.unit, task.memory_advice, attempt, task.least)


def _return_to_last_save(job: TrlRun) -> None:
    job.checkpoint = job.run.latest_checkpoint()
    fresh = Progress(data_fingerprint=job.progress.data_fingerprint)
    job.progress = Progress.load(job.checkpoint) if job.checkpoint else fresh
    truncate_metrics(job.run, job.checkpoint)


def _fit(job: TrlRun, task: TrlTask, model, micro: int) -> None:
    recipe, run, checkpoint = job.recipe, job.run, job.checkpoint
    timing().enter("model")
    set_seed(recipe.seed)
    with scratch_directory(run.path / "trainer") as folder, Signals() as signals:
        arguments = trainer_arguments(recipe, run, job.device, folder, job.total_steps, micro)
        trainer = task.build_trainer(
            without_dropout(model), arguments | {"train_sampling_strategy": "sequential"}
        )
        _equip(trainer, job, task, signals)
        count = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
        write_status(run, total_steps=job.total_steps, message=f"training {count:,} parameters")
        console.say(f"Training {count:,} parameters, {micro} {task.unit} at a time")
        with plain_unpickling_errors(checkpoint), explained(run.path):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    timing().enter("report")
    task.plot(run)
    if signals.received is not None:
        step = trainer.state.global_step
        raise Interrupted(f"Stopped at step {step} of {job.total_steps}, saved: the same command continues.")


def _equip(trainer: Trainer, job: TrlRun, task: TrlTask, signals: Signals) -> None:
    """Give the trainer what is the run's: order, optimizer, schedule, and what happens around a step."""
    trainer.train_dataset = ShuffledRows(trainer.train_dataset, job.rows_a_step, job.recipe.seed)
    trainer.optimizer = build_optimizer(trainer.model, job.recipe)
    if hasattr(trainer.optimizer, "prepare"):
        trainer.optimizer.prepare()
    trainer.lr_scheduler = build_scheduler(trainer.optimizer, job.total_steps, job.recipe)
    for unwanted in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(unwanted)
    flow, rows = FlowCallback(job, signals), RowsCallback(job, task)
    evaluation = EvaluationCallback(job, task, trainer, flow, rows)
    around = [flow, SealCallback(job, trainer), rows, evaluation, StatusCallback(job)]
    for callback in (*reporters(job.recipe, job.run), *around):
        trainer.add_callback(callback)


class ShuffledRows(Dataset):
    """Rows in an order that comes from (seed, epoch) alone; a whole number of batches.

    accelerate's loader calls `set_epoch` at the beginning of each epoch, after a restart too. Then torch's
    draws a number from the global generator, which is the model's: it is put back, so that dropout does not
    depend on how rows are loaded.
    """

    def __init__(self, rows: Sequence[dict], batch_size: int, seed: int):
        self.rows, self.used, self.seed = rows, len(rows) - len(rows) % batch_size, seed
        self.order: list[int] = []
        self.random_state: torch.Tensor | None = None

    def set_epoch(self, epoch: int) -> None:
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + epoch)
        self.order = torch.randperm(len(self.rows), generator=generator)[: self.used].tolist()
        self.random_state = torch.get_rng_state()

    def __len__(self) -> int:
        return self.used

    def __getitem__(self, index: int) -> dict:
        if self.random_state is not None:
            torch.set_rng_state(self.random_state)
            self.random_state = None
        return self.rows[self.order[index]]
