"""What a run does around the steps of one of TRL's trainers, as transformers' callbacks.

The trainer calls them in the order in which `trl.run` adds them. `FlowCallback` decides; where a step is
logged, `RowsCallback` writes its row before `EvaluationCallback` measures; `SealCallback` seals what was
saved.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from pathlib import Path

import torch
from transformers import Trainer, TrainerCallback

from newllm_lib import console
from newllm_lib.errors import NewLLMError
from newllm_lib.generation.stateful import eval_mode
from newllm_lib.runs import write_status
from newllm_lib.training.log import Heartbeat, MetricRows, check_finite
from newllm_lib.training.mirror_callbacks import MirrorLog
from newllm_lib.training.saving import keep_newest, save_directory
from newllm_lib.training.signals import SaveRequests, Signals
from newllm_lib.training.timetable import Timetable, timing
from newllm_lib.training.trl.task import TrlRun, TrlTask

_SECONDS = 10.0  # between two lines of the log, or two signs of life
_UNREAD = "training_args.bin"  # a pickle that nothing reads; the recipe says it all


class FlowCallback(TrainerCallback):
    """Decides after each step.

    Log every `logging_steps`, and before each save, so that no figure is averaged over two lives. Evaluate
    `evals_per_epoch` times an epoch, and at the end. Save with every evaluation, every `save_steps`, at least
    every `save_minutes`, when somebody asks (`runs.ask_to_save`), and before stopping for a signal.
    """

    def __init__(self, job: TrlRun, signals: Signals):
        self.signals, self.requests = signals, SaveRequests(job.run)
        self.timetable = Timetable(job.recipe, job.steps_per_epoch, job.total_steps)

    def on_train_begin(self, args, state, control, **kwargs):
        timing().enter("kernels")

    def on_step_end(self, args, state, control, **kwargs):
        if timing().first_step is None:
            timing().first_step_done()
        decision, stop = self.timetable.after(state.global_step), self.signals.received is not None
        control.should_save = decision.save or self.timetable.is_due() or self.requests.taken() or stop
        control.should_log = decision.log or control.should_save
        control.should_training_stop = control.should_training_stop or decision.stop or stop
        return control

    def on_save(self, args, state, control, **kwargs):
        self.timetable.saved()


class RowsCallback(TrainerCallback):
    """Rows of `metrics.jsonl` and lines of the log:

    Epoch 1/1
      Training...  40% | step 100/250 | Loss: 0.612 | reward margin +0.21 | 12 pairs/s | 1.2 min left
    """

    def __init__(self, job: TrlRun, task: TrlTask):
        self.job, self.task, self.rows = job, task, MetricRows(job.run)
        self.last_line = 0.0
        self.began: tuple[float, int] | None = None  # when and at which step the first line came
        self.restart_clock(0)

    def restart_clock(self, step: int) -> None:
        """Speed is measured from here: what came before was no training."""
        self.since, self.since_step = time.monotonic(), step

    def append(self, row: dict) -> None:
        self.rows.append({**row, "time": round(time.time(), 3)})

    def check_finite(self, loss: float, step: int) -> None:
        """Raises NewLLMError where the loss is not finite."""
        check_finite(self.job.run, self.job.recipe, loss, step)

    def on_train_begin(self, args, state, control, **kwargs):
        self.restart_clock(state.global_step)

    def on_epoch_begin(self, args, state, control, **kwargs):
        epoch = state.global_step // self.job.steps_per_epoch + 1
        console.say(f"Epoch {epoch}/{max(1, math.ceil(self.job.epochs))}")

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" not in logs:  # an evaluation's, or the trainer's account at the end
            return
        row = self._row(logs, state, args.device)
        self.append(row)
        self.check_finite(row["loss"], row["step"])
        if (reason := self.task.reason_to_end(row)) is not None:
            raise NewLLMError(reason)
        self._say(row)
        write_status(self.job.run, step=row["step"], total_steps=self.job.total_steps)

    def on_save(self, args, state, control, **kwargs):
        self.restart_clock(state.global_step)

    def _row(self, logs: dict, state, device: torch.device) -> dict:
        step, seconds = state.global_step, time.monotonic() - self.since
        row = {
            "step": step,
            "epoch": round(state.epoch, 6),
            "loss": logs["loss"],
            "learning_rate": logs["learning_rate"],
        }
        if logs.get("grad_norm") is not None:
            row["grad_norm"] = float(logs["grad_norm"])
        row |= {name: value for name, value in logs.items() if name.startswith(self.task.logged)}
        count = (step - self.since_step) * self.job.recipe.batch_size
        row[f"{self.task.unit}_per_second"] = round(count / max(1e-9, seconds), 2)
        if device.type == "cuda":
            row["gpu_memory_gib"] = round(torch.cuda.max_memory_reserved() / 2**30, 3)
        self.restart_clock(step)
        return row

    def _say(self, row: dict) -> None:
        """A line at most every few seconds (the first and the last always)."""
        now, step, total = time.monotonic(), row["step"], self.job.total_steps
        if self.last_line and step < total and now - self.last_line < _SECONDS:
            return
        self.last_line = now
        parts = [
            f"  Training... {100 * step / total:3.0f}%",
            f"step {step}/{total}",
            f"Loss: {row['loss']:.3f}",
        ]
        parts += [words] if (words := self.task.progress_words(row)) else []
        parts.append(f"{row[f'{self.task.unit}_per_second']:.3g} {self.task.unit}/s")
        if self.began is None:
            self.began = now, step
        elif step > self.began[1]:
            parts.append(
                f"{console.duration((now - self.began[0]) / (step - self.began[1]) * (total - step))} left"
            )
        console.say(" | ".join(parts))


class EvaluationCallback(TrainerCallback):
    """Measures on what is held out, keeps the best model in `best/`, stops where nothing is gained.

    The trainer's own evaluation would know a loss alone.
    """

    def __init__(self, job: TrlRun, task: TrlTask, trainer: Trainer, flow: FlowCallback, rows: RowsCallback):
        self.job, self.task, self.trainer, self.flow, self.rows = job, task, trainer, flow, rows
        self.problem_before = False

    def on_train_begin(self, args, state, control, **kwargs):
        if self.job.checkpoint is None:
            with timing().within("evaluation"):
                figures = self.task.initial_figures()
            self._record(figures, state, control)
            self.rows.restart_clock(0)
        return control

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs and self.flow.timetable.evaluates_at(state.global_step):
            model = self.trainer.accelerator.unwrap_model(self.trainer.model)
            with timing().within("evaluation"):
                figures = self.task.measure(model)
            self._record(figures, state, control)
            self.rows.restart_clock(state.global_step)
        return control

    def _record(self, figures: dict, state, control) -> None:
        with timing().within("saving"):  # the best model, a picture
            self._keep(figures, state, control)

    def _keep(self, figures: dict, state, control) -> None:
        step, progress = state.global_step, self.job.progress
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        self.rows.check_finite(figures["loss"], step)
        best, measured = progress.judge(figures["loss"], step), self.task.as_row(figures)
        self.rows.append({"step": step, "epoch": round(state.epoch or 0.0, 6), **measured, "best": best})
        console.say(f"  Val: Loss={figures['loss']:.3f} {self.task.in_words(figures)}{' ✓' if best else ''}")
        if best:
            save_directory(self.job.run.best, self._save_model)
        self.task.sample(model, step, state.epoch or 0.0, figures)
        self.task.plot(self.job.run)
        self._stop_if_hopeless(figures, control)
        # To what --report_to names. In training mode TRL would add its own figures.
        with eval_mode(self.trainer.model):
            self.trainer.log({name: value for name, value in measured.items() if isinstance(value, float)})

    def _save_model(self, folder: Path) -> None:
        self.trainer.save_model(str(folder))
        (folder / _UNREAD).unlink(missing_ok=True)

    def _stop_if_hopeless(self, figures: dict, control) -> None:
        passed = self.flow.timetable.hopeless(self.job.progress, self.job.progress.best_step)
        if passed:
            control.should_training_stop = True
            console.say(f"  No better held-out loss in {passed}: stopping early")
        problem = self.task.problem(figures)
        if problem is not None:
            console.say(f"  Flagged: {problem}")
        if problem is not None and self.problem_before:
            control.should_training_stop = True
            console.say("  The second time in a row: stopping")
        self.problem_before = problem is not None


class SealCallback(TrainerCallback):
    """Makes a checkpoint of the run out of what the trainer writes: with `progress.json` and a list of sizes,
    under its name only when it is whole. Only then older ones go. A save that the disk does not take is tried
    again, as our own loop's: for that the trainer's way to save is called from here.
    """

    def __init__(self, job: TrlRun, trainer: Trainer):
        self.job, self.trainer = job, trainer
        self.write = trainer._save_checkpoint  # TRL's trainers too change it under this name
        trainer._save_checkpoint = self.save

    def save(self, model, trial) -> None:
        """What the trainer calls to save; arguments and place are its own."""
        sealed = self.job.run.checkpoint(self.trainer.state.global_step)
        written = Path(self.trainer.args.output_dir) / sealed.name

        def fill(folder: Path) -> None:
            shutil.rmtree(written, ignore_errors=True)  # of a try that failed
            self.write(model, trial)
            for file in written.iterdir():
                os.replace(file, folder / file.name)
            (folder / _UNREAD).unlink(missing_ok=True)
            self.job.progress.save(folder)

        save_directory(sealed, fill)

    def on_save(self, args, state, control, **kwargs):
        run = self.job.run
        keep_newest(run, run.checkpoint(state.global_step), self.job.recipe.keep_checkpoints)


class StatusCallback(TrainerCallback):
    """A sign of life in status.json, and what the mirror has to say."""

    def __init__(self, job: TrlRun):
        self.heartbeat, self.mirror = Heartbeat(job.run, job.total_steps), MirrorLog(job.run)

    def on_step_end(self, args, state, control, **kwargs):
        self.heartbeat.beat(state.global_step)

    def on_log(self, args, state, control, **kwargs):
        self.mirror.look()
