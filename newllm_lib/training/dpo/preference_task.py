"""What every trainer on pairs of answers shares: held-out figures, how they are written, shown and judged.

A trainer (`dpo_task`) adds only how TRL's is made and which rows it takes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from newllm_lib import console
from newllm_lib.data.preferences import EncodedPairs, Pair
from newllm_lib.device import Device
from newllm_lib.evaluation.answers import answers, collapsed, health, kl_from_base, some_pairs
from newllm_lib.evaluation.preferences import in_words, pair_log_probs, preference_metrics
from newllm_lib.recipe import Recipe
from newllm_lib.runs import Run
from newllm_lib.training.compile import dtype_of
from newllm_lib.training.dpo.curves import plot_preferences
from newllm_lib.training.dpo.log import row_of_evaluation
from newllm_lib.training.trl.base import Base
from newllm_lib.training.trl.task import TrlTask

_WATCHED = 12  # prompts that are answered at each evaluation


@dataclass
class PreparedPairs:
    """All that training knows of its pairs; log-probabilities of the base model are (pairs, 2)."""

    tokenizer: object
    train: EncodedPairs
    evaluation: EncodedPairs
    train_reference: torch.Tensor
    evaluation_reference: torch.Tensor
    before: dict  # figures and answers of the base
    beta: float
    dtype: str  # of matrix products

    def watched(self) -> list[Pair]:
        return some_pairs(self.evaluation.pairs, _WATCHED)

    def answers(self, model) -> list[str]:
        """What a model says to the watched prompts."""
        return answers(model, self.tokenizer, self.watched(), self.before["answer_tokens"])

    def figures(self, model) -> dict:
        """How far a model prefers the better answers of the held-out pairs."""
        log_probs = pair_log_probs(model, self.evaluation.rows, self.tokenizer.pad_token_id, self.dtype)
        return preference_metrics(log_probs, self.evaluation_reference, self.evaluation.pairs, self.beta)

    def watch(self, model) -> dict:
        """The health of a model's answers and its distance from the base."""
        said = self.answers(model)
        return health(said) | kl_from_base(
            model, self.tokenizer, self.watched(), self.before["answer_tokens"], dtype=self.dtype
        )

    def problem(self, found: dict) -> str | None:
        """What has gone wrong with the answers since training began."""
        return collapsed(found, self.before["figures"])


def prepare_pairs(
    recipe: Recipe, device: Device, encoded: Sequence[EncodedPairs], base: Base
) -> PreparedPairs:
    """What the base prefers and says: the reference that training is measured against."""
    model = base.model.to(device.torch_device) if recipe.load_in == "full" else base.model
    dtype, pad = dtype_of(recipe, device), base.tokenizer.pad_token_id
    console.say("Before training: what the base prefers")
    started = time.monotonic()
    train_reference = pair_log_probs(model, encoded[0].rows, pad, dtype)
    seconds, held_out = time.monotonic() - started, encoded[1]
    reference = pair_log_probs(model, held_out.rows, pad, dtype)
    figures = preference_metrics(reference, reference, held_out.pairs, recipe.beta)
    length = max(len(row[side]) for row in held_out.rows for side in ("chosen_ids", "rejected_ids"))
    tokens = min(length + 8, recipe.max_seq_length // 2)
    said = answers(model, base.tokenizer, some_pairs(held_out.pairs, _WATCHED), tokens)
    before = {
        "figures": figures | health(said),
        "answers": said,
        "answer_tokens": tokens,
        "reference_seconds": seconds,
    }
    console.say(f"  {in_words(figures)}, on {len(held_out.pairs):,} held-out pairs")
    return PreparedPairs(base.tokenizer, *encoded, train_reference, reference, before, recipe.beta, dtype)


class PreferenceTask(TrlTask):
    """Learning from pairs. To be filled in: `build_trainer`."""

    unit = "pairs"
    memory_advice = "lower --max_seq_length or --lora_rank, or name a smaller --base"
    logged = ("rewards/", "logps/")

    def __init__(self, recipe: Recipe, data: PreparedPairs, recompute: bool = False):
        """
        Args:
            recompute: whether activations are computed again in the backward pass.
        """
        self.recipe, self.data, self.recompute = recipe, data, recompute

    def initial_figures(self) -> dict:
        return self.data.before["figures"] | (
            dict.fromkeys(("kl", "kl_low", "kl_high"), 0.0) if self.recipe.lora_rank else {}
        )

    def measure(self, model) -> dict:
        return self.data.figures(model) | self.data.watch(model)

    def as_row(self, figures: dict) -> dict:
        return row_of_evaluation(figures)

    def in_words(self, figures: dict) -> str:
        kl = f", KL {figures['kl']:.2f}" if figures.get("kl") is not None else ""
        return f"{in_words(figures)}{kl}"

    def progress_words(self, row: dict) -> str:
        if "rewards/margins" not in row:
            return ""
        return (
            f"reward margin {row['rewards/margins']:+.2f} | accuracy {100 * row['rewards/accuracies']:.0f}%"
        )

    def problem(self, figures: dict) -> str | None:
        return self.data.problem(figures)

    def plot(self, run: Run) -> None:
        plot_preferences(run)
