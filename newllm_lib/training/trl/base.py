"""The model that preference training starts from, and its warm start on the preferred answers."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from newllm_lib import console
from newllm_lib.checkpoints import load_model, locate
from newllm_lib.checkpoints.location import BASE
from newllm_lib.data.preferences.encode import with_template
from newllm_lib.device import Device
from newllm_lib.errors import Interrupted
from newllm_lib.models import parameters
from newllm_lib.models.lora import without_dropout
from newllm_lib.recipe import Recipe
from newllm_lib.runs import Run, explained, is_complete, scratch_directory, staged_directory
from newllm_lib.training.signals import Signals
from newllm_lib.training.trl.arguments import one_gpu, reporters, trainer_arguments


@dataclass
class PreparedBase:
    """The base model, its tokenizer, its name, and whether the run holds it already as it shall be."""

    model: torch.nn.Module
    tokenizer: object
    name: str
    ready: bool

    @property
    def parameters(self) -> int:
        """All of them; tied ones count once."""
        return sum(p.numel() for p in self.model.parameters())

    def warm_start(self, recipe: Recipe, run: Run, device: Device, rows: Sequence[dict]) -> None:
        """Learn preferred answers if the recipe says so; then keep the base, unless the hub has it.

        Raises:
            Interrupted: stopped on the way; nothing of it is kept.
        """
        if self.ready:
            return
        if recipe.sft_warm_start:
            _learn_answers(self.model, self.tokenizer, recipe, run, device, rows)
        if recipe.sft_warm_start or locate(recipe.base).folder is not None:
            with staged_directory(run.path / BASE) as staging:
                self.model.save_pretrained(staging)
                self.tokenizer.save_pretrained(staging)
            _call(self.model, str((run.path / BASE).absolute()))
        self.ready = True


def prepare_base(recipe: Recipe, run: Run) -> PreparedBase:
    """The base as the run keeps it, or as the recipe names it.

    Raises:
        UsageError: there is no such base.
        NewLLMError: it cannot be read or reached.
    """
    own = run.path / BASE
    ready = is_complete(own)
    loaded = load_model(own if ready else recipe.base, dtype=torch.float32)
    model, tokenizer = loaded.model, loaded.tokenizer
    if ready:
        _call(model, str(own.absolute()))
    return PreparedBase(model, with_template(tokenizer), recipe.base, ready)


def _call(model, name: str) -> None:
    """Let the model say where it came from: PEFT writes it into the adapters' configuration."""
    model.name_or_path = model.config._name_or_path = name


def _learn_answers(model, tokenizer, recipe: Recipe, run: Run, device: Device, rows: Sequence[dict]) -> None:
    set_seed(recipe.seed)
    steps = max(1, round(recipe.sft_warm_start * len(rows) / recipe.batch_size))
    console.say(
        f"Warm start: {steps:,} steps of {recipe.batch_size} preferred answers, all {parameters(model):,} "
        f"parameters, learning rate {recipe.sft_learning_rate:.1e}"
    )
    examples = [
        {
            "input_ids": r["prompt_ids"] + r["chosen_ids"],
            "labels": [-100] * len(r["prompt_ids"]) + r["chosen_ids"],
        }
        for r in rows
    ]
    with scratch_directory(run.path / "trainer") as folder, Signals() as signals:
        values = trainer_arguments(recipe, run, device, folder, steps, recipe.batch_size)
        own = {
            "learning_rate": recipe.sft_learning_rate,
            "warmup_steps": steps // 10,
            "logging_strategy": "steps",
        }
        trainer = Trainer(
            model=without_dropout(model),
            args=one_gpu(TrainingArguments(**values | own, logging_steps=max(1, steps // 20))),
            train_dataset=examples,
            data_collator=lambda batch: _padded(batch, tokenizer.pad_token_id),
            callbacks=[*reporters(recipe, run), _WarmStartCallback(run, steps, signals)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        trainer.train()
    if signals.received is not None:
        raise Interrupted(
            "Stopped in the warm start, of which nothing is kept: the same command begins it again."
        )
    model.eval()


class _WarmStartCallback(TrainerCallback):
    """Rows of the warm start in `metrics.jsonl` (`sft_step`, `sft_loss`), a line every few seconds; the end
    where a signal came. Nothing is saved on the way."""

    def __init__(self, run: Run, steps: int, signals: Signals):
        self.run, self.signals = run, signals
        self.progress = console.Progress("Warm start", steps, "steps")

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and "loss" in logs:
            row = {
                "step": 0,
                "sft_step": state.global_step,
                "sft_loss": logs["loss"],
                "time": round(time.time(), 3),
            }
            with explained(self.run.metrics_path), open(self.run.metrics_path, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            self.progress.update(state.global_step)

    def on_step_end(self, args, state, control, **kwargs):
        if self.signals.received is not None:
            control.should_training_stop = True
        return control


def _padded(batch: Sequence[dict], pad_id: int) -> dict[str, torch.Tensor]:
    """Padding on the right: `input_ids`, `attention_mask`, `labels`, all (batch, time)."""
    width = max(len(example["input_ids"]) for example in batch)

    def rows(name: str, filler: int) -> torch.Tensor:
        return torch.tensor([example[name] + [filler] * (width - len(example[name])) for example in batch])

    ids, labels = rows("input_ids", pad_id), rows("labels", -100)
    mask = torch.tensor([[1] * len(e["input_ids"]) + [0] * (width - len(e["input_ids"])) for e in batch])
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
