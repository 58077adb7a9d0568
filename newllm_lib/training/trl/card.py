"""What the cards of runs from a base have in common."""

from __future__ import annotations

import json
from importlib import metadata

from newllm_lib.recipe import Recipe
from newllm_lib.runs import Run

CARD = "card.md"
_OURS = ("new_llm", "tiny_gpt2", "phase7")
_PACKAGES = ("torch", "transformers", "trl", "peft", "datasets")


def trained(recipe: Recipe) -> str:
    """Which weights were trained."""
    if not recipe.lora_rank:
        return "all weights"
    held = f", the base held in {recipe.load_in}" if recipe.load_in != "full" else ""
    return (
        f"LoRA adapters of rank {recipe.lora_rank} (alpha {recipe.lora_alpha:g}, dropout "
        f"{recipe.lora_dropout:g}{held})"
    )


def versions() -> str:
    """The packages that trained it."""
    return ", ".join(f"{name} {metadata.version(name)}" for name in _PACKAGES)


def use_section(run: Run, recipe: Recipe) -> list[str]:
    """How the best model is loaded in the run's folder."""
    reward = recipe.task == "reward"
    kind = "AutoModelForSequenceClassification" if reward else "AutoModelForCausalLM"
    if not recipe.lora_rank:
        body = [
            f'model = {kind}.from_pretrained("best")',
            'tokenizer = AutoTokenizer.from_pretrained("best")',
        ]
    else:
        base = "base" if (run.path / "base").is_dir() else recipe.base
        body = [
            f'base = {kind}.from_pretrained("{base}"{", num_labels=1" if reward else ""})',
            'tokenizer = AutoTokenizer.from_pretrained("best")',
            *(["base.config.pad_token_id = tokenizer.pad_token_id"] if reward else []),
            'model = PeftModel.from_pretrained(base, "best")  # .merge_and_unload() adds the adapters to the '
            "weights",
        ]
    written = run.path / ("base" if recipe.lora_rank else "best") / "config.json"
    model_type = json.loads(written.read_text(encoding="utf-8"))["model_type"] if written.is_file() else ""
    known = "newllm_lib.models" + (".sequence_classification" if reward else "")
    ours = [f"import {known}  # makes its models known"] if model_type in _OURS else []
    imports = ["from peft import PeftModel"] if recipe.lora_rank else []
    imports += [f"from transformers import {kind}, AutoTokenizer"]
    return ["## Use", "", "In the run's folder:", "", "```python", *ours, *imports, "", *body, "```"]
