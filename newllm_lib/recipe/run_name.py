"""Names of runs: the owner's, with every change of data or architecture in them."""

from __future__ import annotations

from pathlib import Path

from newllm_lib.recipe.init_from import decided_by_start, plain_name, short_name
from newllm_lib.recipe.recipe import Recipe


def run_name(base: Recipe, recipe: Recipe) -> str:
    """The owner's names (`new_llm_wikitext`, `tinygpt2_wikitext`), with every change of the recipe."""
    parts = [plain_name(recipe.model, recipe.recipe)]
    if recipe.kernels == "off" or recipe.sized_for == "cpu":
        parts = [parts[0].removesuffix("_triton")]
    if recipe.task != "train":
        parts = [recipe.recipe, Path(recipe.base).name.lower()]
    # a function's name, or a run's
    parts += [Path(recipe.reward.rpartition(".py:")[2]).name] if recipe.reward else []
    decided = decided_by_start(recipe.model) if recipe.from_run else ()  # the name of the start says them
    if recipe.recurrence != "parallel" and "recurrence" not in decided:
        parts.append(recipe.recurrence)
    if recipe.protocol != "standard" and "protocol" not in decided:
        parts.append(f"protocol-{recipe.protocol}")
    if recipe.data_dir:
        parts.append(Path(recipe.data_dir).resolve().name)
    elif recipe.data != base.data:
        is_path = not recipe.has_pairs and Path(recipe.data).is_absolute()
        parts.append(Path(recipe.data).name.partition(".")[0] if is_path else Path(recipe.data).name)
    if base.from_run and not recipe.from_run:
        parts.append("scratch")
    if recipe.from_run and base.from_run not in (recipe.from_run, start := short_name(recipe.from_run)):
        parts.append(f"from-{start}")
    for key, label in _NAMED_KEYS.items():
        if key not in decided and getattr(recipe, key) != getattr(base, key):
            parts.append(f"{label}{_short(getattr(recipe, key))}")
    if recipe.task != "train" and recipe.learning_rate != base.learning_rate:
        parts.append(f"lr{recipe.learning_rate:g}")
    if recipe.max_samples and (recipe.task == "train" or recipe.max_samples != base.max_samples):
        parts.append(_short(recipe.max_samples))
    return "_".join(
        "".join(c if c.isalnum() or c in "-._" else "-" for c in p) if i else p for i, p in enumerate(parts)
    )


_NAMED_KEYS = {
    "num_layers": "layers",
    "hidden_size": "hidden",
    "context_dim": "context",
    "mlp_size": "mlp",
    "max_seq_length": "len",
    "vocab_size": "vocab",
    "tokenizer": "",
    "template": "",
    "seed": "seed",
    "loss_on": "loss-on-",
    "documents": "documents-",
    "beta": "beta",
    "loss_type": "",
    "num_generations": "generations",
    "max_completion_length": "answers",
    "lora_rank": "lora",
    "load_in": "",
    "packing": "packing-",
    "neftune_alpha": "neftune",
    "sft_warm_start": "sft",
    "attention": "",
    "attention_window": "window",
    "curvature_schedule": "curvature-",
    "ar_ssm": "ssm-",
    "embedding": "",
    "htt_rank": "rank",
    "ssm_ranks": "ssm-ranks",
}


def _short(value) -> str:
    if isinstance(value, int):
        for size, letter in ((10**6, "M"), (10**3, "k")):
            if value >= size and value % size == 0:
                return f"{value // size}{letter}"
    return str(value).lower() if isinstance(value, bool) else str(value)
