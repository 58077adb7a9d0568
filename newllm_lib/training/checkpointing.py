"""A run's checkpoints: everything that the next step depends on, whole or not there; and `best/`.

model.safetensors, config.json, tokenizer     what `from_pretrained` reads (adapter/ beside it with LoRA)
optimizer.pt, scheduler.pt, scaler.pt         torch's state dicts (optimizer.safetensors where it is sharded)
rng_state.pth                                 random numbers' states, of each process (rng_state_1.pth)
gradient_norms, carried_state .safetensors    what clips the next step in the backward pass; the rows' states
progress.json, trainer_state.json             best score, loss since the last row, where the data stood; step
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import torch

from newllm_lib.runs import checkpoint_step, is_complete, link_or_copy
from newllm_lib.training.context import RunContext
from newllm_lib.training.distributed import process_group
from newllm_lib.training.mirror_callbacks import plain_unpickling_errors
from newllm_lib.training.saving import keep_newest, save_directory
from newllm_lib.training.stateful_batches import RecurrentStateBuffer
from newllm_lib.training.strategies import Autograd

# what `save_pretrained` writes of a model
MODEL_FILES = ("config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json")


class Checkpoints:
    """Writes and reads them. All processes call each method; the first writes, others add what they have."""

    def __init__(self, context: RunContext, strategy: Autograd, carried: RecurrentStateBuffer | None):
        self.context, self.run, self.strategy, self.carried = context, context.run, strategy, carried
        self.best_step: int | None = None  # of what `save_best` wrote last

    def save(self, step: int) -> None:
        """Write `checkpoint-<step>`, then remove what is older than the recipe keeps."""
        final, device = self.run.path / f"checkpoint-{step}", self.context.torch_device
        carried = () if self.carried is None else (self.carried.save,)
        save_directory(
            final,
            self._link_weights if self._best_has_them(step) else self.strategy.save_weights,
            self.strategy.save_state,
            lambda folder: _save_random_state(folder, device),
            *carried,
            lambda folder: self._save_progress(folder, step),
            self._save_tokenizer,
        )
        if process_group.is_main_process():
            keep_newest(self.run, final, self.context.recipe.keep_checkpoints)

    def save_best(self, step: int) -> None:
        """Model and tokenizer, all that `from_pretrained` needs, of this step."""
        save_directory(self.run.best, self.strategy.save_weights, self._save_tokenizer)
        self.best_step = step

    def _best_has_them(self, step: int) -> bool:
        """Whether a checkpoint of this step can have the very files of `best/`."""
        return (
            step == self.best_step
            and not self.context.recipe.lora_rank
            and not process_group.is_distributed()
            and is_complete(self.run.best)
        )

    def _link_weights(self, folder: Path) -> None:
        for pattern in MODEL_FILES:
            for file in self.run.best.glob(pattern):
                link_or_copy(file, folder / file.name)

    def load(self) -> None:
        """Bring weights, optimizer, schedule and carried state to where the context's checkpoint has them.

        Raises:
            NewLLMError: the state is no plain data (a pickle that would run something), or of another model.
        """
        checkpoint = self.context.checkpoint
        if checkpoint is None:
            return
        with plain_unpickling_errors(checkpoint):
            self.strategy.load_weights(checkpoint)
            self.strategy.load_state(checkpoint)
        if self.carried is not None:
            self.carried.load(checkpoint, self.context.torch_device)

    def load_random_state(self) -> None:
        """The random numbers with which the next step begins.

        A process that finds none (the run had fewer processes, or begins) gets numbers of its own; the first
        process of a run that begins goes on with those of the seed.
        """
        checkpoint, seed = self.context.checkpoint, self.context.recipe.seed
        file = checkpoint / _random_state_file() if checkpoint else None
        if file is not None and file.is_file():
            with plain_unpickling_errors(checkpoint):
                _load_random_state(file, self.context.torch_device)
        elif checkpoint:
            process_group.seed_per_rank(seed, checkpoint_step(checkpoint))
        elif not process_group.is_main_process():  # other dropout than the first process's
            process_group.seed_per_rank(seed, 0)

    def _save_tokenizer(self, folder: Path) -> None:
        if process_group.is_main_process():
            self.context.data.tokenizer.save_pretrained(folder)

    def _save_progress(self, folder: Path, step: int) -> None:
        if not process_group.is_main_process():
            return
        context = self.context
        context.progress.data_state = context.data.state()
        context.progress.save(folder)
        # as transformers' Trainer, and so version 0.1.0, reads it
        state = {
            "global_step": step,
            "max_steps": context.total_steps,
            "epoch": context.epoch_at(step),
            "train_batch_size": context.sequences_at_once,
            "stateful_callbacks": {"TrainerControl": {}},
        }
        (folder / "trainer_state.json").write_text(json.dumps(state))


def _random_state_file() -> str:
    return "rng_state.pth" if process_group.world_size() == 1 else f"rng_state_{process_group.rank()}.pth"


def _save_random_state(folder: Path, device: torch.device) -> None:
    state = {"python": random.getstate(), "numpy": np.random.get_state(), "cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    torch.save(state, folder / _random_state_file())


def _load_random_state(file: Path, device: torch.device) -> None:
    core = np._core if hasattr(np, "_core") else np.core
    # numpy's state is an array
    numpys = [
        core.multiarray._reconstruct,
        np.ndarray,
        np.dtype,
        type(np.dtype(np.uint32)),
    ]
    with torch.serialization.safe_globals(numpys):
        state = torch.load(file, weights_only=True)
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        mine = state["cuda"]
        # Version 0.1.0 wrote, of several processes, each one's states of all GPUs.
        torch.cuda.set_rng_state(mine[device.index] if isinstance(mine, list) else mine, device)
