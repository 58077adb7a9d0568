"""What happens around the steps: when to log, evaluate, save and stop, and what the user reads meanwhile."""

from __future__ import annotations

import math
import signal
import threading
import time

from transformers import TrainerCallback

from newllm_lib import console
from newllm_lib.recipe import Recipe
from newllm_lib.runs import Run, rotate_log, write_status
from newllm_lib.training import keeping


class Timetable(TrainerCallback):
    """Decides after each step: log every `logging_steps`; evaluate `evals_per_epoch` times an epoch, and at the end; save with
    every evaluation, every `save_steps`, and at least every `save_minutes`."""

    def __init__(self, recipe: Recipe, steps_per_epoch: int):
        self.recipe, self.steps_per_epoch = recipe, steps_per_epoch
        self.last_save = time.monotonic()

    def evaluates_at(self, step: int, total: int) -> bool:
        times, per = self.recipe.evals_per_epoch, self.steps_per_epoch
        return step == total or step * times // per > (step - 1) * times // per

    def on_step_end(self, args, state, control, **kwargs):
        step, total = state.global_step, state.max_steps
        control.should_log = step % self.recipe.logging_steps == 0 or step == 1 or step == total
        control.should_evaluate = self.evaluates_at(step, total)
        due = args.world_size == 1 and self.is_due()  # several processes agree first (`training.agreement`): their clocks differ
        by_steps = self.recipe.save_steps is not None and step % self.recipe.save_steps == 0
        control.should_save = control.should_evaluate or by_steps or due
        if step >= total:
            control.should_training_stop = True
        return control

    def is_due(self) -> bool:
        """Whether the last save was long enough ago."""
        return time.monotonic() - self.last_save > self.recipe.save_minutes * 60

    def on_save(self, args, state, control, **kwargs):
        self.last_save = time.monotonic()


class DataOrder(TrainerCallback):
    """Tells the sampler which epoch begins: its order comes from the seed and the epoch alone, also after a restart."""

    def __init__(self, sampler, carried=None):
        self.sampler, self.carried = sampler, carried

    def on_epoch_begin(self, args, state, control, **kwargs):
        batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        steps = len(self.sampler) // batch
        self.sampler.seek(state.global_step * batch)
        if self.carried is not None and state.global_step % steps == 0:
            self.carried.clear()


class Signals(TrainerCallback):
    """SIGINT and SIGTERM: finish the step, save, stop. A Ctrl-C after that stops at once; further SIGTERMs change nothing."""

    def __init__(self):
        self.received: int | None = None
        self._before: dict = {}

    def on_train_begin(self, args, state, control, **kwargs):
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._receive)

    def _receive(self, number, frame):
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.received is not None:  # `newllm runs stop` twice: the save goes on
            return
        self.received = number
        console.say("\nStopping: saving a checkpoint first (press Ctrl-C again to stop at once)")

    def on_step_end(self, args, state, control, **kwargs):
        if self.received is not None and args.world_size == 1:
            control.should_save = control.should_training_stop = True
        return control

    def restore(self) -> None:
        """Put back the handlers that were there before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()


class Heartbeat(TrainerCallback):
    """Every few seconds of training: a sign of life in status.json, with the step, and a log that does not grow for ever."""

    def __init__(self, run: Run, every_seconds: float = 10.0):
        self.run, self.every_seconds, self.last = run, every_seconds, time.monotonic()

    def on_step_end(self, args, state, control, **kwargs):
        if state.is_world_process_zero and time.monotonic() - self.last > self.every_seconds:
            self.last = time.monotonic()
            write_status(self.run, step=state.global_step, total_steps=state.max_steps)
            rotate_log(self.run.log)


class SaveRequests(TrainerCallback):
    """Saves when somebody asks (`runs.ask_to_save`, the notebooks' Save button) and trains on."""

    def __init__(self, run: Run):
        self.run = run
        run.save_request.unlink(missing_ok=True)  # of an earlier life

    def taken(self) -> bool:
        """Whether somebody has asked since the last look."""
        if not self.run.save_request.exists():
            return False
        self.run.save_request.unlink(missing_ok=True)
        return True

    def on_step_end(self, args, state, control, **kwargs):
        if args.world_size == 1 and self.taken():
            control.should_save = True
        return control


class MirrorNews(TrainerCallback):
    """`keeping.MirrorNews`, at each row of the log."""

    def __init__(self, run: Run):
        self.news = keeping.MirrorNews(run)

    def on_log(self, args, state, control, **kwargs):
        self.news.look()


class LogBlock(TrainerCallback):
    """The owner's log, in lines that survive in a file:

    Epoch 25/50
      Training...  40% | step 400/1000 | Loss: 2.953 | 81k tokens/s | 1.2 min left
      Val: Loss=2.910 PPL=18.4 (vocab 4,096, <unk> 0.0%) Acc=44.2% bits/byte=1.532 ✓
      [Checkpoint saved]
    """

    def __init__(self, epochs: float, steps_per_epoch: int, every_seconds: float = 10.0):
        self.epochs, self.steps_per_epoch, self.every_seconds = epochs, steps_per_epoch, every_seconds
        self.last_line = 0.0
        self.began: tuple[float, int] | None = None  # when and at which step the first line came

    def on_epoch_begin(self, args, state, control, **kwargs):
        epoch = state.global_step // self.steps_per_epoch + 1
        console.say(f"Epoch {epoch}/{max(1, -int(-self.epochs // 1))}")

    def training_line(self, row: dict, state, final: bool = False) -> None:
        """A line for a logged step, at most one every `every_seconds` (the first and the last always)."""
        now, step, total = time.monotonic(), row["step"], state.max_steps
        if self.last_line and not final and now - self.last_line < self.every_seconds:
            return
        self.last_line = now
        line = f"  Training... {100 * step / total:3.0f}% | step {step}/{total} | Loss: {row['loss']:.3f} | "
        line += f"{console.count(row['tokens_per_second'])} tokens/s"
        if self.began is None:  # until here kernels were compiled: no measure of what is to come
            self.began = now, step
        elif step > self.began[1]:
            line += f" | {console.duration((now - self.began[0]) / (step - self.began[1]) * (total - step))} left"
        console.say(line)

    @staticmethod
    def validation_line(metrics: dict, best: bool) -> None:
        console.say(
            f"  Val: Loss={metrics['loss']:.3f} PPL={metrics['perplexity']:.1f} (vocab {metrics['vocab_size']:,}, "
            f"<unk> {100 * metrics['unk_share']:.1f}%) Acc={100 * metrics['accuracy']:.1f}% "
            f"bits/byte={metrics['bits_per_byte']:.3f}{' ✓' if best else ''}"
        )


class StepLog(LogBlock):
    """The Phase 7 guide's log: a line for each logged step, with the gradients' norm before clipping and the seconds of a step.

    Step   1000 | Loss: 3.2145 | PPL: 24.87 | LR: 2.50e-04 | Grad: 0.823 | Time: 0.45s
    """

    def __init__(self, epochs: float, steps_per_epoch: int, tokens_per_step: int):
        super().__init__(epochs, steps_per_epoch)
        self.tokens_per_step = tokens_per_step

    def training_line(self, row: dict, state, final: bool = False) -> None:
        norm = f" | Grad: {row['grad_norm']:.3f}" if "grad_norm" in row else ""
        console.say(
            f"Step {row['step']:6d} | Loss: {row['loss']:.4f} | PPL: {math.exp(min(row['loss'], 700.0)):.2f} | "
            f"LR: {row['learning_rate']:.2e}{norm} | Time: {self.tokens_per_step / row['tokens_per_second']:.2f}s"
        )
