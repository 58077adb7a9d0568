"""Odds ratio preference optimization (Hong et al., 2024, arXiv 2403.07691) by TRL's ORPOTrainer.

It learns the preferred answers and raises their odds above the rejected ones' at once, without a reference.
Ours are the token ids; all else is TRL's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from newllm_lib.evaluation.preferences import SIDES, orpo_losses
from newllm_lib.training.preferences.preference_task import PreferenceTask
from newllm_lib.training.trl.trainers import trainer_classes


class ORPOTask(PreferenceTask):
    """Learn the better answer, and raise its odds above the worse one's."""

    title = "ORPO"
    logged = (*PreferenceTask.logged, "nll_loss", "log_odds")
    advice = "Lower --learning_rate"

    @staticmethod
    def rows(pairs: Sequence[dict], log_probs: Callable) -> list[dict]:
        """The pairs as TRL's collator takes them."""
        return [
            {
                f"{side.removesuffix('ids')}{name}": values
                for side in SIDES
                for name, values in (
                    ("input_ids", pair["prompt_ids"] + pair[side]),
                    ("attention_mask", [1] * (len(pair["prompt_ids"]) + len(pair[side]))),
                    ("labels", [-100] * len(pair["prompt_ids"]) + pair[side]),
                )
            }
            for pair in pairs
        ]

    @staticmethod
    def losses(log_probs: torch.Tensor, reference: torch.Tensor, rows: Sequence[dict], beta: float):
        return orpo_losses(log_probs, rows, beta)

    def build_trainer(self, model, arguments: dict):
        config, trainer_class = trainer_classes("ORPO")
        own = {"beta": self.recipe.beta, "max_length": self.recipe.max_seq_length, "disable_dropout": False}
        end = self.data.tokenizer.eos_token
        stand_in = {"prompt": end, "chosen": end, "rejected": end}
        return self.equipped(trainer_class, config, model, arguments | own, stand_in)
