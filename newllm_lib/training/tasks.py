"""Which way a recipe is trained: by our own loop, or by one of TRL's trainers."""

from __future__ import annotations

from newllm_lib.recipe import Recipe
from newllm_lib.runs import Run


def train(recipe: Recipe, was_finished: bool | None = None) -> Run:
    """Train what the recipe describes, continuing an unfinished run; returns the `Run`."""
    from newllm_lib.training.run import train as run_training

    if recipe.task == "grpo":
        from newllm_lib.training.grpo.run import train_by_reward

        return run_training(recipe, train_by_reward, was_finished)
    if recipe.has_pairs:
        from newllm_lib.training.preferences.run import train_preferences

        return run_training(recipe, train_preferences, was_finished)
    if recipe.task == "sft":
        from newllm_lib.training.sft.run import train_answers

        return run_training(recipe, train_answers, was_finished)
    return run_training(recipe, was_finished=was_finished)
