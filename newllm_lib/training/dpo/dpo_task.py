"""Direct preference optimization (Rafailov et al., 2023, arXiv 2305.18290) by TRL, 0.29.1 to 1.16.

The only file that knows TRL, which computes the loss and its figures. Ours are the token ids
(`data.preferences.encode`) and the reference's log-probabilities where they are computed once before
training. Everything around the trainer is `training.trl`'s.
"""

from __future__ import annotations

import copy
import functools
import warnings

from datasets import Dataset, disable_progress_bars
from trl import DPOConfig, DPOTrainer

from newllm_lib.errors import UsageError
from newllm_lib.models.lora import lora_config
from newllm_lib.recipe import Recipe
from newllm_lib.training.dpo.preference_task import PreferenceTask
from newllm_lib.training.trl.arguments import checkpointing, one_gpu

# TRL's and transformers' own use of it
warnings.filterwarnings("ignore", message=".*gradient_checkpointing.* is deprecated")
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


def dpo_config(recipe: Recipe, arguments: dict, recompute: bool = False) -> DPOConfig:
    """TRL's arguments: those of every trainer, and what is DPO's own."""
    own = {
        "beta": recipe.beta,
        "loss_type": losses(recipe.loss_type),
        "max_length": recipe.max_seq_length,
        **checkpointing(DPOConfig, recompute),
        "disable_dropout": False,  # the base's is off already; TRL would also switch off the adapters'
    }
    return one_gpu(DPOConfig(**arguments | own))


class DPOTask(PreferenceTask):
    """Raise the better answer's log-probability above the worse one's, both beside the base's."""

    def rows(self) -> list[dict]:
        """The pairs as TRL's collator takes them, with the reference's log-probabilities."""
        rows, reference = self.data.train.rows, self.data.train_reference
        return [
            {**row, "ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
            for row, (chosen, rejected) in zip(rows, reference.tolist(), strict=True)
        ]

    def build_trainer(self, model, arguments: dict) -> DPOTrainer:
        recipe, tokenizer, adapters = self.recipe, self.data.tokenizer, None
        if recipe.lora_rank:
            adapters = lora_config(model, recipe.lora_rank, recipe.lora_alpha, recipe.lora_dropout)
        disable_progress_bars()
        trainer = DPOTrainer(
            model=model,
            ref_model=None
            if adapters
            else copy.deepcopy(model),  # TRL asks for one; the rows bring what it would say
            args=dpo_config(recipe, arguments, self.recompute),
            train_dataset=_stand_in(tokenizer),
            processing_class=tokenizer,
            peft_config=adapters,
        )
        trainer.train_dataset = self.rows()
        trainer.ref_model, trainer.precompute_ref_logps = None, True
        if adapters:  # by default PEFT asks the hub for the base's vocabulary at each save
            trainer.model.save_pretrained = functools.partial(
                trainer.model.save_pretrained, save_embedding_layers=False
            )
        return trainer

    def reason_to_end(self, row: dict) -> str | None:
        if row["loss"] >= NO_LOSS:
            return None
        return (
            f"The loss is 0 at step {row['step']}: the answers are told apart beyond all measure, nothing is "
            f"learned any more. Lower --learning_rate (now {self.recipe.learning_rate:.1e}) or raise --beta, "
            "and give the new run another --output_dir."
        )


def _stand_in(tokenizer) -> Dataset:
    """One pair of text: TRL makes token ids of its data set when it is made; our rows have theirs."""
    end = tokenizer.eos_token
    return Dataset.from_list([{"prompt": end, "chosen": end, "rejected": end}])
