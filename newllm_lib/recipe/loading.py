"""From a name or a file, the device and the flags to a recipe, and which recipes there are."""

from __future__ import annotations

import difflib
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

from newllm_lib.device import KINDS
from newllm_lib.errors import UsageError
from newllm_lib.recipe.aliases import GUIDES_KEYS, older_names, resolve_keys
from newllm_lib.recipe.files import SHIPPED, check_keys, from_users_folder, read_yaml, shipped_recipes
from newllm_lib.recipe.init_from import check_places, from_start
from newllm_lib.recipe.meaning import refuse_without_effect_in_file
from newllm_lib.recipe.recipe import Recipe
from newllm_lib.recipe.recorded import as_of_today, is_record
from newllm_lib.recipe.run_name import run_name
from newllm_lib.runs import check_plain_name

_PART = "max_samples"  # the condition that only a part of the data is used
_WHOLE = "all_weights"  # the condition that no adapters are trained in their place
# conditions of files of the user's, by their bytes
_SIZES = {"large_text": 20_000_000, "medium_text": 1_000_000, "small_text": 1}
_OF_THE_DATA = ("recipe", "data", "data_dir", "max_samples", "loss_on")
_KNOWN = [f.name for f in fields(Recipe)]


def load_recipe(
    name_or_path: str,
    overrides: dict | None = None,
    device_kind: str | None = None,
    resolve_start: bool = True,
) -> Recipe:
    """A recipe by shipped name or YAML file, resolved for this device, with `overrides` on top.

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
    values = _resolve_file_keys(values, path)
    asked = resolve_keys(overrides or {}, "the command line", values.get("micro_batch_size"))
    check_keys({k: v for k, v in values.items() if k != "when"}, str(path), _KNOWN)
    check_keys(asked, "the command line", _KNOWN)
    check_places(path, values, asked, recorded or path.name == "recipe.yaml")
    if not recorded:
        values = _for_a_base(values, asked)
    assemble = partial(_assembled, path, values, asked, device_kind)
    wanted = Recipe(from_run=asked.get("from_run", values.get("from_run"))).from_run
    recipe = from_start(assemble, wanted, asked) if wanted and resolve_start else assemble({}, wanted)
    if not recorded:
        refuse_without_effect_in_file(path, values)
    recipe.origin = (name_or_path, asked)
    return recipe


def _for_a_base(values: dict, asked: dict) -> dict:
    """A file's values where its data are to be learned by a base that somebody else has trained: of a recipe
    for a fresh model its data alone, all else as recipe sft has it.

    Raises:
        UsageError: a start is asked for beside the base.
    """
    if asked.get("base") and str(asked.get("from_run", "none")).lower() != "none":
        raise UsageError(
            "--from goes on with a model of ours, --base takes any model to TRL's trainers: leave out one of "
            "the two."
        )
    task = values.get("task", "train")
    wanted = asked.get("task", "sft" if task == "train" and asked.get("base") else task)
    if wanted != "sft":
        return values
    sft = read_yaml(SHIPPED / "sft.yaml")
    return {**sft, **(values if task == "sft" else _only(values, _OF_THE_DATA))}


def overrides(arguments: object) -> dict[str, object]:
    """The recipe keys that a command line sets, as text (`Recipe` knows their types).

    Args:
        arguments: what the parser made of it, with a `set_<key>` for each key that was given.
    """
    keys = [*_KNOWN, *GUIDES_KEYS, *older_names()]
    return {key: value for key in keys if (value := getattr(arguments, f"set_{key}", None)) is not None}


def _resolve_file_keys(values: dict, path: Path) -> dict:
    """A file's values, those under `when:` too, with the guide's names replaced by ours, and with places as
    who wrote them meant them."""
    values = _resolve_part(values, path, str(path))
    if isinstance(values.get("when"), dict):
        values["when"] = {
            str(condition): _resolve_part(
                part, path, f"{path}, when: {condition}", values.get("micro_batch_size")
            )
            for condition, part in values["when"].items()
        }
    return values


def _resolve_part(values: dict, path: Path, where: str, at_a_time: int | str | None = None) -> dict:
    values = resolve_keys(values, where, at_a_time)
    if path.name == "recipe.yaml":  # a run's: they are whole
        return values
    return {key: from_users_folder(key, value) for key, value in values.items()}


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
    if not Recipe(lora_rank=chosen.get("lora_rank", 0)).lora_rank:
        conditions.add(_WHOLE)
    conditions.add(size_of_text(chosen.get("data_dir") or chosen.get("data")))
    for condition, part in sections.items():
        _check_condition(condition, path)
        check_keys(part, f"{path}, when: {condition}", _KNOWN)
        if conditions.issuperset(condition.split(", ")):
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
    if (
        not recipe.has_pairs
        and recipe.data not in shipped_recipes()
        and Path(recipe.data).expanduser().exists()
    ):
        recipe.data = str(Path(recipe.data).expanduser().absolute())
    if recipe.run_name == "auto":
        recipe.run_name = run_name(base, recipe)
    check_plain_name(recipe.run_name, "--run_name")
    for key in ("data_dir", "mirror_dir"):  # the record must be true from any folder
        named = getattr(recipe, key)
        if named and not named.startswith("hf://"):
            setattr(recipe, key, str(Path(named).expanduser().absolute()))
    return recipe


def _keep_learning_rate_meaning(base: Recipe, overrides: dict) -> dict:
    """A batch size given by the user scales the recipe's learning rate; a given learning rate stays."""
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


def size_of_text(data: object) -> str:
    """Which of `_SIZES` files of the user's are; empty where the data are none."""
    place = Path(str(data or "")).expanduser()
    files = [place] if place.is_file() else [*place.glob("*.*"), *place.glob("*/*.*")] if data else []
    size = sum(file.stat().st_size for file in files if file.is_file())
    return next((name for name, least in _SIZES.items() if size >= least), "")


def _check_condition(condition: str, path: Path) -> None:
    named = [f for f in fields(Recipe) if f.name in ("model", "protocol", "recurrence")]
    known = [*KINDS, _PART, _WHOLE, *_SIZES, *(choice for f in named for choice in f.metadata["choices"])]
    if not set(condition.split(", ")) <= set(known):
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
