"""Which run another one starts from, looked up among the runs that are here; and whether the folders that a
record names are its run's. The only file of this room that reads runs: all others work on names
and values. It stands here, not in `runs`, because `load_recipe` gives a
recipe whose start has decided its sizes without being told how to find it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from newllm_lib.errors import UsageError
from newllm_lib.recipe.files import read_yaml, shipped_recipes
from newllm_lib.recipe.init_from import MODELS, keys_of_start, plain_name, short_name
from newllm_lib.recipe.recipe import Recipe
from newllm_lib.runs import Run, find_run, is_complete, list_runs, read_json


def from_start(assemble: Callable[[dict, str], Recipe], wanted: str, asked: dict) -> Recipe:
    """The recipe with its start's keys. A start that the recipe's file means (not the command line) may be
    missing until training begins: until then the recipe's own sizes stand."""
    recipe = assemble({}, wanted)
    if not recipe.depends_on("from_run"):
        return recipe
    try:
        start = start_run(wanted, recipe.model)
    except UsageError:
        recorded = _record_of_what_came_from(wanted, assemble, recipe.model if "model" in asked else None)
        if recorded is not None and recorded.from_run is not None:
            return assemble(keys_of_start(recorded, recorded.from_run, asked), recorded.from_run)
        if "from_run" in asked:
            raise
        return recipe
    if not start.recipe_path.is_file():
        raise UsageError(
            f"{start.path} holds no recipe.yaml, so its sizes are not known: start from a run of `newllm "
            "train`."
        )
    name = word_for_start(start)
    return assemble(keys_of_start(Recipe.from_yaml(start.recipe_path), name, asked), name)


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
    several with other settings), else the run of that name or in that folder.

    Raises:
        UsageError: there is none; says how to get one.
    """
    recipes = shipped_recipes()
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


def _is_trained(run: Run, recipe: str, model: str) -> bool:
    if not run.recipe_path.is_file() or not is_complete(run.best):
        return False
    recorded = read_yaml(run.recipe_path)
    return (recorded.get("recipe"), recorded.get("model", "new_llm")) == (recipe, model)


def word_for_start(run: Run) -> str:
    """How a record names a run: by its name where that finds it, so that it is true on another machine."""
    try:
        same = find_run(run.name).path.resolve() == run.path.resolve()
    except UsageError:
        same = False
    return run.name if same else str(run.path.absolute())


def check_places(path: Path, values: dict, asked: dict) -> None:
    """Refuse the folders that a run's record names, where they are not its own: it may come from elsewhere.

    Raises:
        UsageError: names the flag to ask for them with.
    """
    copied = read_json(path.parent / "mirror.json")  # a run that was restored has none
    own = {
        "output_dir": path.parent,
        "mirror_dir": copied.get("folder") if isinstance(copied, dict) else None,
    }
    sections = values["when"].values() if isinstance(values.get("when"), dict) else ()
    for key, home in own.items():
        for part in (values, *sections):
            named = part.get(key) if isinstance(part, dict) and key not in asked else None
            if named and (home is None or os.path.realpath(str(named)) != os.path.realpath(str(home))):
                raise UsageError(
                    f"{path} names {key} {named}, another place than its own: say --{key} {named} if you "
                    "want that, or name another."
                )
