"""What the run that another one starts from decides: which keys, and parts of names.

Weights fit only the model they were trained in, and only the tokenizer they were trained with. So a recipe
that names a run in `from_run` takes that run's sizes and tokenizer, and a size that is asked for beside it
and differs is an error. An export on the hub is such a run: its record lies beside its weights. The only file
of this room that reads runs: all others work on names and values. It stands here, not in `runs`, because
`load_recipe` gives a recipe whose start has decided its sizes without being told how to find it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from newllm_lib.errors import NewLLMError, UsageError
from newllm_lib.recipe.files import read_record, shipped_recipes
from newllm_lib.recipe.recipe import Recipe
from newllm_lib.recipe.values import checked
from newllm_lib.runs import Run, find_run, is_complete, list_runs, read_json

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
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


def from_start(assemble: Callable[[dict, str], Recipe], wanted: str, asked: dict) -> Recipe:
    """The recipe with its start's keys. A start that the recipe's file means (not the command line) may be
    missing until training begins: until then the recipe's own sizes stand."""
    recipe = assemble({}, wanted)
    if not recipe.depends_on("from_run"):
        return recipe
    try:
        start = start_run(wanted, recipe.model)
    except NewLLMError:
        recorded = _record_of_what_came_from(wanted, assemble, recipe.model if "model" in asked else None)
        if recorded is not None and recorded.from_run is not None:
            return assemble(keys_of_start(recorded, recorded.from_run, asked), recorded.from_run)
        if "from_run" in asked:
            raise
        return recipe
    name = wanted if is_of_hub(wanted) else word_for_start(start)
    if not start.recipe_path.is_file():
        other = f", or give it as --base {wanted}" if is_of_hub(wanted) else ""
        raise UsageError(
            f"{name if is_of_hub(wanted) else start.path} holds no recipe.yaml, so its sizes are not known: "
            f"start from a run of `newllm train`{other}."
        )
    recorded = Recipe.from_yaml(start.recipe_path)
    if recorded.task != "train":  # the record says nothing of its base's sizes
        raise UsageError(
            f"{name} was trained from {recorded.base} by task {recorded.task}: go on from it with --base "
            "instead of --from."
        )
    return assemble(keys_of_start(recorded, name, asked), name)


def _record_of_what_came_from(
    wanted: str, assemble: Callable[[dict, str], Recipe], model: str | None
) -> Recipe | None:
    """Where the start is not here any more, the run that came from it has what is needed to continue."""
    for kind in (model,) if model else MODELS:
        own = Run(assemble({"model": kind}, wanted).run_path())
        recorded = Recipe.from_yaml(own.recipe_path) if own.recipe_path.is_file() else None
        if (
            recorded is not None
            and recorded.from_run
            and wanted in (recorded.from_run, short_name(recorded.from_run))
        ):
            return recorded
    return None


def start_run(wanted: str, model: str) -> Run:
    """The run that `from_run: wanted` means: of a recipe its run with this model (the newest, where there are
    several with other settings), else the run of that name or in that folder, or the export on the hub (its
    small files alone are fetched).

    Raises:
        UsageError: there is none; says how to get one.
        NewLLMError: the hub cannot be reached.
    """
    recipes = shipped_recipes()
    if is_of_hub(wanted):
        from newllm_lib import hub, hub_models

        asked = hub.Asked(f"Model {wanted}", "name one of our runs (`newllm runs` lists them) or a folder")
        cached = hub_models.cached_snapshot(wanted, lambda folder: (folder / "recipe.yaml").is_file())
        return Run(cached or hub_models.fetch(wanted, hub_models.TEXT_FILES, asked))
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


def is_of_hub(wanted: str) -> bool:
    """Whether a start is named by its id on the hub: OWNER/NAME, where no such folder is here."""
    owner, slash, name = wanted.partition("/")
    if not (slash and _HUB_ID.fullmatch(wanted)) or owner in ("", ".", "..", "~"):
        return False
    return not (Path(owner).is_dir() or Path(wanted).exists())


def _is_trained(run: Run, recipe: str, model: str) -> bool:
    if not run.recipe_path.is_file() or not is_complete(run.best):
        return False
    recorded = read_record(run.recipe_path)
    kind = (recorded.get("task", "train"), recorded.get("recipe"), recorded.get("model", "new_llm"))
    return kind == ("train", recipe, model)


def word_for_start(run: Run) -> str:
    """How a record names a run: by its name where that finds it, so that it is true on another machine."""
    try:
        same = find_run(run.name).path.resolve() == run.path.resolve()
    except UsageError:
        same = False
    return run.name if same else str(run.path.absolute())


def check_places(path: Path, values: dict, asked: dict, is_record: bool) -> None:
    """Refuse the reward, a program, that a file names, and the folders that a run's record names, where they
    are not its own: it may come from elsewhere.

    Args:
        is_record: whether the file is a run's record.

    Raises:
        UsageError: names the flag to ask for them with.
    """
    copied = read_json(path.parent / "mirror.json")  # a run that was restored has none
    own = {
        "reward": None,
        "output_dir": path.parent,
        "mirror_dir": copied.get("folder") if isinstance(copied, dict) else None,
    }
    sections = values["when"].values() if isinstance(values.get("when"), dict) else ()
    for key, home in own.items() if is_record else (("reward", None),):
        for part in (values, *sections):
            named = part.get(key) if isinstance(part, dict) and key not in asked else None
            if named and (home is None or os.path.realpath(str(named)) != os.path.realpath(str(home))):
                raise UsageError(
                    f"{path} names {key} {named}, "
                    f"{'which would be run' if key == 'reward' else 'another place than its own'}: say "
                    f"--{key} {named} if you want that, or name another."
                )
