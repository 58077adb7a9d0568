"""What every trainer on pairs of answers shares: held-out figures, how they are written, shown and judged.

A trainer (`dpo_task`, `orpo_task`, `kto_task`) adds only how TRL's is made, its rows and its loss.
"""

from __future__ import annotations

import functools
import time
import warnings
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from datasets import Dataset, disable_progress_bars

from newllm_lib import console
from newllm_lib.checkpoints import load_model
from newllm_lib.data.preferences import EncodedPairs, Pair
from newllm_lib.device import Device
from newllm_lib.evaluation.answers import answers, collapsed, health, kl_from_base, some_pairs
from newllm_lib.evaluation.preferences import (
    answer_log_probs,
    in_words,
    pair_log_probs,
    preference_metrics,
)
from newllm_lib.models.lora import lora_config
from newllm_lib.recipe import Recipe
from newllm_lib.runs import Run
from newllm_lib.training.compile import dtype_of
from newllm_lib.training.preferences.curves import plot_preferences
from newllm_lib.training.preferences.log import row_of_evaluation
from newllm_lib.training.trl.arguments import checkpointing, one_gpu
from newllm_lib.training.trl.base import Base
from newllm_lib.training.trl.task import TrlTask

_WATCHED = 12  # prompts that are answered at each evaluation
# TRL's and transformers' own use of it
warnings.filterwarnings("ignore", message=".*gradient_checkpointing.* is deprecated")


@dataclass
class PreparedPairs:
    """All that training knows of its pairs; log-probabilities of the base model are (pairs, 2)."""

    tokenizer: object
    train: EncodedPairs
    evaluation: EncodedPairs
    train_rows: list[dict]  # as TRL's collator takes them
    evaluation_reference: torch.Tensor
    before: dict  # figures and answers of the base
    task: type[PreferenceTask]
    beta: float
    dtype: str  # of matrix products

    def watched(self) -> list[Pair]:
        return some_pairs(self.evaluation.pairs, _WATCHED)

    def answers(self, model) -> list[str]:
        """What a model says to the watched prompts; nothing where it gives rewards."""
        if not self.task.speaks:
            return []
        return answers(model, self.tokenizer, self.watched(), self.before["answer_tokens"])

    def figures(self, model) -> dict:
        """How far a model prefers the better answers of the held-out pairs."""
        held_out = self.evaluation
        log_probs = self.task.scores(model, held_out.rows, self.tokenizer.pad_token_id, self.dtype)
        losses = self.task.losses(log_probs, self.evaluation_reference, held_out.rows, self.beta)
        return preference_metrics(log_probs, self.evaluation_reference, held_out.pairs, self.beta, losses)

    def watch(self, model) -> dict:
        """The health of a model's answers and its distance from the base."""
        if not self.task.speaks:
            return {}
        said = self.answers(model)
        return health(said) | kl_from_base(
            model, self.tokenizer, self.watched(), self.before["answer_tokens"], dtype=self.dtype
        )

    def problem(self, found: dict) -> str | None:
        """What has gone wrong with the answers since training began."""
        return self.task.speaks and collapsed(found, self.before["figures"])


def prepare_pairs(
    recipe: Recipe, device: Device, encoded: Sequence[EncodedPairs], base: Base, task: type[PreferenceTask]
) -> PreparedPairs:
    """What the base prefers and says: the reference that training is measured against."""
    model = base.model.to(device.torch_device) if recipe.load_in == "full" else base.model
    dtype, pad = dtype_of(recipe, device), base.tokenizer.pad_token_id
    untrained = "what the base prefers" if task.speaks else "what a fresh head prefers"
    console.say(f"Before training: {untrained}")
    started = time.monotonic()
    rows = task.rows(encoded[0].rows, lambda sequences: answer_log_probs(model, sequences, pad, dtype))
    seconds, held_out = time.monotonic() - started, encoded[1]
    scores = task.scores(model, held_out.rows, pad, dtype)
    reference = scores if task.speaks else torch.zeros_like(scores)
    beta = recipe.beta if recipe.depends_on("beta") else 1.0
    losses = task.losses(scores, reference, held_out.rows, beta)
    figures = preference_metrics(scores, reference, held_out.pairs, beta, losses)
    length = max(len(row[side]) for row in held_out.rows for side in ("chosen_ids", "rejected_ids"))
    tokens = min(length + 8, recipe.max_seq_length // 2)
    watched = some_pairs(held_out.pairs, _WATCHED)
    said = answers(model, base.tokenizer, watched, tokens) if task.speaks else []
    before = {
        "figures": figures | health(said),
        "answers": said,
        "answer_tokens": tokens,
        "reference_seconds": seconds,
    }
    console.say(f"  {in_words(figures, task.margin_unit)}, on {len(held_out.pairs):,} held-out pairs")
    return PreparedPairs(base.tokenizer, *encoded, rows, reference, before, task, beta, dtype)


class PreferenceTask(TrlTask):
    """Learning from pairs. To be filled in: `build_trainer`, `rows` and `losses`.

    Attributes:
        title: what the method is called.
        advice: what to change where the answers fall apart.
        speaks: whether the model writes answers; else it gives them rewards.
        task_type: PEFT's name of what adapters are for.
        base: how the base is loaded; `load`: the run's best model.
        scores: what is compared (pairs, 2) of a model, rows, padding token and dtype.
    """

    title: str
    speaks = True
    margin_unit = "nats"
    task_type = "CAUSAL_LM"
    base: type[Base] = Base
    load = staticmethod(load_model)
    scores = staticmethod(pair_log_probs)
    advice = "Lower --learning_rate or raise --beta"
    unit = "pairs"
    memory_advice = "lower --max_seq_length or --lora_rank, or name a smaller --base"
    logged = ("rewards/", "logps/")

    def __init__(self, recipe: Recipe, data: PreparedPairs, recompute: bool = False):
        """
        Args:
            recompute: whether activations are computed again in the backward pass.
        """
        self.recipe, self.data, self.recompute = recipe, data, recompute

    @staticmethod
    def check(recipe: Recipe) -> None:
        """Raise UsageError for what this trainer cannot do, before anything is read."""
        return None

    @staticmethod
    def count(pairs: Sequence[dict]) -> int:
        """How many rows encoded pairs make."""
        return len(pairs)

    @staticmethod
    @abstractmethod
    def rows(pairs: Sequence[dict], log_probs: Callable[[list], torch.Tensor]) -> list[dict]:
        """Rows as TRL's collator takes them.

        Args:
            pairs: encoded (`EncodedPairs.rows`).
            log_probs: the base's (sequences,) of prompts and answers, in nats.
        """

    @staticmethod
    @abstractmethod
    def losses(
        log_probs: torch.Tensor, reference: torch.Tensor, rows: Sequence[dict], beta: float
    ) -> torch.Tensor:
        """The method's loss (pairs,) of held-out pairs, from log-probabilities (pairs, 2)."""

    def equipped(self, trainer_class: type, config: type, model, arguments: dict, stand_in: dict, **more):
        """A trainer of TRL's with adapters as the recipe says, and the rows.

        Args:
            config: the class of its arguments.
            stand_in: a row of text: TRL makes token ids of its data set when it is made; our rows have
            theirs.
            more: further arguments of the trainer.
        """
        recipe, adapters = self.recipe, None
        if recipe.lora_rank:
            adapters = lora_config(
                model, recipe.lora_rank, recipe.lora_alpha, recipe.lora_dropout, self.task_type
            )
        disable_progress_bars()
        trainer = trainer_class(
            model=model,
            args=one_gpu(config(**arguments, **checkpointing(config, self.recompute))),
            train_dataset=Dataset.from_list([stand_in]),
            processing_class=self.data.tokenizer,
            peft_config=adapters,
            **more,
        )
        trainer.train_dataset = self.data.train_rows
        if adapters:  # by default PEFT asks the hub for the base's vocabulary at each save
            trainer.model.save_pretrained = functools.partial(
                trainer.model.save_pretrained, save_embedding_layers=False
            )
        return trainer

    def initial_figures(self) -> dict:
        return self.data.before["figures"] | (
            dict.fromkeys(("kl", "kl_low", "kl_high"), 0.0) if self.recipe.lora_rank and self.speaks else {}
        )

    def measure(self, model) -> dict:
        return self.data.figures(model) | self.data.watch(model)

    def as_row(self, figures: dict) -> dict:
        return row_of_evaluation(figures)

    def in_words(self, figures: dict) -> str:
        kl = f", KL {figures['kl']:.2f}" if figures.get("kl") is not None else ""
        return f"{in_words(figures, self.margin_unit)}{kl}"

    def progress_words(self, row: dict) -> str:
        if "rewards/margins" not in row:
            return ""
        right = row.get("rewards/accuracies")  # KTO's answers are no pairs
        accuracy = "" if right is None else f" | accuracy {100 * right:.0f}%"
        return f"reward margin {row['rewards/margins']:+.2f}{accuracy}"

    def problem(self, figures: dict) -> str | None:
        return self.data.problem(figures)

    def plot(self, run: Run) -> None:
        plot_preferences(run)
