"""What the run that another one starts from decides: which keys, and parts of names.

Weights fit only the model they were trained in, and only the tokenizer they were trained with. So a recipe
that names a run in `from_run` takes that run's sizes and tokenizer, and a size that is asked for beside it
and differs is an error.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from newllm_lib.errors import UsageError
from newllm_lib.recipe.recipe import Recipe
from newllm_lib.recipe.values import checked

_TOKENIZER = ("protocol", "tokenizer", "vocab_size")
_ARCHITECTURE = (
    "model",
    "recurrence",
    "time_scales",
    "num_layers",
    "hidden_size",
    "context_dim",
    "mlp_size",
    "num_heads",
    "match",
    "attention",
    "attention_window",
    "ar_ssm",
    "ssm_ranks",
    "embedding",
    "htt_rank",
)
# what they are called in the names of runs
MODELS = {
    "new_llm": "new_llm",
    "tiny_gpt2": "tinygpt2",
    "phase7": "phase7",
}


def plain_name(model: str, recipe: str) -> str:
    """The name of a recipe's run with this model and no changes: `tinygpt2_wikitext`."""
    own = ("phase7_", "phase8_") if model == "phase7" else (f"{MODELS[model]}_",)
    name = recipe if recipe.startswith(own) else f"{MODELS[model]}_{recipe}"
    return f"{name}_triton" if model == "phase7" else name


def short_name(from_run: str) -> str:
    """The start's name without its model: `wikitext` of `new_llm_wikitext`."""
    name = Path(from_run).name
    return next((name[len(m) + 1 :] for m in MODELS.values() if name.startswith(f"{m}_")), name)


def decided_by_start(model: str) -> tuple[str, ...]:
    """Names of the keys that a start decides: its sizes and its tokenizer. TinyGPT2's window is a size (it
    has learned positions); New-LLM reads blocks of any length."""
    return _ARCHITECTURE + _TOKENIZER + (("max_seq_length",) if model == "tiny_gpt2" else ())


def keys_of_start(start: Recipe, name: str, asked: dict) -> dict:
    """The keys that the start decides.

    Args:
        start: its record.
        asked: what the command line or a form asks for.
    Raises:
        UsageError: something else is asked for; names the keys.
    """
    decided = {key: getattr(start, key) for key in decided_by_start(start.model)}
    kinds = {f.name: f for f in fields(Recipe)}
    wrong = [
        f"{key} {value} (it has {decided[key]})"
        for key, value in asked.items()
        if key in decided and checked(kinds[key], value) != decided[key]
    ]
    if wrong:
        raise UsageError(
            f"What starts from {name} has that run's sizes and tokenizer, so this cannot be: "
            f"{', '.join(wrong)}. Leave it out, start from another run, or from scratch with --from none."
        )
    # The template is words around the turns: the start's, but another may be learned.
    return decided if "template" in asked else {**decided, "template": start.template}
