"""The loop: accumulate, clip, step, schedule, log, evaluate, save.

How gradients are computed and weights stepped is the strategy's business (`strategies`). When something
happens is decided by the timetable (`timetable`) and by who asks from outside (`signals`; several processes
agree first: `distributed.flag_sync`). What is written is in `log` and `checkpointing`.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from accelerate.utils import set_seed

from newllm_lib import console, evaluation, training
from newllm_lib.errors import Interrupted
from newllm_lib.models import parameters
from newllm_lib.runs import checkpoint_step, is_complete, write_status
from newllm_lib.training import distributed
from newllm_lib.training.batches import Batches
from newllm_lib.training.build_model import build
from newllm_lib.training.checkpointing import Checkpoints
from newllm_lib.training.context import RunContext
from newllm_lib.training.curvature import CurvatureSchedule, has_curvature_schedule
from newllm_lib.training.curves import plot_curves, write_training_log
from newllm_lib.training.distributed import process_group
from newllm_lib.training.log import Heartbeat, TrainingLog
from newllm_lib.training.losses import DistilledLoss, NextTokenLoss
from newllm_lib.training.samples import Samples
from newllm_lib.training.signals import Flags, SaveRequests, Signals
from newllm_lib.training.stateful_batches import RecurrentStateBuffer
from newllm_lib.training.strategies import make_accelerator, strategy_for
from newllm_lib.training.timetable import Timetable, timing


class TrainingLoop:
    """Trains the model of a run from where its checkpoint stands, in one process or in each of several."""

    def __init__(self, context: RunContext):
        recipe, self.context = context.recipe, context
        self.step = checkpoint_step(context.checkpoint) if context.checkpoint else 0
        set_seed(recipe.seed)
        built = build(context)
        set_seed(recipe.seed)  # what follows does not depend on what was drawn for the weights
        gc.collect()
        torch.cuda.empty_cache()  # nothing happens where no GPU is in use
        self.model, self.accelerator = built.model, make_accelerator(context, built.sharded)
        self.compiled = built.compilation in ("on", "graphs")
        self.carried = RecurrentStateBuffer(context.accumulation_steps) if recipe.carry_state else None
        self.strategy = strategy_for(context, built, self.accelerator)(
            context, built, self.accelerator, self._loss()
        )
        self.samples = Samples(context.run, context.data, context.data.tokenizer, recipe.sample_tokens)
        self.checkpoints = Checkpoints(context, self.strategy, self.carried)
        self.checkpoints.load()
        self.batches = Batches(context)
        self.curvature = CurvatureSchedule(recipe) if has_curvature_schedule(recipe) else None
        self.log = TrainingLog(context, self.accelerator.log if recipe.report_to != "none" else None)
        self.heartbeat = Heartbeat(context.run, context.total_steps)
        self.validation = evaluation.subset(context.data.validation, recipe.eval_tokens or sys.maxsize)
        self.timetable = Timetable(
            recipe, context.steps_per_epoch, context.total_steps, self.validation.tokens - 1
        )
        self.signals = Signals()
        flags = distributed.flag_sync.FlagSync if process_group.is_distributed() else Flags
        self.flags = flags(self.signals, self.timetable, SaveRequests(context.run))
        self.stopping = self.step >= context.total_steps

    def _loss(self) -> NextTokenLoss:
        recipe = self.context.recipe
        if not recipe.teacher:
            return NextTokenLoss(self.carried)
        teacher = training.distill.Teacher(recipe, self.context.data.tokenizer, self.context.torch_device)
        return DistilledLoss(teacher, self.accelerator.autocast, self.carried)

    def run(self) -> None:
        """Train until the last step, or until patience is at its end.

        Raises:
            Interrupted: a signal came; a checkpoint was saved.
            NewLLMError: the loss is not finite, or the disk is full or fails.
        """
        context = self.context
        if process_group.is_main_process():
            write_status(
                context.run,
                total_steps=context.total_steps,
                message=f"training {parameters(self.model):,} parameters",
            )
        if context.start and not context.checkpoint:
            console.say(f"Before training: {context.start.name} on this data")
            self.evaluate()
        try:
            with self.signals:
                self.model.train()
                self.checkpoints.load_random_state()
                timing().enter("kernels")
                while not self.stopping:
                    self.train_epoch()
                self.flags.end()
                self.log.flush()
                if not self.flags.stopped:
                    self.evaluate_whole()
        finally:
            if process_group.is_main_process():
                write_training_log(context.run)
            self.log.finish(self.accelerator.trackers)
        if process_group.is_main_process():
            plot_curves(context.run)
        if self.flags.stopped:
            raise Interrupted(
                f"Stopped at step {self.step} of {context.total_steps}, saved: the same command continues."
            )

    def train_epoch(self) -> None:
        """From the step that is next to the epoch's end, or to where the run stops."""
        if self.carried is not None and self.step % self.context.steps_per_epoch == 0:
            self.carried.clear()
        self.log.lines.epoch_line(self.step)
        for batches in self.batches.from_step(self.step):
            norm = self.train_step(batches)
            self.step += 1
            self._count(batches)
            self.log.flush()  # the last row: on a GPU this step runs meanwhile
            self.after_step(norm)
            if self.stopping:
                return

    def _count(self, batches: list[dict[str, torch.Tensor]]) -> None:
        """The first step, with its kernels, is told apart from the others: it is waited for."""
        if timing().first_step is not None:
            timing().tokens["steps"] += sum(batch["input_ids"].numel() for batch in batches)
            return
        if self.context.torch_device.type == "cuda":
            torch.cuda.synchronize(self.context.torch_device)
        timing().first_step_done()

    def train_step(self, batches: list[dict[str, torch.Tensor]]) -> torch.Tensor:
        """One optimizer step on these micro-batches; the gradients' norm before clipping."""
        tokens = self.batches.count_labels(batches)
        if self.curvature is not None:
            self.curvature.set(self.model, self.step, self.context.total_steps)
        for number, batch in enumerate(batches, 1):
            self.log.add(self.strategy.accumulate(batch, tokens, last=number == len(batches)))
        norm = self.strategy.clip()
        self.strategy.step()
        return norm

    def after_step(self, norm: torch.Tensor) -> None:
        """Log, evaluate and save, if it is time."""
        decision = self.timetable.after(self.step)
        if self.heartbeat.beat(self.step):
            timing().write(self.context.run)
        self.flags.heed(decision)
        if decision.log:
            self.log.take(self.step, self.strategy.learning_rate, norm, self.strategy.skipped)
        if decision.evaluate:
            self.evaluate()
        if decision.save:
            self.save()
        self.stopping = self.stopping or decision.stop

    def evaluate(self) -> None:
        """Measure on the validation text, in training's dtype, and keep the best model in `best/`."""
        context, progress = self.context, self.context.progress
        with self.log.paused(), timing().within("evaluation"):
            with self._evaluating():
                metrics, context_health = self._measure(self.validation)
                self.log.check_finite(metrics["loss"], self.step)
                best = progress.judge(metrics["bits_per_byte"], self.step)
                if process_group.is_main_process():
                    self.log.lines.validation_line(metrics, best)
                    with timing().within("samples"):
                        epoch = round(context.epoch_at(self.step), 6)
                        self.samples.take(self.model, self.step, epoch, metrics["bits_per_byte"])
            self.log.evaluated(self.step, metrics | context_health(), best)
            with timing().within("saving"):
                if best:
                    self.checkpoints.save_best(self.step)
                if process_group.is_main_process() and self.heartbeat.may_draw():
                    plot_curves(context.run)
        if passed := self.timetable.hopeless(progress, self.step):
            self.stopping = True
            console.say(f"  No better validation in {passed}: stopping early")

    def evaluate_whole(self) -> None:
        """The best model's figures on all of the validation text, where only some of it was measured."""
        context, best_step = self.context, self.context.progress.best_step
        if self.validation is context.data.validation or not is_complete(context.run.best):
            return
        with timing().within("evaluation"):
            if best_step != self.step:
                self.strategy.load_weights(context.run.best)
            with self._evaluating():
                metrics, context_health = self._measure(context.data.validation)
            self.log.evaluated(best_step, metrics | context_health(), best=True, final=True)
            if process_group.is_main_process():
                console.say(f"Step {best_step}, the best, on all of the validation text:")
                self.log.lines.validation_line(metrics, best=True)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Whole weights; not compiled, because an evaluation's shapes are unlike training's."""
        eager = torch.compiler.set_stance("force_eager") if self.compiled else nullcontext()
        with self.strategy.summon_full_params(), eager:
            yield

    def _measure(self, split) -> tuple[dict, Callable[[], dict]]:
        context = self.context
        share = evaluation.Share(
            process_group.rank(), process_group.world_size(), process_group.all_reduce_sum
        )
        found = evaluation.measure(
            self.model, split, context.data.tokenizer, dtype=context.dtype, share=share
        )
        timing().tokens["evaluation"] += found[0]["tokens"]
        return found

    def save(self) -> None:
        """A checkpoint of this moment, from which the next step is what it would have been."""
        with self.log.paused(), timing().within("saving"):
            self.log.keep_interval(self.step)
            self.checkpoints.save(self.step)
        self.timetable.saved()
