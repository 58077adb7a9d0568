"""Tiny bases for the tests of preference training: random weights, a tokenizer that knows the
Japanese pairs.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from newllm_lib.data.preferences import generate
from newllm_lib.data.tokenizer import train_bpe, wrap
from newllm_lib.errors import Interrupted
from newllm_lib.recipe import load_recipe
from newllm_lib.training.model_config import build_model

SIZES = {
    "sized_for": "cpu",
    "hidden_size": 32,
    "context_dim": 32,
    "mlp_size": 48,
    "num_layers": 1,
    "num_heads": 2,
    "max_seq_length": 96,
}


def make_base(folder: Path, model: str, **changes) -> Path:
    """Save a model with random weights and its tokenizer, as transformers does."""
    texts = [text for pair in generate(400) for text in (pair.question(), pair.chosen, pair.rejected)]
    tokenizer = wrap(train_bpe(iter([texts]), 900))
    torch.manual_seed(0)
    build_model(
        load_recipe("demo", {**SIZES, "model": model, **changes}), len(tokenizer), tokenizer
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def recipe(folder: Path, base, name: str = "run", method: str = "dpo", **changes):
    """Two dozen steps of eight pairs, with everything on that a checkpoint must remember."""
    small = {
        "sized_for": "cpu",
        "base": str(base),
        "output_dir": str(folder / name),
        "max_seq_length": 96,
        "max_samples": 96,
        "eval_pairs": 30,
        "batch_size": 8,
        "micro_batch_size": 4,
        "learning_rate": 1e-2,
        "epochs": 2,
        "evals_per_epoch": 1,
        "lora_rank": 4,
        "lora_alpha": 16,
        "lora_dropout": 0.1,
        "logging_steps": 3,
        "beta": 0.1,
    }
    return load_recipe(method, small | changes)


@contextlib.contextmanager
def at_step(step: int, act: Callable[[], object], method: str = "dpo") -> Iterator[None]:
    """In the training inside, `act()` is called in the step after `step`."""
    from trl import DPOTrainer

    from newllm_lib.training.trl.trainers import trainer_classes

    names = {"orpo": "ORPO", "kto": "KTO", "reward": "Reward", "grpo": "GRPO"}
    trainer = DPOTrainer if method == "dpo" else trainer_classes(names[method])[1]
    real = trainer.training_step

    def acting(self, *args, **kwargs):
        if self.state.global_step == step:
            act()
        return real(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "training_step", acting)
        yield


@contextlib.contextmanager
def stopped_after(step: int, method: str = "dpo") -> Iterator[None]:
    """The training inside is sent SIGTERM in the step after `step`, which it finishes and saves; it must say
    so.
    """
    with (
        at_step(step, lambda: os.kill(os.getpid(), signal.SIGTERM), method),
        pytest.raises(Interrupted, match=f"Stopped at step {step + 1} .* saved"),
    ):
        yield
