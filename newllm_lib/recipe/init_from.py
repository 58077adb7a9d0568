"""The run that another one starts from: which it is, and which keys it decides.

Weights fit only the model they were trained in, and only the tokenizer they were trained with. So a recipe
that names a run in `from_run` takes that run's sizes and tokenizer, and a size that is asked for beside it
and differs is an error.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from newllm_lib.errors import UsageError
from newllm_lib.recipe.files import read_yaml
from newllm_lib.recipe.recipe import Recipe
from newllm_lib.recipe.values import checked
from newllm_lib.runs import Run, find_run, is_complete, list_runs

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
MODELS = {
    "new_llm": "new_llm",
    "tiny_gpt2": "tinygpt2",
    "phase7": "phase7",
}  # how they are called in the names of runs


def init_from(wanted: str, model: str, recipes: dict[str, str]) -> Run:
    """The run that `from_run: wanted` means: of a recipe its run with this model (the newest, where there are
    several with other settings), else the run of that name or in that folder.

    Raises:
        UsageError: there is none.
    """
    if wanted not in recipes:
        return find_run(wanted)
    found = [run for run in list_runs() if _is_trained(run, wanted, model)]
    plain = [run for run in found if run.name == plain_name(model, wanted)]
    if not found:
        title = recipes[wanted].split(",")[0].split(":")[0]
        raise UsageError(
            f"This starts from a run of recipe {wanted} ({title}), and there is none of {model} here yet: "
            f"train it first (`newllm train {wanted}{f' --model {model}' if model != 'new_llm' else ''}`), "
            "name another run with --from, or start from scratch with --from none."
        )
    return max(plain or found, key=lambda run: run.best.stat().st_mtime)


def plain_name(model: str, recipe: str) -> str:
    """The name of a recipe's run with this model, nothing changed: `tinygpt2_wikitext`,
    `phase7_small_triton`.
    """
    own = ("phase7_", "phase8_") if model == "phase7" else (f"{MODELS[model]}_",)
    name = recipe if recipe.startswith(own) else f"{MODELS[model]}_{recipe}"
    return f"{name}_triton" if model == "phase7" else name


def _is_trained(run: Run, recipe: str, model: str) -> bool:
    if not run.recipe_path.is_file() or not is_complete(run.best):
        return False
    recorded = read_yaml(run.recipe_path)
    return (recorded.get("recipe"), recorded.get("model", "new_llm")) == (recipe, model)


def word_for_start(run: Run) -> str:
    """How a record calls a run: by its name where that finds it, so that the record stays true on another
    machine.
    """
    try:
        same = find_run(run.name).path.resolve() == run.path.resolve()
    except UsageError:
        same = False
    return run.name if same else str(run.path.absolute())


def short_name(from_run: str) -> str:
    """The start's name without its model, for the name of the run that starts from it: `wikitext` of
    `new_llm_wikitext`.
    """
    name = Path(from_run).name
    return next((name[len(m) + 1 :] for m in MODELS.values() if name.startswith(f"{m}_")), name)


def decided_by_start(model: str) -> tuple[str, ...]:
    """Names of the keys that a start decides: its sizes and its tokenizer. TinyGPT2's window is a size (it
    has learned positions); New-LLM reads blocks of any length."""
    return _ARCHITECTURE + _TOKENIZER + (("max_seq_length",) if model == "tiny_gpt2" else ())


def keys_of_start(start: Recipe, name: str, asked: dict) -> dict:
    """The keys that the start decides.

    Args:
        start: its record. asked: what the command line or a form asks for.
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
