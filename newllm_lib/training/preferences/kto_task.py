"""Kahneman-Tversky optimization (Ethayarajh et al., 2024, arXiv 2402.01306) by TRL's KTOTrainer.

It learns from single answers, each judged good or bad; of a pair from both. Ours are the token ids, and the
base's log-probabilities, computed once before training. The KL that rewards are measured against comes from
answers to other prompts: here each prompt's is another one's of the data, the same in every batch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch

from newllm_lib.errors import UsageError
from newllm_lib.evaluation.preferences import SIDES, kto_losses, prompt_of
from newllm_lib.recipe import Recipe
from newllm_lib.training.preferences.preference_task import PreferenceTask
from newllm_lib.training.trl.trainers import kto_is_stable, trainer_classes


class KTOTask(PreferenceTask):
    """Raise the probability of good answers and lower that of bad ones, both beside the base's."""

    title = "KTO"
    unit = "answers"
    logged = (*PreferenceTask.logged, "kl")
    least = 2  # the KL of an answer alone in its batch would be its reward

    @staticmethod
    def check(recipe: Recipe) -> None:
        if recipe.batch_size % 2:
            raise UsageError(
                f"--batch_size {recipe.batch_size}: KTO measures its KL on at least two answers at a time; "
                "give an even number."
            )
        if recipe.micro_batch_size == 1:
            raise UsageError("--micro_batch_size 1: KTO measures its KL on at least two answers at a time.")

    @staticmethod
    def count(pairs: Sequence[dict]) -> int:
        return sum(bool(pair[side]) for pair in pairs for side in SIDES)

    @staticmethod
    def rows(pairs: Sequence[dict], log_probs: Callable) -> list[dict]:
        """The answers as TRL's collator takes them, with the base's log-probabilities."""
        found = [
            {"prompt_ids": prompt_of(pair, side), "completion_ids": pair[side], "label": side == "chosen_ids"}
            for pair in pairs
            for side in SIDES
            if pair[side]
        ]
        for row, others in zip(found, _answers_to_others(found), strict=True):
            row["KL_completion_ids"] = others
        said, others = (
            log_probs([(row["prompt_ids"], row[name]) for row in found]).tolist()
            for name in ("completion_ids", "KL_completion_ids")
        )
        shaped = _stable_row if kto_is_stable() else _experimental_row
        return [shaped(row, *known) for row, *known in zip(found, said, others, strict=True)]

    @staticmethod
    def losses(log_probs: torch.Tensor, reference: torch.Tensor, rows: Sequence[dict], beta: float):
        return kto_losses(log_probs, reference, beta)

    def build_trainer(self, model, arguments: dict):
        config, trainer_class = trainer_classes("KTO")
        own = {"beta": self.recipe.beta, "max_length": self.recipe.max_seq_length, "disable_dropout": False}
        end = self.data.tokenizer.eos_token
        stand_in = {"prompt": end, "completion": end, "label": True}
        more = {"ref_model": None if self.recipe.lora_rank else copy.deepcopy(model)}  # TRL asks for one
        trainer = self.equipped(trainer_class, config, model, arguments | own, stand_in, **more)
        trainer.ref_model = None  # the rows bring what it would say
        if kto_is_stable():
            trainer.precompute_ref_logps = True
        else:
            trainer.precompute_ref_log_probs = trainer._precomputed_train_ref_log_probs = True
        return trainer


def _answers_to_others(rows: Sequence[dict]) -> list[list[int]]:
    """For each row the next answer to another prompt (of one prompt alone: the next), no longer than all that
    a row of the data is."""
    longest = max(len(row["prompt_ids"]) + len(row["completion_ids"]) for row in rows)
    found = []
    for number, row in enumerate(rows):
        ahead = [rows[(number + step) % len(rows)] for step in range(1, min(len(rows), 9))] or [row]
        other = next((one for one in ahead if one["prompt_ids"] != row["prompt_ids"]), ahead[0])
        found.append(other["completion_ids"][: longest - len(row["prompt_ids"])])
    return found


def _stable_row(row: dict, reference: float, kl_reference: float) -> dict:
    return {**row, "ref_logps": reference, "ref_KL_logps": kl_reference}


def _experimental_row(row: dict, reference: float, kl_reference: float) -> dict:
    """As TRL took them while KTO was experimental."""
    shaped = {"label": row["label"], "reference_logps": reference, "reference_KL_logps": kl_reference}
    for prefix in ("", "KL_"):
        prompt, answer = row["prompt_ids"], row[f"{prefix}completion_ids"]
        shaped |= {
            f"{prefix}completion_input_ids": prompt + answer,
            f"{prefix}completion_attention_mask": [1] * (len(prompt) + len(answer)),
            f"{prefix}completion_labels": [-100] * len(prompt) + answer,
        }
    return shaped
