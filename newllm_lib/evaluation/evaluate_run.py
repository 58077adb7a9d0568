"""A model evaluated on a split of its own or of other data: `newllm evaluate`, and rows of a comparison."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from newllm_lib.checkpoints import ModelLocation, load_model, load_reward_model, locate
from newllm_lib.console import say
from newllm_lib.errors import NewLLMError, UsageError
from newllm_lib.evaluation.baselines import bigram, unigram
from newllm_lib.evaluation.evaluate_pairs import evaluate_pairs
from newllm_lib.evaluation.metrics import describe, evaluate
from newllm_lib.recipe import Recipe
from newllm_lib.runs import Run

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class EvaluationData:
    """Which text to evaluate on.

    Attributes:
        split: "train", "validation" or "test".
        data: a source by name, or a hub id; None: the run's own.
        data_dir: a folder of texts instead.
        loss_on: count "answers" or "everything"; None: as the recipe of that source learns it, else as the
            run did.
    """

    split: str = "test"
    data: str | None = None
    data_dir: str | Path | None = None
    loss_on: str | None = None

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise UsageError(f"There is no split {self.split!r}: choose one of {', '.join(SPLITS)}.")

    @property
    def is_own(self) -> bool:
        """Whether it is the data that the run was trained on."""
        return not (self.data or self.data_dir)

    def recipe(self, own: Recipe | None, name: str) -> Recipe:
        """The recipe that says which data to read, and what of it counts.

        Args:
            own: the record of the model's training, if it has one.
            name: the model's, for the error.

        Raises:
            UsageError: there is no record, and no data was named.
        """
        from newllm_lib.recipe import load_recipe, shipped_recipes

        if own is None and self.is_own:
            raise UsageError(
                f"{name}: no recipe.yaml says on what it was trained, so name data with --data (wikitext, …) "
                "or --data_dir."
            )
        named = self.data if self.data in shipped_recipes() else None
        known = (
            load_recipe(named or "demo", device_kind="cpu", resolve_start=False)
            if named or own is None
            else own
        )
        recipe = known if own is None else own
        if self.data:
            loss_on = known.loss_on if named or own else "everything"
            recipe = replace(recipe, data=self.data, data_dir=None, max_samples=None, loss_on=loss_on)
        if self.data_dir:
            recipe = replace(recipe, data_dir=str(self.data_dir))
        return replace(recipe, loss_on=self.loss_on) if self.loss_on else recipe


def evaluate_run(
    model: str | Path | Run | ModelLocation,
    data: EvaluationData | None = None,
    *,
    which: str = "best",
    baselines: bool = False,
    device: str | None = None,
    **how,
) -> dict:
    """Evaluate a model (as `load_model` finds it) on a split, packed with the model's own tokenizer.

    Args:
        data: on what (default: the test split of what its run was trained on).
        which: of a run "best", "last" or "checkpoint-N".
        baselines: also the unigram and bigram tables under "baselines", counted on the training split of the
            same data (of the run's own data where `data.data_dir` has none).
        device: "cpu" or "cuda" (default: what `probe()` finds).
        how: `batch_size`, `block_length` and `dtype` of `metrics.evaluate`.

    Returns:
        the figures of `metrics.evaluate`, with run, split and protocol; of a preference run on its own pairs
        those of `evaluate_pairs`.

    Raises:
        UsageError: no such model.
        NewLLMError: it is damaged, or its data cannot be read.
    """
    from newllm_lib.device import probe

    data = data or EvaluationData()
    location = model if isinstance(model, ModelLocation) else locate(model, which)
    own = location.recipe()
    if own is None and location.folder is not None:
        data.recipe(own, location.name)  # refuses before anything is loaded
    load = load_reward_model if own is not None and own.task == "reward" else load_model
    loaded = load(location, device=device or probe().torch_device)
    own, network, tokenizer = loaded.recipe, loaded.model, loaded.tokenizer
    name = str(getattr(model, "name", model))
    if own is not None and own.has_pairs and own.task != "grpo" and data.is_own:
        return {"run": name, **evaluate_pairs(network, tokenizer, own, how.get("dtype"))}
    if own is not None and own.task == "grpo" and data.is_own:
        raise UsageError(
            f"{name} was trained by a reward, which is not here to measure it by: its card.md has the "
            "figures. Name text with --data (wikitext, …) or --data_dir."
        )
    recipe = data.recipe(own, name)
    packed = packed_split(recipe, tokenizer, data.split)
    result: dict[str, Any] = {"run": name, "split": data.split, "protocol": recipe.protocol}
    result |= {"data": recipe.data_dir or recipe.data, "loss_on": recipe.loss_on}
    result |= evaluate(network, packed, tokenizer, **how)
    say(describe(result))
    if result.get("context_warning"):
        say(result["context_warning"])
    if baselines:
        result["baselines"] = counted_baselines(training_recipe(recipe, own), tokenizer, packed)
        for name, figures in result["baselines"].items():
            say(f"{name}: {describe(figures)}")
    return result


def counted_baselines(recipe: Recipe | None, tokenizer, split) -> dict:
    """{"unigram": figures, "bigram": figures} of the recipe's training split on `split`; {} without one."""
    if recipe is None:
        return {}
    train = packed_split(recipe, tokenizer, "train")
    return {"unigram": unigram(train, split, tokenizer), "bigram": bigram(train, split, tokenizer)}


def training_recipe(recipe: Recipe, own: Recipe | None) -> Recipe | None:
    """The one whose data holds a training split: `recipe`, or `own` where `recipe`'s folder has none."""
    from newllm_lib.data.readers.file_names import find_files

    without = recipe.data_dir is not None and "train" not in find_files(Path(recipe.data_dir))
    return own if without else recipe


def packed_split(recipe: Recipe, tokenizer, split: str):
    """The `PackedSplit` of a recipe's data in this tokenizer's tokens.

    Raises:
        NewLLMError: the data cannot be read, or are dialogues and the tokenizer has no tokens for turns.
    """
    from newllm_lib.data import load_split

    if not tokenizer.is_fast:
        raise NewLLMError(
            f"The tokenizer of {tokenizer.name_or_path} has no fast version (tokenizer.json): name another."
        )
    if tokenizer.bos_token_id is None:  # Qwen's, say: a document begins where the one before it ended
        tokenizer.bos_token = tokenizer.eos_token
    return load_split(recipe, tokenizer, split)
