"""Group relative policy optimization (Shao et al., 2024, arXiv 2402.03300) by TRL's GRPOTrainer.

For each prompt the model writes several answers; those of a higher reward than their group's mean become more
probable. Ours are the order of the prompts, the reward, and what is measured on held-out prompts.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence

import numpy as np
from datasets import Dataset, disable_progress_bars

from newllm_lib.data.preferences.prompts import Prompt
from newllm_lib.data.records import Message
from newllm_lib.data.templates import end_of_turn
from newllm_lib.evaluation.answers import answers, health, kl_from_base, some_pairs
from newllm_lib.evaluation.preferences import interval
from newllm_lib.generation.sampling import stop_tokens
from newllm_lib.models.lora import lora_config
from newllm_lib.recipe import Recipe
from newllm_lib.runs import Run
from newllm_lib.training.grpo.reward import Reward
from newllm_lib.training.preferences.curves import plot_preferences
from newllm_lib.training.trl.arguments import checkpointing, one_gpu
from newllm_lib.training.trl.task import TrlTask
from newllm_lib.training.trl.trainers import trainer_classes

_FAR_FROM = 12  # held-out prompts on which the distance from the base is measured


class HeldOutPrompts:
    """Prompts that training never sees, and what a model's answers to them are worth.

    Args:
        dtype: of matrix products.

    Attributes:
        seconds: that `figures` took last; `seconds_an_answer`: that one answer and its reward took in it.
    """

    def __init__(self, prompts: Sequence[Prompt], tokenizer, reward: Reward, recipe: Recipe, dtype: str):
        self.prompts, self.tokenizer, self.reward, self.dtype = prompts, tokenizer, reward, dtype
        self.tokens = recipe.max_completion_length
        self.before: dict = {}
        self.seconds = self.seconds_an_answer = 0.0

    def figures(self, model) -> dict:
        """Mean reward of one sampled answer to each prompt with its interval, `loss` (its negative), the
        answers' health, and the distance from the base where that can be measured."""
        free = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": 0}
        began = time.monotonic()
        said = answers(model, self.tokenizer, self.prompts, self.tokens, **free)
        rewards = score(self.reward, self.prompts, said)
        self.seconds_an_answer = (time.monotonic() - began) / len(said)
        low, high = interval(rewards, [str(i) for i in range(len(rewards))])
        mean = float(rewards.mean())
        found = {"prompts": len(said), "reward": mean, "reward_low": low, "reward_high": high, "loss": -mean}
        few = some_pairs(self.prompts, _FAR_FROM)
        kl = kl_from_base(model, self.tokenizer, few, self.tokens, dtype=self.dtype)
        self.seconds = time.monotonic() - began
        return found | health(said) | kl

    def answers(self, model, count: int) -> list[str]:
        """The most probable answers to some of the prompts."""
        return answers(model, self.tokenizer, some_pairs(self.prompts, count), self.tokens)


def score(reward: Reward, prompts: Sequence[Prompt], said: Sequence[str]) -> np.ndarray:
    """(prompts,) rewards of an answer to each."""
    names = dict.fromkeys(name for prompt in prompts for name in prompt.columns)
    columns = {name: [prompt.columns.get(name) for prompt in prompts] for name in names}
    return np.array(reward([prompt.prompt for prompt in prompts], said, columns))


class GRPOTask(TrlTask):
    """Make answers of a high reward more probable."""

    unit = "answers"
    memory_advice = "lower --max_completion_length, --max_seq_length or --lora_rank, or name a smaller --base"
    logged = ("reward", "completions/", "kl", "entropy", "frac_reward_zero_std", "clip_ratio/")

    def __init__(self, recipe: Recipe, prompts: Sequence[Prompt], held_out: HeldOutPrompts, recompute: bool):
        """
        Args:
            recompute: whether activations are computed again in the backward pass.
        """
        self.recipe, self.prompts, self.held_out, self.recompute = recipe, prompts, held_out, recompute

    def build_trainer(self, model, arguments: dict):
        recipe, tokenizer, adapters = self.recipe, self.held_out.tokenizer, None
        if recipe.lora_rank:
            adapters = lora_config(model, recipe.lora_rank, recipe.lora_alpha, recipe.lora_dropout)
        config, trainer_class = trainer_classes("GRPO")
        stop = stop_tokens(tokenizer, model)
        model.generation_config.eos_token_id = stop
        own = {
            "beta": recipe.beta,
            "num_generations": recipe.num_generations,
            "max_completion_length": recipe.max_completion_length,
            "generation_kwargs": {"eos_token_id": stop},
            "shuffle_dataset": False,  # the rows come in an order of ours
            "disable_dropout": False,
        }
        disable_progress_bars()
        trainer = trainer_class(
            model=model,
            reward_funcs=self._reward_function(),
            args=one_gpu(config(**arguments, **own, **checkpointing(config, self.recompute))),
            train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": "?"}]}]),
            processing_class=tokenizer,
            peft_config=adapters,
        )
        if hasattr(trainer, "eos_token_id"):  # before 1.x one token alone ended an answer
            trainer.eos_token_id = _end_of_answer(tokenizer)
        trainer.train_dataset = [
            {"prompt": [m._asdict() for m in one.prompt], "columns": one.columns} for one in self.prompts
        ]
        if adapters:  # by default PEFT asks the hub for the base's vocabulary at each save
            trainer.model.save_pretrained = functools.partial(
                trainer.model.save_pretrained, save_embedding_layers=False
            )
        return trainer

    def _reward_function(self):
        """The reward as TRL calls one."""
        reward = self.held_out.reward

        def scored(prompts, completions, columns, **others) -> list[float]:
            asked = [
                Prompt(tuple(Message(**message) for message in prompt), more)
                for prompt, more in zip(prompts, columns, strict=True)
            ]
            return score(reward, asked, [completion[0]["content"] for completion in completions]).tolist()

        scored.__name__ = reward.name
        return scored

    def initial_figures(self) -> dict:
        return self.held_out.before

    def measure(self, model) -> dict:
        return self.held_out.figures(model)

    def as_row(self, figures: dict) -> dict:
        return {f"eval_{name}": value for name, value in figures.items()}

    def in_words(self, figures: dict) -> str:
        return in_words(figures)

    def progress_words(self, row: dict) -> str:
        if row.get("reward") is None:
            return ""
        return f"reward {row['reward']:+.3f} | {row['completions/mean_length']:.0f} tokens an answer"

    def plot(self, run: Run) -> None:
        plot_preferences(run)


def in_words(figures: dict) -> str:
    """`reward +0.412 (+0.380 to +0.444), answers of 31 characters, KL 0.12`."""
    kl = f", KL {figures['kl']:.2f}" if figures.get("kl") is not None else ""
    return (
        f"reward {figures['reward']:+.3f} ({figures['reward_low']:+.3f} to {figures['reward_high']:+.3f}), "
        f"answers of {figures['length']:.0f} characters{kl}"
    )


def _end_of_answer(tokenizer) -> int:
    found = end_of_turn(tokenizer)
    return tokenizer.eos_token_id if found is None else found
