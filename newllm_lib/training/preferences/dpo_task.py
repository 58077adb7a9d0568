"""Direct preference optimization (Rafailov et al., 2023, arXiv 2305.18290) by TRL, 0.29.1 to 1.16.

TRL computes the loss and its figures. Ours are the token ids (`data.preferences.encode`) and the reference's
log-probabilities, computed once before training. Everything around the trainer is `training.trl`'s.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from trl import DPOConfig, DPOTrainer

from newllm_lib.errors import UsageError
from newllm_lib.evaluation.preferences import SIDES, dpo_losses
from newllm_lib.recipe import Recipe
from newllm_lib.training.preferences.preference_task import PreferenceTask

LOSSES = (  # TRL's names that need no further argument
    "sigmoid",
    "hinge",
    "ipo",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sft",
)
NO_LOSS = 1e-7  # 0 to all digits: nothing is learned from it any more, and something is wrong


def losses(loss_type: str) -> list[str]:
    """The names in a recipe's `loss_type`.

    Raises:
        UsageError: TRL knows no such loss.
    """
    names = loss_type.split("+")
    unknown = [name for name in names if name not in LOSSES]
    if unknown:
        raise UsageError(
            f"loss_type {loss_type}: there is no {unknown[0]!r}; use one of {', '.join(LOSSES)}."
        )
    return names


def dpo_arguments(recipe: Recipe) -> dict:
    """Of TRL's arguments those that are DPO's own."""
    return {
        "beta": recipe.beta,
        "loss_type": losses(recipe.loss_type),
        "max_length": recipe.max_seq_length,
        "disable_dropout": False,  # the base's is off already; TRL would also switch off the adapters'
    }


class DPOTask(PreferenceTask):
    """Raise the better answer's log-probability above the worse one's, both beside the base's."""

    title = "DPO"

    @staticmethod
    def check(recipe: Recipe) -> None:
        losses(recipe.loss_type)

    @staticmethod
    def rows(pairs: Sequence[dict], log_probs: Callable) -> list[dict]:
        """The pairs as TRL's collator takes them, with the reference's log-probabilities."""
        said = log_probs([(pair["prompt_ids"], pair[side]) for pair in pairs for side in SIDES]).tolist()
        return [
            {**pair, "ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
            for pair, chosen, rejected in zip(pairs, said[::2], said[1::2], strict=True)
        ]

    @staticmethod
    def losses(log_probs: torch.Tensor, reference: torch.Tensor, rows: Sequence[dict], beta: float):
        return dpo_losses(log_probs, reference, beta)

    def build_trainer(self, model, arguments: dict) -> DPOTrainer:
        end = self.data.tokenizer.eos_token
        stand_in = {"prompt": end, "chosen": end, "rejected": end}
        more = {"ref_model": None if self.recipe.lora_rank else copy.deepcopy(model)}  # TRL asks for one
        own = dpo_arguments(self.recipe)
        trainer = self.equipped(DPOTrainer, DPOConfig, model, arguments | own, stand_in, **more)
        trainer.ref_model, trainer.precompute_ref_logps = None, True  # the rows bring what it would say
        return trainer

    def reason_to_end(self, row: dict) -> str | None:
        if row["loss"] >= NO_LOSS:
            return None
        return (
            f"The loss is 0 at step {row['step']}: the answers are told apart beyond all measure, nothing is "
            f"learned any more. Lower --learning_rate (now {self.recipe.learning_rate:.1e}) or raise --beta, "
            "and give the new run another --output_dir."
        )
