"""From a name or a file, the device and the flags to a recipe, and which recipes there are."""

from __future__ import annotations

import difflib
from dataclasses import fields, replace
from pathlib import Path

from newllm_lib.device import KINDS
from newllm_lib.errors import UsageError
from newllm_lib.recipe.files import check_keys, read_yaml
from newllm_lib.recipe.names import run_name
from newllm_lib.recipe.recipe import Recipe

SHIPPED = Path(__file__).parents[1] / "recipes"
_KNOWN = [f.name for f in fields(Recipe)]


def shipped_recipes() -> dict[str, str]:
    """Names of the recipes that come with the package, each with its first comment line."""
    return {
        p.stem: p.read_text(encoding="utf-8").split("\n", 1)[0].lstrip("# ") for p in sorted(SHIPPED.glob("*.yaml"))
    }


def load_recipe(name_or_path: str, overrides: dict | None = None, device_kind: str | None = None) -> Recipe:
    """A recipe by shipped name or YAML file, resolved for this device, with `overrides` (from flags or a form) on top.

    Args:
        device_kind: whose preset to use (`Device.kind`); default: `sized_for` if given, else what `probe()` finds.
    Raises:
        UsageError: unknown recipe, unknown key (with the nearest one), or a value of the wrong type or range.
    """
    path = _find(name_or_path)
    values = read_yaml(path)
    sections = values.pop("when", None) or {}
    if not isinstance(sections, dict):
        raise UsageError(f"`when:` in {path} must hold `condition: {{key: value}}` lines, such as `cpu: {{num_layers: 2}}`.")
    asked = dict(overrides or {})
    overrides = dict(asked)
    check_keys(values, str(path), _KNOWN)
    check_keys(overrides, "the command line", _KNOWN)
    values.setdefault("recipe", path.stem)

    kind = overrides.get("sized_for") or values.get("sized_for") or "auto"
    if kind == "auto":
        kind = device_kind or _probe_kind()
    chosen = {**values, **overrides}
    conditions = {str(kind), *(str(chosen.get(k, _default(k))) for k in ("model", "protocol", "recurrence"))}
    for condition, part in sections.items():
        _check_condition(condition, path)
        check_keys(part, f"{path}, when: {condition}", _KNOWN)
        if condition in conditions:
            values.update(part)
    base = Recipe(**{**values, "sized_for": kind})
    if "learning_rate" in overrides or "batch_size" in overrides:
        overrides = _keep_learning_rate_meaning(base, overrides)
    recipe = replace(base, **{**overrides, "sized_for": kind})
    if recipe.protocol == "seed":
        if overrides.get("tokenizer", "words") != "words":
            raise UsageError(f"protocol seed is the original's 1,000 words: leave out tokenizer {overrides['tokenizer']}.")
        recipe = replace(recipe, **{"tokenizer": "words", "vocab_size": 1000} | _only(overrides, ("vocab_size",)))
        base = replace(base, tokenizer="words", vocab_size=1000)
    if recipe.run_name == "auto":
        recipe.run_name = run_name(base, recipe)
    if recipe.data_dir:  # the record must be true from any folder
        recipe.data_dir = str(Path(recipe.data_dir).expanduser().absolute())
    recipe.origin = (name_or_path, asked)
    return recipe


def _keep_learning_rate_meaning(base: Recipe, overrides: dict) -> dict:
    """A batch size given by the user scales the recipe's learning rate; a learning rate given by the user is meant as it is."""
    if "learning_rate_batch_size" in overrides:
        return overrides
    if "learning_rate" in overrides:
        return {**overrides, "learning_rate_batch_size": overrides.get("batch_size", base.batch_size)}
    return {**overrides, "learning_rate_batch_size": base.learning_rate_batch_size or base.batch_size}




def _find(name_or_path: str) -> Path:
    shipped = SHIPPED / f"{name_or_path}.yaml"
    if shipped.is_file():
        return shipped
    path = Path(name_or_path)
    if path.is_file():
        return path
    if path.is_dir() and (path / "recipe.yaml").is_file():
        return path / "recipe.yaml"
    names = list(shipped_recipes())
    near = difflib.get_close_matches(name_or_path, names, 1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
    raise UsageError(f"No recipe or YAML file named {name_or_path!r}: {hint} (`newllm recipes` lists them)")


def _check_condition(condition: str, path: Path) -> None:
    known = [*KINDS, *(c for f in fields(Recipe) if f.name in ("model", "protocol", "recurrence") for c in f.metadata["choices"])]
    if condition not in known:
        raise UsageError(f"Unknown condition {condition!r} under `when:` in {path}: use one of {', '.join(known)}.")


def _default(key: str):
    return next(f.default for f in fields(Recipe) if f.name == key)


def _only(values: dict, keys: tuple) -> dict:
    return {k: values[k] for k in keys if k in values}


def _probe_kind() -> str:
    from newllm_lib.device import probe

    return probe().kind
