"""What a run says while it trains: rows of `metrics.jsonl`, lines to read, status.json, trackers."""

from __future__ import annotations

import importlib.util
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from newllm_lib import console
from newllm_lib.errors import NewLLMError, UsageError
from newllm_lib.recipe import Recipe
from newllm_lib.runs import Run, append_whole, checkpoint_step, may_wait, rotate_log, write_status
from newllm_lib.training.context import RunContext
from newllm_lib.training.distributed import process_group
from newllm_lib.training.mirror_callbacks import MirrorLog

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker


@dataclass
class _Row:
    """A row whose numbers may still be on their way from the GPU."""

    step: int
    learning_rate: float | torch.Tensor
    numbers: torch.Tensor
    arrived: torch.cuda.Event | None


class TrainingLog:
    """The steps' figures. An interval's loss is summed on the device; checkpoints keep the sum.

    On a GPU a row is read while the next step runs, so that the GPU never waits for its log.

    Args:
        track: what --report_to names is given these figures (accelerate's `Accelerator.log`).
    """

    def __init__(self, context: RunContext, track: Callable[[dict, int], None] | None = None):
        self.context, self.run, self.track = context, context.run, track
        self.lines = lines_for(context)
        self.mirror = MirrorLog(context.run)
        progress = context.progress
        self.interval_loss = torch.tensor(progress.interval_loss, device=context.torch_device)
        self._measured_from = checkpoint_step(context.checkpoint) if context.checkpoint else 0
        self._logged_step = self._measured_from - progress.interval_steps  # perhaps before a restart
        self._since = time.monotonic()
        self._paused = 0.0  # seconds of evaluating and saving, which are not training time
        self._waiting: _Row | None = None
        self.rows = MetricRows(context.run)

    def add(self, loss: torch.Tensor) -> None:
        """Add a micro-batch's part of its step's loss."""
        self.interval_loss += loss

    def take(
        self,
        step: int,
        learning_rate: float | torch.Tensor,
        norm: torch.Tensor,
        skipped: torch.Tensor | None = None,
    ) -> None:
        """Begin a row: the mean loss since the last one, and this step's gradients' norm before clipping.

        Args:
            skipped: with loss scaling, the shares of updates that were left out, summed since the last row;
                set back to 0.
        """
        self.flush()
        figures = [self.interval_loss, norm.to(self.interval_loss), *([] if skipped is None else [skipped])]
        numbers = torch.stack(figures).unsqueeze(0)
        if process_group.is_distributed():
            numbers = torch.cat(process_group.all_gathered(numbers))
        arrived = None
        if isinstance(learning_rate, torch.Tensor):  # with loss scaling the GPU alone knows it
            learning_rate = learning_rate.to("cpu", non_blocking=True, copy=True)
        if numbers.is_cuda:
            numbers = numbers.to("cpu", non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        self.interval_loss.zero_()
        if skipped is not None:
            skipped.zero_()
        self._waiting = _Row(step, learning_rate, numbers, arrived)
        if arrived is None:
            self.flush()

    def flush(self) -> None:
        """Write the row that waits, if one does.

        Raises:
            NewLLMError: its loss is not finite.
        """
        if self._waiting is None:
            return
        waiting, self._waiting = self._waiting, None
        if waiting.arrived is not None:
            waiting.arrived.synchronize()
        row = self._row(waiting)
        self._report({key: value for key, value in row.items() if key != "step"}, row["step"])
        self.rows.append(row)
        self.mirror.look()
        self.check_finite(row["loss"], row["step"])
        if process_group.is_main_process():
            self.lines.training_line(row)
            write_status(self.run, step=row["step"], total_steps=self.context.total_steps)

    def _row(self, waiting: _Row) -> dict:
        losses, norms, *skipped = waiting.numbers.double().T
        step, recipe, now = waiting.step, self.context.recipe, time.monotonic()
        tokens = (step - self._measured_from) * recipe.batch_size * recipe.max_seq_length
        speed = tokens / max(1e-9, now - self._since - self._paused)
        steps = step - self._logged_step
        left_out = {"skipped": skipped[0][0].item() / steps} if skipped else {}
        self._logged_step = self._measured_from = step
        self._since, self._paused = now, 0.0
        return {
            "step": step,
            "epoch": round(self.context.epoch_at(step), 6),
            "loss": losses.mean().item() / steps,
            "learning_rate": float(waiting.learning_rate),
            "grad_norm": norms[0].item(),
            **left_out,
            "tokens_per_second": round(speed, 1),
            "time": round(time.time(), 3),
        }

    def evaluated(self, step: int, metrics: dict, best: bool, final: bool = False) -> None:
        """Write an evaluation's row; `final`: of the best model, on all of the validation text."""
        row = {"step": step, "epoch": round(self.context.epoch_at(step), 6)}
        found = {
            f"eval_{k}": v for k, v in metrics.items() if isinstance(v, (int, float, str)) and v is not None
        }
        told = {"best": best} | ({"final": True} if final else {})
        self.rows.append({**row, **found, **told, "time": round(time.time(), 3)})
        self._report({k: v for k, v in found.items() if isinstance(v, float)}, step)
        self.mirror.look()

    def keep_interval(self, step: int) -> None:
        """Put the loss since the last row into `progress`, for a checkpoint of this step. All call it.

        Raises:
            NewLLMError: it is not finite.
        """
        progress = self.context.progress
        progress.interval_steps = step - self._logged_step
        values = (
            process_group.all_gathered(self.interval_loss)
            if process_group.is_distributed()
            else [self.interval_loss]
        )
        progress.interval_loss = (
            torch.stack(values).double().mean().item() if progress.interval_steps else 0.0
        )
        self.check_finite(progress.interval_loss, step)

    def check_finite(self, loss: float, step: int) -> None:
        """See `check_finite`."""
        check_finite(self.run, self.context.recipe, loss, step)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Evaluating or saving: the waiting row is written first; the time that passes is not training's."""
        self.flush()
        if self.context.torch_device.type == "cuda":
            torch.cuda.synchronize(self.context.torch_device)  # what is in its queue is training
        started = time.monotonic()
        yield
        self._paused += time.monotonic() - started

    def _report(self, figures: dict, step: int) -> None:
        if self.track is None:
            return
        # named as transformers' integrations name them
        named = {f"eval/{k[5:]}" if k.startswith("eval_") else f"train/{k}": v for k, v in figures.items()}
        with self._goes_on_without():
            self.track(named, step)

    def finish(self, trackers: Sequence[GeneralTracker]) -> None:
        """The run ends: what they have goes to where they keep it."""
        for tracker in trackers:
            with self._goes_on_without():
                tracker.finish()

    @contextmanager
    def _goes_on_without(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of wandb's network, TensorBoard's disk: whatever they raise
            name = self.context.recipe.report_to
            line = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            console.say(f"  {name} takes no more figures ({line}): the run goes on without it")
            self.track = None


class MetricRows:
    """`metrics.jsonl`: a row that the disk does not take now is written with the next one."""

    def __init__(self, run: Run):
        self.path, self.unwritten = run.metrics_path, ""

    def append(self, row: dict) -> None:
        """Of several processes the first writes."""
        if not process_group.is_main_process():
            return
        self.unwritten += json.dumps(row) + "\n"
        with may_wait(self.path):
            append_whole(self.path, self.unwritten)
            self.unwritten = ""


def check_finite(run: Run, recipe: Recipe, loss: float, step: int) -> None:
    """Raise NewLLMError, which says what to lower, where the loss is not finite."""
    if math.isfinite(loss):
        return
    last, rate = run.latest_checkpoint(), recipe.scaled_learning_rate()
    kept = f"the last good checkpoint is {last.name}" if last else "nothing was saved yet"
    raise NewLLMError(
        f"The loss became {loss} near step {step}; {kept}. Lower --learning_rate "
        f"(now {rate:.1e}) or --max_grad_norm, and give the new run another --output_dir."
    )


class EpochLines:
    """The owner's log, in lines that survive in a file:

    Epoch 25/50
      Training...  40% | step 400/1000 | Loss: 2.953 | 81k tokens/s | 1.2 min left
      Val: Loss=2.910 PPL=18.4 (vocab 4,096, <unk> 0.0%) Acc=44.2% bits/byte=1.532 ✓
      [Checkpoint saved]
    """

    def __init__(self, steps_per_epoch: int, total_steps: int, every_seconds: float = 10.0):
        self.steps_per_epoch, self.total_steps, self.every_seconds = (
            steps_per_epoch,
            total_steps,
            every_seconds,
        )
        self.last_line = 0.0
        self.began: tuple[float, int] | None = None  # when and at which step the first line came

    def epoch_line(self, step: int) -> None:
        """Said where an epoch begins, or goes on after `step`."""
        console.say(
            f"Epoch {step // self.steps_per_epoch + 1}/{max(1, -(-self.total_steps // self.steps_per_epoch))}"
        )

    def training_line(self, row: dict) -> None:
        """A line for a logged step, at most one every `every_seconds` (the first and the last always)."""
        now, step, total = time.monotonic(), row["step"], self.total_steps
        if self.last_line and step < total and now - self.last_line < self.every_seconds:
            return
        self.last_line = now
        line = f"  Training... {100 * step / total:3.0f}% | step {step}/{total} | Loss: {row['loss']:.3f} | "
        line += f"{console.count(row['tokens_per_second'])} tokens/s"
        if self.began is None:  # until here kernels were compiled: no measure of what is to come
            self.began = now, step
        elif step > self.began[1]:
            line += (
                f" | {console.duration((now - self.began[0]) / (step - self.began[1]) * (total - step))} left"
            )
        console.say(line)

    @staticmethod
    def validation_line(metrics: dict, best: bool) -> None:
        console.say(
            f"  Val: Loss={metrics['loss']:.3f} PPL={metrics['perplexity']:.1f} (vocab "
            f"{metrics['vocab_size']:,}, <unk> {100 * metrics['unk_share']:.1f}%) "
            f"Acc={100 * metrics['accuracy']:.1f}% "
            f"bits/byte={metrics['bits_per_byte']:.3f}{' ✓' if best else ''}"
        )


class StepLines(EpochLines):
    """The Phase 7 guide's log: a line for each logged step, with gradients' norm and seconds of a step.

    Step   1000 | Loss: 3.2145 | PPL: 24.87 | LR: 2.50e-04 | Grad: 0.823 | Time: 0.45s
    """

    def __init__(self, steps_per_epoch: int, total_steps: int, tokens_per_step: int):
        super().__init__(steps_per_epoch, total_steps)
        self.tokens_per_step = tokens_per_step

    def training_line(self, row: dict) -> None:
        console.say(
            f"Step {row['step']:6d} | Loss: {row['loss']:.4f} | PPL: {math.exp(min(row['loss'], 700.0)):.2f} "
            f"| LR: {row['learning_rate']:.2e} | Grad: {row['grad_norm']:.3f} | Time: "
            f"{self.tokens_per_step / row['tokens_per_second']:.2f}s"
        )


def lines_for(context: RunContext) -> EpochLines:
    """The lines that the recipe's `log_style` names."""
    recipe: Recipe = context.recipe
    if recipe.log_style == "epochs":
        return EpochLines(context.steps_per_epoch, context.total_steps)
    return StepLines(context.steps_per_epoch, context.total_steps, recipe.batch_size * recipe.max_seq_length)


def refuse_trackers(recipe: Recipe) -> None:
    """Raise UsageError where the package that --report_to needs is not installed."""
    if recipe.report_to != "none" and importlib.util.find_spec(recipe.report_to) is None:
        raise UsageError(
            f"--report_to {recipe.report_to} needs a package: `pip install {recipe.report_to}`, or leave it "
            "out."
        )


class Heartbeat:
    """Every few seconds: a sign of life in status.json with the step, and a log that stays small."""

    def __init__(self, run: Run, total_steps: int, every_seconds: float = 10.0):
        self.run, self.total_steps, self.every_seconds, self.last = (
            run,
            total_steps,
            every_seconds,
            time.monotonic(),
        )
        self.drawn: float | None = None

    def may_draw(self) -> bool:
        """Whether the last picture is three beats old: for who draws it then."""
        due = self.drawn is None or time.monotonic() - self.drawn > 3 * self.every_seconds
        self.drawn = time.monotonic() if due else self.drawn
        return due

    def beat(self, step: int) -> bool:
        """Whether it was time for one."""
        due = time.monotonic() - self.last > self.every_seconds and process_group.is_main_process()
        if due:
            self.last = time.monotonic()
            write_status(self.run, step=step, total_steps=self.total_steps)
            rotate_log(self.run.log)
        return due
