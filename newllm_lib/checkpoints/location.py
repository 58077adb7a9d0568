"""Where the model is that a user names: in a run, in another folder, or on the hub. No weights are read."""

from __future__ import annotations

import difflib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from newllm_lib.errors import NewLLMError, UsageError
from newllm_lib.recipe import Recipe
from newllm_lib.runs import (
    MANIFEST,
    Run,
    check_checkpoint_dir,
    find_run,
    list_runs,
    manifest_path,
    missing_files,
)

ADAPTER_CONFIG = "adapter_config.json"
BASE = "base"  # the folder in a run that holds what its adapters belong to
_MODEL_FOLDER = re.compile(r"best|last|checkpoint-\d+")
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")
_TOKENIZERS = ("tokenizer_config.json", "tokenizer.json", "vocab.json", "tokenizer.model")


@dataclass(frozen=True)
class ModelLocation:
    """Where a model is.

    Attributes:
        name: what the user called it.
        folder: its folder; None: the hub has it, under `name`.
        run: the run that it belongs to; None: any other folder, or the hub.
    """

    name: str
    folder: Path | None
    run: Run | None = None

    def recipe(self) -> Recipe | None:
        """The recorded recipe of its training; None where the folder holds no record."""
        return recorded_recipe(self.folder) if self.folder else None

    def title(self) -> str:
        """What it is called in tables and cards: a run or a folder by its name, a hub id as it is."""
        return self.run.name if self.run else shown_name(self.name)


def locate(model: str | Path | Run, which: str = "best") -> ModelLocation:
    """Find a model by whatever name a user gave it.

    Args:
        model: a run (its name or folder), a folder that holds a model or adapters, or a hub id.
        which: of a run "best", "last" or "checkpoint-N".

    Raises:
        UsageError: there is no such run, checkpoint or folder, and it cannot be a hub id either.
    """
    if isinstance(model, Run):
        return _in_run(model, which)
    path = Path(model).expanduser()
    if _MODEL_FOLDER.fullmatch(path.name) or holds_model(path):
        if not path.is_dir():
            raise UsageError(f"There is no folder {path}{_others(path.parent)}.")
        return ModelLocation(str(model), path, _run_around(path))
    try:
        run = find_run(path if path.is_dir() else model)
    except UsageError:
        if not _may_be_on_hub(str(model)):
            raise
        return ModelLocation(str(model), None)
    return _in_run(run, which, str(model))


def check_model_folder(folder: Path) -> None:
    """Refuse a folder that lost a file of its model, or holds what could run code or lead elsewhere.

    Raises:
        NewLLMError: names the file and what to do.
    """
    _check_whole(folder)
    check_checkpoint_dir(folder)


def holds_model(folder: Path) -> bool:
    """Whether a folder itself holds a model or adapters, as `save_pretrained` writes them."""
    return (folder / "config.json").is_file() or is_adapter(folder)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds adapters and not a whole model."""
    return (Path(folder) / ADAPTER_CONFIG).is_file()


def base_of(folder: Path) -> str:
    """What the base model of a folder of adapters is called: a folder in the run, or what they name.

    Raises:
        NewLLMError: neither is to be found.
    """
    own = Path(folder).parent / BASE
    if own.is_dir():
        return str(own)
    try:
        named = json.loads((Path(folder) / ADAPTER_CONFIG).read_text(encoding="utf-8")).get(
            "base_model_name_or_path"
        )
    except (ValueError, AttributeError):
        raise NewLLMError(f"{folder / ADAPTER_CONFIG} is not readable: copy the folder again.") from None
    if not named:
        raise NewLLMError(
            f"{folder} does not say which model its adapters belong to: copy the whole run, with its {BASE}/."
        )
    return str(named)


def recorded_recipe(folder: Path) -> Recipe | None:
    """The recipe beside a model: in its folder (an export) or in the run's above it."""
    for place in (folder, folder.parent):
        if (place / "recipe.yaml").is_file():
            return Recipe.from_yaml(place / "recipe.yaml")
    return None


def shown_name(place: str) -> str:
    """How a model or a file is called where others read it: a folder by its name alone, a hub id as it is."""
    path = Path(place).expanduser()
    if not path.is_absolute() and not place.startswith(".") and not path.exists():
        return place
    return path.parent.name if _MODEL_FOLDER.fullmatch(path.name) else path.resolve().name


def _in_run(run: Run, which: str, name: str = "") -> ModelLocation:
    name = name or str(run.path)
    if holds_model(run.path):  # an export keeps its recipe beside the model
        return ModelLocation(name, run.path)
    if not _MODEL_FOLDER.fullmatch(which):
        raise UsageError(f"A run holds best, last and checkpoint-N, no {which!r}{_others(run.path)}.")
    folder = run.path / which
    if not folder.is_dir():
        raise UsageError(f"Run {run.name} has no {which}/{_others(run.path)}.")
    return ModelLocation(name, folder, run)


def _run_around(folder: Path) -> Run | None:
    return Run(folder.parent) if (folder.absolute().parent / "recipe.yaml").is_file() else None


def _others(run_path: Path) -> str:
    """`: it has last, checkpoint-200` or what to do where it has none."""
    names = (
        sorted(p.name for p in run_path.iterdir() if _MODEL_FOLDER.fullmatch(p.name))
        if run_path.is_dir()
        else []
    )
    if not names:
        return ": nothing was saved there yet. Train it first (`newllm train`), or look at `newllm runs list`"
    return f": it has {', '.join(names)}"


def _may_be_on_hub(name: str) -> bool:
    """Whether to ask the hub for what is neither a run nor a folder: not for paths, nor for misspelt runs."""
    if not _HUB_ID.fullmatch(name) or Path(name).exists():
        return False
    owner, slash, _ = name.partition("/")
    if slash:
        return not Path(owner).is_dir()
    return not difflib.get_close_matches(name, [run.name for run in list_runs()], 1)


def _check_whole(folder: Path) -> None:
    """Refuse a folder of a run that is not whole, and any other folder that lacks what a model needs."""
    part_of_a_run = bool(_MODEL_FOLDER.fullmatch(folder.name)) or manifest_path(folder).exists()
    missing = missing_files(folder) if part_of_a_run else missing_parts(folder)
    if not missing:
        return
    pickles = sorted(p.name for p in folder.glob("pytorch_model*.bin"))
    if pickles:  # none is ever saved here
        raise NewLLMError(only_pickles(str(folder), pickles[0]))
    what = (
        "was never finished (it has no MANIFEST.json)"
        if missing == [MANIFEST]
        else f"lost {', '.join(missing[:3])}"
    )
    what += f" and {len(missing) - 3} more files" if len(missing) > 3 else ""
    what += " (missing, or not at its full size)" if missing != [MANIFEST] else ""
    others = [p.name for p in Run(folder.parent).checkpoints() if p != folder] if part_of_a_run else []
    others += [n for n in ("best", "last") if folder.name != n and not missing_files(folder.parent / n)]
    instead = f", or take {folder.parent / others[-1]}" if others else ", or train it again"
    raise NewLLMError(f"{folder} is not whole: it {what}. Copy it again from where it was trained{instead}.")


def missing_parts(folder: Path) -> list[str]:
    """What a plain transformers folder (or one of adapters, whose base may lend the tokenizer) lacks."""
    if is_adapter(folder):
        return [] if (folder / "adapter_model.safetensors").is_file() else ["adapter_model.safetensors"]
    missing = [] if (folder / "config.json").is_file() else ["config.json"]
    missing += [] if any((folder / name).is_file() for name in _TOKENIZERS) else ["tokenizer_config.json"]
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return missing + [name for name in _shards(index) if not (folder / name).is_file()]
    return missing + ([] if (folder / "model.safetensors").is_file() else ["model.safetensors"])


def _shards(index: Path) -> list[str]:
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError):
        raise NewLLMError(f"{index} is not readable: copy the folder again.") from None


def only_pickles(name: str, file: str) -> str:
    """The line for a model whose weights are in no format that is read here."""
    return (
        f"{name} has its weights only as a pickle ({file}), which can run any program when it is read: "
        "refused. Name a model with model.safetensors, or convert this one where you trust it: "
        f"AutoModelForCausalLM.from_pretrained({name!r}).save_pretrained(FOLDER)."
    )
