"""Training: one call takes a recipe to a finished run folder.

What only some runs need, or need at their end, is a name of this package that is loaded when it is used.
"""

from __future__ import annotations

from newllm_lib.lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    submodules=["adapters", "cuda_graphs", "distill", "model_config", "report"],
)


def train(recipe, was_finished: bool | None = None):
    """Train what the recipe describes, continuing an unfinished run; returns the `Run`."""
    from newllm_lib.training.run import train as run_training

    if recipe.task == "dpo":
        from newllm_lib.training.dpo.run import train_preferences

        return run_training(recipe, train_preferences, was_finished)
    if recipe.task == "sft":
        from newllm_lib.training.sft.run import train_answers

        return run_training(recipe, train_answers, was_finished)
    return run_training(recipe, was_finished=was_finished)
