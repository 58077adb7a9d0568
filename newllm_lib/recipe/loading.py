"""From a name or a file, the device and the flags to a recipe, and which recipes there are."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

from newllm_lib.device import KINDS
from newllm_lib.errors import UsageError
from newllm_lib.recipe.aliases import GUIDES_KEYS, older_names, resolve_keys
from newllm_lib.recipe.files import check_keys, read_yaml
from newllm_lib.recipe.init_from import MODELS, init_from, keys_of_start, short_name, word_for_start
from newllm_lib.recipe.meaning import refuse_without_effect_in_file
from newllm_lib.recipe.recipe import Recipe
from newllm_lib.recipe.recorded import as_of_today, is_record
from newllm_lib.recipe.run_name import run_name
from newllm_lib.runs import Run, check_plain_name

SHIPPED = Path(__file__).parents[1] / "recipes"
_PART = "max_samples"  # the condition that only a part of the data is used
_KNOWN = [f.name for f in fields(Recipe)]


def shipped_recipes() -> dict[str, str]:
    """Names of the recipes that come with the package, each with its first comment line."""
    return {
        p.stem: p.read_text(encoding="utf-8").split("\n", 1)[0].lstrip("# ")
        for p in sorted(SHIPPED.glob("*.yaml"))
    }


def load_recipe(
    name_or_path: str,
    overrides: dict | None = None,
    device_kind: str | None = None,
    resolve_start: bool = True,
) -> Recipe:
    """A recipe by shipped name or YAML file, resolved for this device, with `overrides` (from flags or a
    form) on top.

    Args:
        device_kind: whose preset to use (`Device.kind`); default: `sized_for` if given, else what `probe()`
        finds.
        resolve_start: take the sizes and the tokenizer of the run that `from_run` names (else the name is
        left as it stands).
    Raises:
        UsageError: unknown recipe, unknown key (with the nearest one), a value of the wrong type or range, a
            start that is not there, or one that does not fit what is asked for.
    """
    path = _find(name_or_path)
    values = read_yaml(path)
    values.setdefault("recipe", path.stem)
    recorded = is_record(values)
    if recorded:
        values = as_of_today(values, path, _KNOWN)
    values = _file_in_our_words(values, path)
    asked = resolve_keys(overrides or {}, "the command line", values.get("micro_batch_size"))
    check_keys({k: v for k, v in values.items() if k != "when"}, str(path), _KNOWN)
    check_keys(asked, "the command line", _KNOWN)
    assemble = partial(_assembled, path, values, asked, device_kind)
    wanted = Recipe(from_run=asked.get("from_run", values.get("from_run"))).from_run
    recipe = (
        assemble({}, wanted) if wanted is None or not resolve_start else _from_start(assemble, wanted, asked)
    )
    if not recorded:
        refuse_without_effect_in_file(path, values)
    recipe.origin = (name_or_path, asked)
    return recipe


def overrides(arguments: object) -> dict[str, str]:
    """The recipe keys that a command line sets, as text (`Recipe` knows their types).

    Args:
        arguments: what the parser made of it, with a `set_<key>` for each key that was given.
    """
    keys = [*_KNOWN, *GUIDES_KEYS, *older_names()]
    return {key: value for key in keys if (value := getattr(arguments, f"set_{key}", None)) is not None}


def _file_in_our_words(values: dict, path: Path) -> dict:
    """A file's values, those under `when:` too, with the guide's names replaced by ours."""
    values = resolve_keys(values, str(path))
    if isinstance(values.get("when"), dict):
        values["when"] = {
            condition: resolve_keys(part, f"{path}, when: {condition}", values.get("micro_batch_size"))
            for condition, part in values["when"].items()
        }
    return values


def _from_start(assemble: Callable[[dict, str], Recipe], wanted: str, asked: dict) -> Recipe:
    """The recipe with its start's keys. A start that the recipe's file means (not the command line) may be
    missing until training begins: until then the recipe's own sizes stand."""
    recipe = assemble({}, wanted)
    if not recipe.depends_on("from_run"):
        return recipe
    try:
        start = start_run(wanted, recipe.model)
    except UsageError:
        recorded = _record_of_what_came_from(wanted, assemble, recipe.model if "model" in asked else None)
        if recorded is not None:
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
    """Where the start is not here (any more), the run that came from it says the same: it can be continued
    without it.
    """
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
    """The run that `from_run: wanted` means for this model.

    Raises:
        UsageError: there is none; says how to get one.
    """
    return init_from(wanted, model, shipped_recipes())


def _assembled(
    path: Path, values: dict, asked: dict, device_kind: str | None, decided: dict, from_run: str | None
) -> Recipe:
    """The recipe of a file's `values`, with the sections under `when:` that apply, what is asked for, and the
    keys that its start has decided."""
    values, overrides = dict(values), {**asked, **decided}
    sections = values.pop("when", None) or {}
    if not isinstance(sections, dict):
        raise UsageError(
            f"`when:` in {path} must hold `condition: {{key: value}}` lines, such as `cpu: {{num_layers: "
            "2}`."
        )
    kind = overrides.get("sized_for") or values.get("sized_for") or "auto"
    if kind == "auto":
        kind = device_kind or _probe_kind()
    chosen = {**values, **overrides}
    conditions = {str(kind), *(str(chosen.get(k, _default(k))) for k in ("model", "protocol", "recurrence"))}
    if Recipe(max_samples=chosen.get("max_samples")).max_samples is not None:
        conditions.add(_PART)
    for condition, part in sections.items():
        _check_condition(condition, path)
        check_keys(part, f"{path}, when: {condition}", _KNOWN)
        if condition in conditions:
            values.update(part)
    base = Recipe(**{**values, "sized_for": kind})
    if "learning_rate" in overrides or "batch_size" in overrides:
        overrides = _keep_learning_rate_meaning(base, overrides)
    recipe = replace(base, **{**overrides, "sized_for": kind, "from_run": from_run})
    if recipe.protocol == "seed":
        if overrides.get("tokenizer", "words") != "words":
            raise UsageError(
                f"protocol seed is the original's 1,000 words: leave out tokenizer {overrides['tokenizer']}."
            )
        recipe = replace(
            recipe, **{"tokenizer": "words", "vocab_size": 1000} | _only(overrides, ("vocab_size",))
        )
        base = replace(base, tokenizer="words", vocab_size=1000)
    if recipe.run_name == "auto":
        recipe.run_name = run_name(base, recipe)
    check_plain_name(recipe.run_name, "--run_name")
    for key in ("data_dir", "mirror_dir"):  # the record must be true from any folder
        if getattr(recipe, key):
            setattr(recipe, key, str(Path(getattr(recipe, key)).expanduser().absolute()))
    return recipe


def _keep_learning_rate_meaning(base: Recipe, overrides: dict) -> dict:
    """A batch size given by the user scales the recipe's learning rate; a learning rate given by the user is
    meant as it is.
    """
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
    named = [f for f in fields(Recipe) if f.name in ("model", "protocol", "recurrence")]
    known = [*KINDS, _PART, *(choice for f in named for choice in f.metadata["choices"])]
    if condition not in known:
        raise UsageError(
            f"Unknown condition {condition!r} under `when:` in {path}: use one of {', '.join(known)}."
        )


def _default(key: str):
    return next(f.default for f in fields(Recipe) if f.name == key)


def _only(values: dict, keys: tuple) -> dict:
    return {k: values[k] for k in keys if k in values}


def _probe_kind() -> str:
    from newllm_lib.device import probe

    return probe().kind
