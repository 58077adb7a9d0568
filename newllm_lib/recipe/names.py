"""Names of runs: the owner's, with every change of data or architecture in them."""

from __future__ import annotations

from pathlib import Path

from newllm_lib.recipe.recipe import Recipe


def run_name(base: Recipe, recipe: Recipe) -> str:
    """The owner's names (`new_llm_wikitext`, `tinygpt2_wikitext`), with every change of data or architecture in them."""
    parts = [{"new_llm": "new_llm", "tiny_gpt2": "tinygpt2"}[recipe.model], recipe.recipe]
    if recipe.recurrence != "parallel":
        parts.append(recipe.recurrence)
    if recipe.protocol != "standard":
        parts.append(f"protocol-{recipe.protocol}")
    if recipe.data_dir:
        parts.append(Path(recipe.data_dir).resolve().name)
    elif recipe.data != base.data:
        parts.append(recipe.data.rsplit("/", 1)[-1])
    for key, label in _NAMED_KEYS.items():
        if getattr(recipe, key) != getattr(base, key):
            parts.append(f"{label}{_short(getattr(recipe, key))}")
    if recipe.max_samples:
        parts.append(_short(recipe.max_samples))
    return "_".join("".join(c if c.isalnum() or c in "-._" else "-" for c in p) if i else p for i, p in enumerate(parts))


_NAMED_KEYS = {
    "num_layers": "layers", "hidden_size": "hidden", "context_dim": "context", "mlp_size": "mlp", "conv_width": "conv",
    "max_seq_length": "len", "vocab_size": "vocab", "tokenizer": "", "seed": "seed",
    "loss_on": "loss-on-",
}  # fmt: skip


def _short(value) -> str:
    if isinstance(value, int):
        for size, letter in ((10**6, "M"), (10**3, "k")):
            if value >= size and value % size == 0:
                return f"{value // size}{letter}"
    return str(value)
