"""A reward model of pairs of answers (Bradley and Terry's model, as in Ouyang et al., 2022) by TRL's
RewardTrainer.

The base's backbone under a head with one output; it learns to give the better answer the higher number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from transformers import set_seed

from newllm_lib.checkpoints.reward import as_reward_model, load_reward_model
from newllm_lib.evaluation.preferences import SIDES, dpo_losses, pair_rewards
from newllm_lib.training.preferences.preference_task import PreferenceTask
from newllm_lib.training.trl.base import Base
from newllm_lib.training.trl.trainers import trainer_classes


class RewardBase(Base):
    """A base model with a fresh head, the same one whenever it is read anew."""

    def load(self):
        model = super().load()
        set_seed(self.recipe.seed)
        return as_reward_model(model, self.tokenizer.pad_token_id)


class RewardTask(PreferenceTask):
    """Give the better answer the higher reward."""

    title = "A reward model"
    advice = "Lower --learning_rate"
    logged = ("accuracy", "margin", "mean_reward", "min_reward", "max_reward")
    speaks = False
    margin_unit = "of reward"
    task_type = "SEQ_CLS"
    base = RewardBase
    scores = staticmethod(pair_rewards)
    load = staticmethod(load_reward_model)

    @staticmethod
    def rows(pairs: Sequence[dict], log_probs: Callable) -> list[dict]:
        """The pairs as TRL's collator takes them: prompt and answer in one."""
        return [{side: pair["prompt_ids"] + pair[side] for side in SIDES} for pair in pairs]

    @staticmethod
    def losses(log_probs: torch.Tensor, reference: torch.Tensor, rows: Sequence[dict], beta: float):
        return dpo_losses(log_probs, torch.zeros_like(log_probs), 1.0)

    def build_trainer(self, model, arguments: dict):
        config, trainer_class = trainer_classes("Reward")
        own = {"max_length": None, "disable_dropout": False}
        end = self.data.tokenizer.eos_token_id
        stand_in = {side: [end, end] for side in SIDES}
        return self.equipped(trainer_class, config, model, arguments | own, stand_in)

    def progress_words(self, row: dict) -> str:
        if "accuracy" not in row:
            return ""
        return f"reward margin {row['margin']:+.2f} | accuracy {100 * row['accuracy']:.0f}%"
