"""A run evaluated on a split of its own data: what `newllm evaluate` shows, and each row of a comparison."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from newllm_lib.console import say
from newllm_lib.errors import NewLLMError, UsageError
from newllm_lib.evaluation.baselines import bigram, unigram
from newllm_lib.evaluation.load import load_run
from newllm_lib.evaluation.metrics import describe, evaluate

SPLITS = ("train", "validation", "test")


def evaluate_run(
    run, split: str = "test", data_dir: str | Path | None = None, *, which: str = "best", baselines: bool = False,
    batch_size: int | None = None, block_length: int | None = None, device: str | None = None, dtype: str | None = None,
) -> dict:  # fmt: skip
    """Evaluate a run (a name, a folder, or one of its checkpoints) on a split, packed with the run's own tokenizer.

    Args:
        data_dir: evaluate on this folder's text instead of the run's data.
        baselines: also the unigram and bigram tables under "baselines", counted on the training split of the same data
            (of the run's own data where `data_dir` has none).
        device: "cpu" or "cuda" (default: what `probe()` finds). dtype: default float32, in which metrics are exact.
    Returns:
        the figures of `metrics.evaluate`, with run, split and protocol.
    Raises:
        UsageError: no such run or split. NewLLMError: the run is damaged, or its data cannot be had.
    """
    from newllm_lib.device import probe

    if split not in SPLITS:
        raise UsageError(f"There is no split {split!r}: choose one of {', '.join(SPLITS)}.")
    model, tokenizer, recipe = load_run(run, which, device or probe().torch_device)
    own, recipe = recipe, data_recipe(recipe, run, data_dir)
    packed = packed_split(recipe, tokenizer, split)
    result = {"run": str(getattr(run, "name", run)), "split": split, "protocol": recipe.protocol}
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


def data_recipe(recipe, run, data_dir: str | Path | None):
    """The recipe that says which data to evaluate on.

    Raises:
        NewLLMError: the folder holds no record of its data.
    """
    if recipe is None:
        raise NewLLMError(f"{run} has no recipe.yaml, so its data is not known: name a run that `newllm train` made.")
    return replace(recipe, data_dir=str(data_dir)) if data_dir else recipe


def training_recipe(recipe, own):
    """The one whose data holds a training split: `recipe`, or `own` where `recipe`'s data is a folder without one."""
    from newllm_lib.data.folder import find_files

    without = recipe.data_dir is not None and "train" not in find_files(Path(recipe.data_dir))
    return own if without else recipe


def packed_split(recipe, tokenizer, split: str):
    """The `PackedSplit` of a recipe's data in this tokenizer's tokens."""
    from newllm_lib.data import load_split

    return load_split(recipe, tokenizer, split)
