"""How a step is run: what computes its gradients, clips them and steps the weights. One object for each way.

    Autograd      as it is, or by torch's compiler; several processes average their gradients (DDP)
    LossScaled    fp16: losses are scaled up, and a step whose gradients overflow is left out
    Replayed      loss and gradients from one CUDA graph (`cuda_graphs`), the step from another; fp16 too
    InBackward    each weight is stepped while the backward pass goes on (`optim.in_backward`)
    Sharded       each process has a part of every weight (`distributed.fsdp`, FSDP2)

accelerate gives mixed precision, DDP's wrapper and the gradient scaler.
"""

from __future__ import annotations

import math
import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import AutocastKwargs, DistributedDataParallelKwargs
from torch import Tensor

from newllm_lib import training
from newllm_lib.checkpoints.weights import load_weights
from newllm_lib.lazy import without
from newllm_lib.training import distributed, optim
from newllm_lib.training.build_model import BuiltModel
from newllm_lib.training.context import RunContext
from newllm_lib.training.distributed import process_group
from newllm_lib.training.losses import NextTokenLoss
from newllm_lib.training.optim.build import build_optimizer, build_scheduler

SHARD = "400MB"  # weights in one file, at most: the host never holds more than one


def make_accelerator(context: RunContext, sharded: bool) -> Accelerator:
    """accelerate's object for this run: an earlier one in this process may have had another precision."""
    AcceleratorState._reset_state(reset_partial_state=True)
    # Every parameter takes part in every step. Autocast's cache would hold fetched weights.
    handlers = [
        DistributedDataParallelKwargs(find_unused_parameters=False),
        AutocastKwargs(cache_enabled=not sharded),
    ]
    trackers = [] if context.recipe.report_to == "none" else [context.recipe.report_to]
    accelerator = Accelerator(
        cpu=context.torch_device.type == "cpu",
        mixed_precision="no" if context.dtype == "fp32" else context.dtype,
        kwargs_handlers=handlers,
        log_with=trackers or None,
        project_dir=context.run.path,
    )
    if trackers:
        names = {"wandb": {"name": context.run.name}}
        project = "runs" if trackers == ["tensorboard"] else os.environ.get("WANDB_PROJECT", "new-llm")
        accelerator.init_trackers(project, init_kwargs=names)
    return accelerator


class Autograd:
    """Gradients by autograd, added up over a step's micro-batches.

    Args:
        loss: called with the model, a micro-batch and the step's number of labels.
    """

    wraps = True  # several processes: DDP's wrapper averages the gradients

    def __init__(self, context: RunContext, built: BuiltModel, accelerator: Accelerator, loss: NextTokenLoss):
        self.context, self.model, self.accelerator, self.loss = context, built.model, accelerator, loss
        self.max_norm = context.recipe.max_grad_norm
        self.parameters = list(built.model.parameters())
        self.optimizer = build_optimizer(built.model, context.recipe)
        self.skipped: Tensor | None = None  # shares of updates that loss scaling left out since the last row
        self.learning_rate: float | Tensor = 0.0  # of the last step; a tensor that the next one overwrites
        self.stepper = self._prepare_optimizer()
        self.forward = accelerator.prepare_model(
            built.model, device_placement=False, evaluation_mode=not self.wraps
        )
        self.scheduler = build_scheduler(self.stepper, context.total_steps, context.recipe)

    def _prepare_optimizer(self) -> torch.optim.Optimizer:
        """What `step` steps."""
        if hasattr(self.optimizer, "prepare"):  # its states lie beside each other, not among activations
            self.optimizer.prepare()
        return self.optimizer

    # --- a step
    # -----------------------------------------------------------------------------------------------------

    def accumulate(self, batch: dict[str, Tensor], tokens: Tensor, last: bool) -> Tensor:
        """Add a micro-batch's gradients; returns its part of the loss. The `last` one synchronises."""
        with nullcontext() if last else self.accelerator.no_sync(self.forward):
            loss = self.loss(self.forward, batch, tokens)
            if process_group.is_distributed():
                loss = loss * process_group.world_size()  # of which the processes take the mean
            self._backward(loss)
        return loss.detach()

    def _backward(self, loss: Tensor) -> None:
        loss.backward()

    def clip(self) -> Tensor:
        """The gradients' norm before clipping, with max_grad_norm 0 before nothing."""
        if self.max_norm > 0 and hasattr(self.optimizer, "clip_norm"):
            return self.optimizer.clip_norm(self.max_norm)
        return torch.nn.utils.clip_grad_norm_(self.parameters, self.max_norm or math.inf)

    def step(self) -> None:
        """Step the weights and the learning rate, and let the gradients go."""
        self.learning_rate = self.scheduler.get_last_lr()[0]
        self.stepper.step()
        self.scheduler.step()
        self._clear()

    def _clear(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    # --- what a checkpoint has of it
    # --------------------------------------------------------------------------------

    def summon_full_params(self) -> AbstractContextManager:
        """In it each process may use the model by itself. All enter it."""
        return nullcontext()

    def save_weights(self, folder: Path) -> None:
        """The model as `from_pretrained` reads it. All processes call it."""
        if not process_group.is_main_process():
            return
        if self.context.recipe.lora_rank:
            training.adapters.save_adapted(self.model, folder)
        else:
            with without("torch.distributed.tensor"):  # where none is loaded, no weight is one of its tensors
                self.model.save_pretrained(folder, max_shard_size=SHARD)

    def load_weights(self, folder: Path) -> None:
        if self.context.recipe.lora_rank:
            training.adapters.load_adapters(self.model, folder)
        else:
            load_weights(self.model, folder)

    def save_state(self, folder: Path) -> None:
        """Optimizer and schedule. All processes call it."""
        if process_group.is_main_process():
            torch.save(self.optimizer.state_dict(), folder / "optimizer.pt")
            torch.save(self.scheduler.state_dict(), folder / "scheduler.pt")

    def load_state(self, folder: Path) -> None:
        """What `save_state` wrote, also of a sharded run."""
        if (folder / distributed.fsdp.OPTIMIZER).is_file():
            distributed.fsdp.load_optimizer(self.optimizer, self.model, folder)
        else:
            # Alone, through the host: a GPU that is nearly full has no room for a second copy.
            place = self.context.torch_device if process_group.is_distributed() else "cpu"
            self.optimizer.load_state_dict(
                torch.load(folder / "optimizer.pt", map_location=place, weights_only=True)
            )
        self.scheduler.load_state_dict(torch.load(folder / "scheduler.pt", weights_only=True))


class LossScaled(Autograd):
    """fp16. Where gradients overflow the step is left out, and the schedule waits too."""

    def __init__(self, context: RunContext, built: BuiltModel, accelerator: Accelerator, loss: NextTokenLoss):
        self.scaler = _scaler(accelerator, context.torch_device)
        super().__init__(context, built, accelerator, loss)
        if self.scaler.is_enabled():
            self.skipped = torch.zeros((), device=context.torch_device)

    def _backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()

    def clip(self) -> Tensor:
        if not self.scaler.is_enabled():
            return super().clip()
        self.scaler.unscale_(self.optimizer)
        return torch.nn.utils.clip_grad_norm_(self.parameters, self.max_norm or math.inf)

    def step(self) -> None:
        if not self.scaler.is_enabled():
            return super().step()
        self.learning_rate = self.scheduler.get_last_lr()[0]
        self.scaler.step(self.stepper)
        if optim.found_inf(self.scaler, self.optimizer):
            self.skipped += 1
        else:
            self.scheduler.step()
        self.scaler.update()
        self._clear()

    def save_state(self, folder: Path) -> None:
        super().save_state(folder)
        if self.scaler.is_enabled() and process_group.is_main_process():
            state = self.scaler.state_dict() | {"skipped": float(self.skipped)}
            torch.save(state, folder / "scaler.pt")

    def load_state(self, folder: Path) -> None:
        super().load_state(folder)
        if self.scaler.is_enabled() and (folder / "scaler.pt").is_file():  # none: begun on another GPU
            state = torch.load(folder / "scaler.pt", weights_only=True)
            self.skipped.fill_(state.pop("skipped", 0.0))  # version 0.1.0 counted none
            self.scaler.load_state_dict(state)


def _scaler(accelerator: Accelerator, device: torch.device) -> torch.amp.GradScaler:
    """accelerate's, ready to be loaded into; without loss scaling one that does nothing."""
    scaler = accelerator.scaler or torch.amp.GradScaler(device.type, enabled=False)
    scaler.scale(torch.zeros((), device=device))
    return scaler


class Replayed(LossScaled):
    """Losses and gradients by a recorded step, and what follows by another where the optimizer lets itself be
    recorded. Several processes add their gradients up between the two."""

    wraps = False

    def __init__(self, context: RunContext, built: BuiltModel, accelerator: Accelerator, loss: NextTokenLoss):
        self.graph = training.cuda_graphs.StepGraph(
            built.model,
            context.torch_device,
            {"bf16": torch.bfloat16, "fp16": torch.float16}.get(context.dtype),
            together=process_group.is_distributed(),
            loss_scale=getattr(_scaler(accelerator, context.torch_device), "_scale", None),
        )
        process_group.broadcast_(self.graph.parameters.values())
        super().__init__(context, built, accelerator, loss)
        self.captured = None
        if optim.takes_recording(self.optimizer):
            how = self.graph.recorder, self.max_norm, self.scheduler, context.total_steps, self.scaler
            self.captured = optim.CapturedStep(self.optimizer, self.parameters, *how)
            self.skipped = self.captured.skipped if self.scaler.is_enabled() else None

    def _prepare_optimizer(self) -> torch.optim.Optimizer:
        if hasattr(self.optimizer, "recorder"):
            self.optimizer.recorder = self.graph.recorder
        return super()._prepare_optimizer()

    def accumulate(self, batch: dict[str, Tensor], tokens: Tensor, last: bool) -> Tensor:
        inputs = {
            "input_ids": batch["input_ids"],
            "shift_labels": batch["labels"],
            "num_items_in_batch": tokens,
        }
        carried = self.loss.carried
        if carried is None:
            loss, _ = self.graph(inputs, use_cache=False)
        else:
            state = carried.get()
            if state is None:  # a graph begins with a state in any case
                state = self.model.model.initial_state(len(batch["input_ids"]))
            loss, state = self.graph({**inputs, "state": state}, use_cache=True)
            carried.set(state, read_before=True)
        if process_group.is_distributed():
            # a part of the loss of all processes' tokens; the log takes the mean
            loss = loss * process_group.world_size()
            if last:
                process_group.all_reduce_sum_(self.graph.sums)
        return loss

    def clip(self) -> Tensor:
        """With a recorded step the whole of it; `step` has only the schedule to go on with."""
        return super().clip() if self.captured is None else self.captured()

    def step(self) -> None:
        if self.captured is None:
            return super().step()
        if self.scaler.is_enabled():
            self.learning_rate = self.captured.first_rate
        else:
            self.learning_rate = self.scheduler.get_last_lr()[0]
            self.scheduler.step()
        self._clear()

    def save_state(self, folder: Path) -> None:
        if self.captured is not None:
            self.captured.settle()
        super().save_state(folder)

    def load_state(self, folder: Path) -> None:
        super().load_state(folder)
        if self.captured is not None:
            self.captured.taken.fill_(self.scheduler.last_epoch)


class InBackward(LossScaled):
    """Weights are stepped, and their gradients freed, in the backward pass; `clip` steps those that wait.

    With loss scaling a parameter whose gradient overflows is left out, and the schedule goes on.
    """

    wraps = False  # the hooks average

    def __init__(self, context: RunContext, built: BuiltModel, accelerator: Accelerator, loss: NextTokenLoss):
        super().__init__(context, built, accelerator, loss)
        average = process_group.all_reduce_mean_ if process_group.is_distributed() else None
        scaler = self.scaler if self.scaler.is_enabled() else None
        self.in_backward = optim.OptimizerInBackward(
            self.model, self.optimizer, self.max_norm, built.blocks, average, scaler
        )

    def clip(self) -> Tensor:
        return self.in_backward.finish()

    def step(self) -> None:
        if self.skipped is not None:
            self.skipped += self.in_backward.skipped_share
        Autograd.step(self)

    def save_state(self, folder: Path) -> None:
        super().save_state(folder)
        if process_group.is_main_process():
            self.in_backward.save(folder)

    def load_state(self, folder: Path) -> None:
        super().load_state(folder)
        self.in_backward.load(folder)


class Sharded(Autograd):
    """FSDP2: torch fetches a block's weights while it works, and sums its gradients up into parts."""

    wraps = False

    def _prepare_optimizer(self) -> torch.optim.Optimizer:
        return self.optimizer  # whose states are made in parts, at the first step

    def accumulate(self, batch: dict[str, Tensor], tokens: Tensor, last: bool) -> Tensor:
        self.model.set_requires_all_reduce(last)  # between hosts once a step
        return super().accumulate(batch, tokens, last)

    def clip(self) -> Tensor:
        return distributed.fsdp.full_tensor(
            self.accelerator.clip_grad_norm_(self.parameters, self.max_norm or math.inf)
        )

    def summon_full_params(self) -> AbstractContextManager:
        return distributed.fsdp.summon_full_params(self.model)

    def save_weights(self, folder: Path) -> None:
        distributed.fsdp.save_weights(self.model, folder)

    def load_weights(self, folder: Path) -> None:
        distributed.fsdp.load_weights(self.model, folder)

    def save_state(self, folder: Path) -> None:
        distributed.fsdp.save_optimizer(self.optimizer, self.model, folder)
        if process_group.is_main_process():
            torch.save(self.scheduler.state_dict(), folder / "scheduler.pt")

    def load_state(self, folder: Path) -> None:
        distributed.fsdp.load_optimizer(self.optimizer, self.model, folder)
        self.scheduler.load_state_dict(torch.load(folder / "scheduler.pt", weights_only=True))


def strategy_for(context: RunContext, built: BuiltModel, accelerator: Accelerator) -> type[Autograd]:
    """The way of this run: what `memory.plan` and `distributed.strategy` refuse leaves exactly one."""
    if built.sharded:
        return Sharded
    if context.recipe.optimizer_in_backward:
        return InBackward
    if built.compilation == "replay" and built.blocks is None:
        return Replayed
    return Autograd if accelerator.scaler is None else LossScaled
