"""A finished (or stopped) run as something to use: model, tokenizer and recipe from its folder, and nothing from
elsewhere.

Only safetensors are read, never pickles, and only what is whole: a folder that lost a file, or whose file was cut off,
is refused by name. Nothing is fetched from a network.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from newllm_lib.errors import NewLLMError, UsageError
from newllm_lib.evaluation.adapters import CONFIG, is_adapter, load_with_base
from newllm_lib.recipe import Recipe
from newllm_lib.runs import WHOLE, Run, check_folder, find_run, missing_files

_MODEL_FOLDER = re.compile(r"best|last|checkpoint-\d+")


def load_run(run: str | Path | Run, which: str = "best", device: str | None = None):
    """Load a run.

    Args:
        run: a run's name or folder (its `which` is taken), or directly a best/, last/ or checkpoint-N/ folder, or any
            transformers folder with a model and its tokenizer.
        which: "best", "last" or "checkpoint-N".
        device: put the model there (default: the CPU).
    Returns:
        model (in evaluation mode), tokenizer, recipe (None where the folder holds no record of one).
    Raises:
        UsageError: there is no such run or folder. NewLLMError: it is not whole or cannot be read.
    """
    folder = whole_model_folder(run, which)
    model, tokenizer = _load(folder)
    if len(tokenizer) > model.config.vocab_size:
        raise NewLLMError(
            f"{folder}: its tokenizer has {len(tokenizer):,} tokens, its model only {model.config.vocab_size:,}: they "
            "do not belong together. Copy the folder again from where it was trained."
        )
    model.eval()
    return model.to(device) if device else model, tokenizer, _recipe(folder)


def whole_model_folder(run: str | Path | Run, which: str = "best") -> Path:
    """`model_folder`, with every file of the model there at its size, and none that could run code or lead elsewhere.

    Raises:
        UsageError: no such run, or it has no such checkpoint. NewLLMError: it is not whole, or not to be trusted.
    """
    folder = model_folder(run, which)
    _check_whole(folder)
    check_folder(folder)
    return folder


def model_folder(run: str | Path | Run, which: str = "best") -> Path:
    """The folder that holds the model: of a run its `which`, or `run` itself if it is such a folder.

    Raises:
        UsageError: no such run, or it has no such checkpoint.
    """
    if isinstance(run, Run):
        return _inside(run, which)
    path = Path(run)
    if _MODEL_FOLDER.fullmatch(path.name) or (path / "config.json").is_file() or is_adapter(path):
        if not path.is_dir():
            raise UsageError(f"There is no folder {path}{_others(path.parent)}.")
        return path
    return _inside(find_run(run), which)


def _inside(run: Run, which: str) -> Path:
    if not _MODEL_FOLDER.fullmatch(which):
        raise UsageError(f"A run holds best, last and checkpoint-N, no {which!r}{_others(run.path)}.")
    folder = run.path / which
    if not folder.is_dir():
        raise UsageError(f"Run {run.name} has no {which}/{_others(run.path)}.")
    return folder


def _others(run_path: Path) -> str:
    """`: it has last, checkpoint-200` or what to do where it has none."""
    names = sorted(p.name for p in run_path.iterdir() if _MODEL_FOLDER.fullmatch(p.name)) if run_path.is_dir() else []
    if not names:
        return ": nothing was saved there yet. Train it first (`newllm train`), or look at `newllm runs list`"
    return f": it has {', '.join(names)}"


def _check_whole(folder: Path) -> None:
    """Refuse a folder of a run that is not whole, and any other folder that lacks what a model needs."""
    part_of_a_run = bool(_MODEL_FOLDER.fullmatch(folder.name)) or (folder / WHOLE).exists()
    missing = missing_files(folder) if part_of_a_run else _missing_parts(folder)
    if not missing:
        return
    what = "was never finished (it has no WHOLE.json)" if missing == [WHOLE] else f"lost {', '.join(missing[:3])}"
    what += f" and {len(missing) - 3} more files" if len(missing) > 3 else ""
    what += " (missing, or not at its full size)" if missing != [WHOLE] else ""
    others = [p.name for p in Run(folder.parent).checkpoints() if p != folder] if part_of_a_run else []
    others += [n for n in ("best", "last") if folder.name != n and not missing_files(folder.parent / n)]
    instead = f", or take {folder.parent / others[-1]}" if others else ", or train it again"
    raise NewLLMError(f"{folder} is not whole: it {what}. Copy it again from where it was trained{instead}.")


def _missing_parts(folder: Path) -> list[str]:
    """What a plain transformers folder (or one of adapters) lacks."""
    config = CONFIG if is_adapter(folder) else "config.json"
    missing = [n for n in (config, "tokenizer_config.json") if not (folder / n).is_file()]
    return missing + ([] if any(folder.glob("*.safetensors")) else ["model.safetensors"])


def _load(folder: Path):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from newllm_lib.models.weights import check_weights  # and newllm_lib.models registers our models with transformers

    if is_adapter(folder):
        return load_with_base(folder)
    try:
        with _quiet():
            with torch.device("meta"):
                check_weights(folder, AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)))
            model, report = AutoModelForCausalLM.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, output_loading_info=True
            )
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except NewLLMError:
        raise
    except Exception as error:  # whatever a damaged file makes transformers raise: the user needs the folder and cause
        cause = str(error).strip().split("\n")[0][:200]
        raise NewLLMError(f"{folder} cannot be loaded ({cause}). Copy it again, or take another checkpoint.") from error
    if report["missing_keys"]:
        names = ", ".join(sorted(report["missing_keys"])[:3])
        raise NewLLMError(f"{folder} holds no weights for {names}: it was made by another version or is damaged.")
    return model, tokenizer


@contextlib.contextmanager
def _quiet():
    """No progress bar of transformers for the few milliseconds that loading takes."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _recipe(folder: Path) -> Recipe | None:
    for place in (folder, folder.parent):
        if (place / "recipe.yaml").is_file():
            return Recipe.from_yaml(place / "recipe.yaml")
    return None
