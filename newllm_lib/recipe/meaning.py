"""A key that does nothing where a person wrote it is refused, so that nobody waits for its effect."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path

from newllm_lib.errors import UsageError
from newllm_lib.recipe.recipe import Recipe, does_something
from newllm_lib.recipe.values import checked

_FIELDS = {f.name: f for f in fields(Recipe)}


def refuse_without_effect(keys: Iterable[str], *recipes: Recipe, spelling: str = "--{}") -> None:
    """
    Args:
        keys: that a person typed.
        recipes: of all that the command trains.
        spelling: how the person spelled a key.

    Raises:
        UsageError: a key does nothing in any of them; names what it belongs to.
    """
    for key in keys:
        if not any(recipe.depends_on(key) for recipe in recipes):
            typed = spelling.format(_FIELDS[key].metadata["flag"] or key)
            raise UsageError(
                f"{typed} {_belongs(key, recipes[0].task, *(recipe.model for recipe in recipes))}: leave it "
                "out."
            )


def refuse_without_effect_in_file(path: Path, values: dict) -> None:
    """A recipe's file is also for the TinyGPT2 of the same data. A key at its default passes: a file that
    `newllm recipes show` wrote has them all.

    Raises:
        UsageError: a key of the file does nothing; names what it belongs to.
    """
    task, model = (values.get(name, _FIELDS[name].default) for name in ("task", "model"))
    parts = {"": {k: v for k, v in values.items() if k != "when"}, **(values.get("when") or {})}
    for condition, part in parts.items():
        for key, value in part.items():
            f, models = _FIELDS[key], (model, "tiny_gpt2", condition)
            if checked(f, value) != f.default and not any(does_something(f, task, one) for one in models):
                where = f"{path}, when: {condition}" if condition else path
                raise UsageError(f"{where}: {key} {_belongs(key, task, model)}: leave it out.")


def _belongs(key: str, task: str, *models: str) -> str:
    about = _FIELDS[key].metadata
    if about["tasks"] and task not in about["tasks"]:
        return f"is for task {', '.join(about['tasks'])}, and does nothing for task {task}"
    return f"is for {' and '.join(about['models'])}, and does nothing for {' or '.join(models)}"
