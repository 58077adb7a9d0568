"""Before preferences: the base learns the preferred answers, by TRL's SFTTrainer with all weights."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

from transformers import TrainerCallback, set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from newllm_lib import console
from newllm_lib.errors import Interrupted
from newllm_lib.models.lora import without_dropout
from newllm_lib.runs import Run, explained, scratch_directory
from newllm_lib.training.sft.sft_task import sft_trainer
from newllm_lib.training.signals import Signals
from newllm_lib.training.trl.arguments import reporters, trainer_arguments
from newllm_lib.training.trl.base import Base


def warm_start(base: Base, rows: Sequence[dict]) -> None:
    """Learn preferred answers if the recipe says so; then keep the base, unless the hub has it.

    Args:
        rows: prompt_ids and chosen_ids.

    Raises:
        Interrupted: stopped on the way; nothing of it is kept.
    """
    if base.is_kept:
        return
    if base.recipe.sft_warm_start:
        _learn_answers(base, rows)
        base.keep(base.model)
        base.forget_model()  # TRL has changed how it computes
    else:
        base.keep()


def _learn_answers(base: Base, rows: Sequence[dict]) -> None:
    recipe, run = base.recipe, base.run
    set_seed(recipe.seed)
    steps = max(1, round(recipe.sft_warm_start * len(rows) / recipe.batch_size))
    console.say(
        f"Warm start: {steps:,} steps of {recipe.batch_size} preferred answers, all "
        f"{base.outline.parameters:,} parameters, learning rate {recipe.sft_learning_rate:.1e}"
    )
    examples = [
        {
            "input_ids": row["prompt_ids"] + row["chosen_ids"],
            "labels": [-100] * len(row["prompt_ids"]) + row["chosen_ids"],
        }
        for row in rows
        if row["chosen_ids"]
    ]
    with scratch_directory(run.path / "trainer") as folder, Signals() as signals:
        values = trainer_arguments(recipe, run, base.device, folder, steps, recipe.batch_size)
        values |= {
            "learning_rate": recipe.sft_learning_rate,
            "warmup_steps": steps // 10,
            "logging_strategy": "steps",
            "logging_steps": max(1, steps // 20),
        }
        callbacks = [*reporters(recipe, run), _WarmStartCallback(run, steps, signals)]
        trainer = sft_trainer(
            without_dropout(base.model), base.tokenizer, values, examples, callbacks=callbacks
        )
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        trainer.train()
    if signals.received is not None:
        raise Interrupted(
            "Stopped in the warm start, of which nothing is kept: the same command begins it again."
        )
    base.model.eval()


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
