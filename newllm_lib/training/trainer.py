"""`transformers.Trainer` with our data and evaluation, and checkpoints that are whole or not there."""

from __future__ import annotations

import functools
import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from accelerate.utils import AutocastKwargs
from torch.utils.data import DataLoader
from transformers import Trainer

from newllm_lib import console
from newllm_lib.data.blocks import training_blocks
from newllm_lib.errors import NewLLMError
from newllm_lib.evaluation.metrics import Share, evaluate
from newllm_lib.recipe import Recipe
from newllm_lib.runs import Run, checkpoint_step, explained, link_model, remove_directory, staged_directory, write_status
from newllm_lib.training import ranks, sharding
from newllm_lib.training.adapters import load_adapters, save_adapted
from newllm_lib.training.callbacks import DataOrder, LogBlock
from newllm_lib.training.carry import CarriedState
from newllm_lib.training.curves import plot_curves, write_training_log
from newllm_lib.training.distill import Teacher
from newllm_lib.training.lowmem.graphs import StepGraph
from newllm_lib.training.lowmem.in_backward import StepInBackward
from newllm_lib.training.optimizer import build_optimizer, build_scheduler
from newllm_lib.training.progress import Progress
from newllm_lib.training.samples import Samples

SHARD = "400MB"  # weights in one file, at most


def _collate(batch: dict) -> dict:
    """Blocks come as a batch already, with labels shifted. `labels` stays for the Trainer, which counts them."""
    return {"input_ids": batch["input_ids"], "labels": batch["labels"], "shift_labels": batch["labels"]}


def _prepared_unwrapped(prepare, model, device_placement=None, evaluation_mode=False):
    """accelerate's mixed precision for a model that lies where it shall, but no wrapper around it."""
    return prepare(model, device_placement=False, evaluation_mode=True)


class RunTrainer(Trainer):
    """Trains one run. Everything that makes two runs differ is in the recipe; everything on disk is in the run's folder."""

    def __init__(self, *, recipe: Recipe, run: Run, data, progress: Progress, log: LogBlock, checkpoint: Path | None, blocks=None,
                 **kwargs):  # fmt: skip
        super().__init__(**kwargs)
        if recipe.step_in_backward or sharding.is_cut(self.model):
            self._leave_unwrapped()
        if sharding.is_cut(self.model):  # else every weight's copy in half precision would stay to the forward pass's end
            self.accelerator.autocast_handler = AutocastKwargs(cache_enabled=False)
        self.blocks, self.in_backward = blocks, None  # lowmem.blocks.BlockPasses, lowmem.in_backward.StepInBackward
        self.step_graph = None
        self.resumed_from = checkpoint
        self.recipe, self.run, self.data, self.progress, self.log_block = recipe, run, data, progress, log
        self.teacher = Teacher(recipe, data.tokenizer, self.args.device) if recipe.teacher else None
        self.samples = Samples(run, data, recipe.sample_tokens)
        self._interval_loss = torch.tensor(progress.interval_loss, device=self.args.device)
        self._interval_start = time.monotonic()
        self._interval_pause = 0.0  # seconds of evaluating and saving, which are not training time
        first_step = checkpoint_step(checkpoint) if checkpoint else 0
        self._measured_from = first_step
        self._logged_step = first_step - progress.interval_steps  # step of the last row, perhaps before a restart
        self.carried = CarriedState(self.args.gradient_accumulation_steps) if recipe.carry_state else None
        if self.carried is not None and checkpoint:
            self.carried.load(checkpoint, self.args.device)

    def _leave_unwrapped(self) -> None:
        """The gradients are not DDP's to average."""
        self.accelerator.prepare_model = functools.partial(_prepared_unwrapped, self.accelerator.prepare_model)

    def replay(self, graph: StepGraph) -> None:
        """Compute losses and gradients by a recorded step. Several processes add their gradients up after a step's last one."""
        self.step_graph = graph
        self._leave_unwrapped()
        ranks.as_the_first_has_them(graph.parameters.values())

    def _move_model_to_device(self, model, device) -> None:
        if not sharding.is_cut(model):  # which lies there already
            super()._move_model_to_device(model, device)

    # --- data -------------------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader:
        recipe = self.recipe
        blocks, sampler = training_blocks(self.data.train, recipe, self.args.device)
        self.add_callback(DataOrder(sampler, self.carried))
        loader = DataLoader(
            blocks, batch_size=self.args.per_device_train_batch_size, sampler=sampler, collate_fn=_collate,
            drop_last=True, generator=torch.Generator(),  # its own generator: the global one stays the model's
        )  # fmt: skip
        return self.accelerator.prepare(loader)

    # --- optimisation -----------------------------------------------------------------------------------------------

    def create_optimizer(self, model=None):
        if self.optimizer is None:
            model = self.model if model is None else model
            self.optimizer = build_optimizer(model, self.recipe)
            if hasattr(self.optimizer, "prepare") and not sharding.is_cut(model):
                self.optimizer.prepare()
            if self.step_graph is not None and hasattr(self.optimizer, "recorder"):
                self.optimizer.recorder = self.step_graph.recorder
            if self.recipe.step_in_backward:
                self.in_backward = StepInBackward(
                    model, self.optimizer, self.recipe.max_grad_norm, self.blocks, ranks.averaged_ if ranks.several() else None
                )
                if self.resumed_from:
                    self.in_backward.load(self.resumed_from)
        return self.optimizer

    def _clip_grad_norm(self, model):
        """The gradients' norm before clipping. Stepped in the backward pass they were clipped there, and are gone by now."""
        if self.in_backward is not None:
            return self.in_backward.finish()
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)  # without accelerate's cover
        if hasattr(optimizer, "clip_norm") and self.accelerator.scaler is None and not sharding.is_cut(self.model):
            return optimizer.clip_norm(self.args.max_grad_norm)
        return sharding.whole(super()._clip_grad_norm(model))

    def _get_grad_norm(self, model, grad_norm=None):
        if self.in_backward is not None and grad_norm is None:  # max_grad_norm 0: nothing is clipped, but the norm is logged
            grad_norm = self.in_backward.finish()
        return sharding.whole(super()._get_grad_norm(model, grad_norm=grad_norm))

    def create_scheduler(self, num_training_steps, optimizer=None):
        if self.lr_scheduler is None:
            self.lr_scheduler = build_scheduler(optimizer or self.optimizer, num_training_steps, self.recipe)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        inputs.pop("labels", None)
        if self.teacher is not None:
            return self._distilled_loss(model, inputs, kwargs.get("num_items_in_batch"))
        if self.carried is None:
            return super().compute_loss(model, inputs, return_outputs, **kwargs)
        inputs |= {"state": self.carried.take(), "use_cache": True}
        loss, outputs = super().compute_loss(model, inputs, True, **kwargs)
        self.carried.put(outputs["state"])
        return (loss, outputs) if return_outputs else loss

    def _distilled_loss(self, model, inputs, tokens):
        ids, student = inputs["input_ids"], self.accelerator.unwrap_model(model, keep_torch_compile=False)
        state = None if self.carried is None else self.carried.take()
        with self.accelerator.autocast():
            outputs = student.model(input_ids=ids, state=state, use_cache=self.carried is not None)
            loss = self.teacher.loss(student, outputs.last_hidden_state, ids, inputs["shift_labels"], tokens)
        if self.carried is not None:
            self.carried.put(outputs.state)
        return loss

    def training_step(self, model, inputs, num_items_in_batch=None):
        if sharding.is_cut(self.model):  # between hosts once a step
            self.model.set_requires_all_reduce(self.accelerator.sync_gradients)
        if self.step_graph is None:
            loss = super().training_step(model, inputs, num_items_in_batch)
        else:
            # A part of the loss of all processes' tokens: sums of loss and gradients are theirs.
            loss = self._replayed(model, inputs, num_items_in_batch) * ranks.world()  # the log takes the mean
            if self.accelerator.sync_gradients:
                ranks.sum_(self.step_graph.sums)
        self._interval_loss += loss
        return loss

    def _replayed(self, model, inputs, num_items_in_batch):
        model.train()
        inputs = self._prepare_inputs({key: inputs[key] for key in ("input_ids", "shift_labels")})
        inputs["num_items_in_batch"] = torch.as_tensor(num_items_in_batch, device=self.args.device)
        if self.carried is None:
            return self.step_graph(inputs, use_cache=False)[0]
        state = self.carried.take()
        if state is None:  # a graph begins with a state in any case
            state = self.model.model.initial_state(len(inputs["input_ids"]))
        loss, state = self.step_graph({**inputs, "state": state}, use_cache=True)
        self.carried.put(state)
        return loss

    # --- the log ----------------------------------------------------------------------------------------------------

    def log(self, logs: dict, start_time: float | None = None) -> None:
        """Replace the Trainer's average by our own, which a checkpoint remembers, and append the row to `metrics.jsonl`."""
        if "loss" in logs:
            logs = self._interval_row(logs)
            super().log(dict(logs), start_time)
            self._append(logs)
            self._check_finite(logs["loss"])
            if self.is_world_process_zero():
                self.log_block.training_line(logs, self.state, final=self.state.global_step == self.state.max_steps)
                write_status(self.run, step=self.state.global_step, total_steps=self.state.max_steps)

    def _interval_row(self, logs: dict) -> dict:
        step = self.state.global_step
        loss = self._gather_mean(self._interval_loss) / (step - self._logged_step)
        seconds = max(1e-9, time.monotonic() - self._interval_start - self._interval_pause)
        speed = (step - self._measured_from) * self.recipe.batch_size * self.recipe.max_seq_length / seconds
        self._interval_loss.zero_()
        self._logged_step = self._measured_from = step
        self._interval_start, self._interval_pause = time.monotonic(), 0.0
        row = {"step": step, "epoch": round(self.state.epoch, 6), "loss": loss, "learning_rate": logs["learning_rate"]}
        if logs.get("grad_norm") is not None:
            row["grad_norm"] = float(logs["grad_norm"])
        return {**row, "tokens_per_second": round(speed, 1), "time": round(time.time(), 3)}

    def _gather_mean(self, value: torch.Tensor) -> float:
        return self.accelerator.gather(value.reshape(1)).double().mean().item()

    def _append(self, row: dict) -> None:
        if self.is_world_process_zero():
            with explained(self.run.metrics_path), open(self.run.metrics_path, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    def _check_finite(self, loss: float) -> None:
        if math.isfinite(loss):
            return
        last = self.run.latest_checkpoint()
        kept = f"the last good checkpoint is {last.name}" if last else "nothing was saved yet"
        raise NewLLMError(
            f"The loss became {loss} near step {self.state.global_step}; {kept}. Lower --learning_rate "
            f"(now {self.recipe.scaled_learning_rate():.1e}) or --max_grad_norm, and give the new run another --output_dir."
        )

    # --- evaluation -------------------------------------------------------------------------------------------------

    def evaluate(self, *args, **kwargs) -> dict:
        """Validation metrics in training's dtype (`newllm evaluate` uses float32); keeps the best model in `best/`."""
        started = self._time_when_steps_are_done()
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        with sharding.whole_weights(self.model):
            with torch.compiler.set_stance("force_eager"):  # shapes unlike training's: compiling them costs more than it gives
                metrics = evaluate(
                    model, self.data.validation, self.data.tokenizer, dtype=self.eval_dtype,
                    share=Share(ranks.rank(), ranks.world(), ranks.summed),
                )  # fmt: skip
            row, best = self._judged(metrics)
            if self.is_world_process_zero():
                self.log_block.validation_line(metrics, best)
                with torch.compiler.set_stance("force_eager"):
                    self.samples.take(model, row["step"], row["epoch"], metrics["bits_per_byte"])
        if best:
            self._save_for_use(self.run.best)
        if self.is_world_process_zero():
            plot_curves(self.run)
        patience = self.recipe.patience
        if patience is not None and self.progress.evaluations_without_improvement >= patience:
            self.control.should_training_stop = True
            console.say(f"  No better validation in {patience} evaluations: stopping early")
        self._interval_pause += time.monotonic() - started
        found = {k: v for k, v in row.items() if k.startswith("eval_")}
        super().log({k: v for k, v in found.items() if isinstance(v, float)})  # to what --report_to names
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        return found

    def _time_when_steps_are_done(self) -> float:
        """Now, but that the GPU's queue is empty: what follows is no training, and what is in the queue is."""
        if self.args.device.type == "cuda":
            torch.cuda.synchronize(self.args.device)
        return time.monotonic()

    def _judged(self, metrics: dict) -> tuple[dict, bool]:
        """The row of an evaluation, which is appended to `metrics.jsonl`, and whether it is the best so far."""
        self._check_finite(metrics["loss"])
        step = self.state.global_step
        best = self.progress.judge(metrics["bits_per_byte"], step)
        row = {"step": step, "epoch": round(self.state.epoch or 0.0, 6)}  # none yet: a start is measured before training
        row |= {f"eval_{k}": v for k, v in metrics.items() if isinstance(v, (int, float, str)) and v is not None}
        self._append({**row, "best": best, "time": round(time.time(), 3)})
        return row, best

    def _issue_warnings_after_load(self, load_result) -> None:
        """A tied head is not in the file: that is how it should be, and no reason to alarm anyone."""
        tied = set(self.model.all_tied_weights_keys) if hasattr(self.model, "all_tied_weights_keys") else {"lm_head.weight"}
        if set(load_result.missing_keys) <= tied and not load_result.unexpected_keys:
            self.model.tie_weights()
        else:
            super()._issue_warnings_after_load(load_result)

    # --- saving -----------------------------------------------------------------------------------------------------

    def _save_for_use(self, folder: Path) -> None:
        """Model and tokenizer, all that `from_pretrained` needs; whole or not there. All processes call it."""
        with self._staged(folder) as staging:
            self._save_model(staging)
            if self.is_world_process_zero():
                self.data.tokenizer.save_pretrained(staging)

    @contextmanager
    def _staged(self, folder: Path) -> Iterator[Path]:
        """`staged_directory` of the first process, for all: they may write into it, too, before it gets its name."""
        with staged_directory(folder) if self.is_world_process_zero() else nullcontext() as staging:
            yield Path(ranks.as_the_first_says(str(staging)))
            ranks.wait_for_all()

    def _save_model(self, folder: Path) -> None:
        """The whole model: by the first process, or where it is cut by all."""
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        if sharding.is_cut(model):
            sharding.save_weights(model, folder)
        elif not self.is_world_process_zero():
            return
        elif self.recipe.lora_rank:
            save_adapted(model, folder)
        else:
            model.save_pretrained(folder, max_shard_size=SHARD)

    def save_model(self, output_dir=None, _internal_call=False) -> None:
        self._save(output_dir)

    def _save(self, output_dir=None, state_dict=None) -> None:
        """As the Trainer's, but a large model goes to the disk in files of `SHARD`: the host never holds more than one."""
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        self._save_model(Path(output_dir))

    def _save_optimizer_and_scheduler(self, output_dir) -> None:
        if not sharding.is_cut(self.model):
            return super()._save_optimizer_and_scheduler(output_dir)
        sharding.save_optimizer(self.optimizer.optimizer, self.model, Path(output_dir))
        if self.is_world_process_zero():
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / "scheduler.pt")

    def _load_optimizer_and_scheduler(self, checkpoint) -> None:
        folder = Path(checkpoint) if checkpoint else None
        in_parts = folder and (sharding.is_cut(self.model) or (folder / sharding.OPTIMIZER).is_file())
        on_processors = ranks.several() and self.args.device.type == "cpu"  # "cpu:0": transformers 5.15 cannot load onto that
        if folder is None or not (in_parts or on_processors):
            return super()._load_optimizer_and_scheduler(checkpoint)
        if in_parts:
            sharding.load_optimizer(self.optimizer.optimizer, self.model, folder)
        else:
            self.optimizer.load_state_dict(torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True))
        self.lr_scheduler.load_state_dict(torch.load(folder / "scheduler.pt", weights_only=True))

    def _load_rng_state(self, checkpoint) -> None:
        """As the Trainer's; a process that has no state there (the run had fewer) begins anew."""
        name = "rng_state.pth" if self.args.world_size == 1 else f"rng_state_{ranks.rank()}.pth"
        if checkpoint and not (Path(checkpoint) / name).is_file():
            return ranks.own_random_numbers(self.recipe.seed, self.state.global_step)
        super()._load_rng_state(checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None) -> None:
        if sharding.is_cut(self.model):
            return sharding.load_weights(self.model, Path(resume_from_checkpoint))
        if not self.recipe.lora_rank:
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        load_adapters(self.model if model is None else model, Path(resume_from_checkpoint))

    def _get_output_dir(self, trial=None) -> str:
        """Where the Trainer writes a checkpoint: while saving, the temporary folder that is renamed when it is whole."""
        return str(self._staging) if getattr(self, "_staging", None) else str(self.run.path)

    def _save_checkpoint(self, model, trial=None) -> None:
        started = self._time_when_steps_are_done()
        step = self.state.global_step
        self.progress.interval_steps = step - self._logged_step
        self.progress.interval_loss = self._gather_mean(self._interval_loss) if self.progress.interval_steps else 0.0
        self._check_finite(self.progress.interval_loss)
        final = self.run.path / f"checkpoint-{step}"
        with self._staged(final) as staging:
            self._staging = staging / "trainer"
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._staging = None
            if self.carried is not None:
                self.carried.save(staging)
            ranks.wait_for_all()
            if self.is_world_process_zero():
                self._complete(staging, staging / "trainer" / final.name)
        if self.is_world_process_zero():
            link_model(final, self.run.last)
            self._prune()
            write_training_log(self.run)
            console.say("  [Checkpoint saved]")
        self._interval_pause += time.monotonic() - started

    def _complete(self, staging: Path, written: Path) -> None:
        """To what the Trainer has written add what it does not know of."""
        for file in written.iterdir():
            os.replace(file, staging / file.name)
        written.rmdir()
        written.parent.rmdir()
        (staging / "training_args.bin").unlink(missing_ok=True)  # a pickle that nothing reads; the recipe says it all
        self.data.tokenizer.save_pretrained(staging)
        self.progress.data_state = self.data.state()
        self.progress.save(staging)
        if self.in_backward is not None:
            self.in_backward.save(staging)

    def _prune(self) -> None:
        for old in self.run.checkpoints()[: -self.recipe.keep_checkpoints]:
            remove_directory(old)
