"""A run evaluated on a split of its own data: what `newllm evaluate` shows, and each row of a comparison."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from newllm_lib.console import say
from newllm_lib.errors import NewLLMError, UsageError
from newllm_lib.evaluation.baselines import bigram, unigram
from newllm_lib.evaluation.evaluate_pairs import evaluate_pairs
from newllm_lib.evaluation.load import load_run
from newllm_lib.evaluation.metrics import describe, evaluate

SPLITS = ("train", "validation", "test")


def evaluate_run(
    run, split: str = "test", data_dir: str | Path | None = None, *, data: str | None = None, loss_on: str | None = None,
    which: str = "best", baselines: bool = False,
    batch_size: int | None = None, block_length: int | None = None, device: str | None = None, dtype: str | None = None,
) -> dict:  # fmt: skip
    """Evaluate a run (a name, a folder, or one of its checkpoints) on a split, packed with the run's own tokenizer.

    Args:
        data_dir: evaluate on this folder's text instead of the run's data. data: on this source (a name, or a hub id).
        loss_on: count "answers" or "everything" (default: as the recipe of that name learns it, else as the run did).
        baselines: also the unigram and bigram tables under "baselines", counted on the training split of the same data
            (of the run's own data where `data_dir` has none).
        device: "cpu" or "cuda" (default: what `probe()` finds). dtype: default float32, in which metrics are exact.
    Returns:
        the figures of `metrics.evaluate`, with run, split and protocol; of a preference run on its own pairs those of
        `evaluate_pairs`.
    Raises:
        UsageError: no such run or split. NewLLMError: the run is damaged, or its data cannot be had.
    """
    from newllm_lib.device import probe

    if split not in SPLITS:
        raise UsageError(f"There is no split {split!r}: choose one of {', '.join(SPLITS)}.")
    model, tokenizer, recipe = load_run(run, which, device or probe().torch_device)
    if recipe is not None and recipe.task == "dpo" and not (data or data_dir):
        return {"run": str(getattr(run, "name", run)), **evaluate_pairs(model, tokenizer, recipe, dtype)}
    own, recipe = recipe, data_recipe(recipe, run, data_dir, data, loss_on)
    packed = packed_split(recipe, tokenizer, split)
    result = {"run": str(getattr(run, "name", run)), "split": split, "protocol": recipe.protocol}
    result |= {"data": recipe.data_dir or recipe.data, "loss_on": recipe.loss_on}
    result |= evaluate(model, packed, tokenizer, batch_size=batch_size, block_length=block_length, dtype=dtype)
    say(describe(result))
    if result.get("context_warning"):
        say(result["context_warning"])
    if baselines:
        result["baselines"] = counted_baselines(training_recipe(recipe, own), tokenizer, packed)
        for name, figures in result["baselines"].items():
            say(f"{name}: {describe(figures)}")
    return result


def counted_baselines(recipe, tokenizer, split) -> dict:
    """{"unigram": figures, "bigram": figures} of the recipe's training split on `split`."""
    train = packed_split(recipe, tokenizer, "train")
    return {"unigram": unigram(train, split, tokenizer), "bigram": bigram(train, split, tokenizer)}


def data_recipe(recipe, run, data_dir: str | Path | None, data: str | None = None, loss_on: str | None = None):
    """The recipe that says which data to evaluate on, and what of it counts.

    Raises:
        NewLLMError: the folder holds no record of its data.
    """
    from newllm_lib.recipe import load_recipe, shipped_recipes

    if recipe is None:
        raise NewLLMError(f"{run} has no recipe.yaml, so its data is not known: name a run that `newllm train` made.")
    if data:
        learned = load_recipe(data, device_kind="cpu", resolve_start=False) if data in shipped_recipes() else recipe
        recipe = replace(recipe, data=data, data_dir=None, max_samples=None, loss_on=learned.loss_on)
    if data_dir:
        recipe = replace(recipe, data_dir=str(data_dir))
    return replace(recipe, loss_on=loss_on) if loss_on else recipe


def training_recipe(recipe, own):
    """The one whose data holds a training split: `recipe`, or `own` where `recipe`'s data is a folder without one."""
    from newllm_lib.data.readers.folder import find_files

    without = recipe.data_dir is not None and "train" not in find_files(Path(recipe.data_dir))
    return own if without else recipe


def packed_split(recipe, tokenizer, split: str):
    """The `PackedSplit` of a recipe's data in this tokenizer's tokens."""
    from newllm_lib.data import load_split

    return load_split(recipe, tokenizer, split)
