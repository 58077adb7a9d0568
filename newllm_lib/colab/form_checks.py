"""What a form's cell can find out in a second, said there and in its words, not three cells further down."""

from __future__ import annotations

import importlib.util
import math
import socket
import urllib.parse
from pathlib import Path

from newllm_lib.console import say
from newllm_lib.errors import NewLLMError, UsageError
from newllm_lib.recipe import Recipe
from newllm_lib.recipe.files import shipped_recipes
from newllm_lib.recipe.init_from import start_run
from newllm_lib.runs import list_runs

SECONDS = 1.0  # a hub that has not answered by then is called absent, which is only a warning


def number(title: str, value, kind: type, minimum: float | None):
    """A typed number as `kind` (int or float).

    Raises:
        UsageError: it is none, or below `minimum`.
    """
    try:
        found = float(str(value).replace(",", ""))
    except ValueError:
        found = math.nan
    if isinstance(value, bool) or not math.isfinite(found) or (kind is int and not found.is_integer()):
        raise UsageError(f"*{title}* must be a {'whole ' if kind is int else ''}number, not {value!r}.")
    if minimum is not None and found < minimum:
        raise UsageError(f"*{title}* must be at least {minimum:g}, not {value}.")
    return kind(found)


def check(recipe: Recipe, extra: dict, titles: dict[str, str], choices: tuple[str, ...] = ()) -> None:
    """Refuse data, a base or weights that are not there.

    Args:
        extra: the form's fields that are no recipe keys.
        titles: what the form calls each field.
        choices: the data that the form offers.

    Raises:
        UsageError: in the form's words.
    """
    if recipe.data_dir:
        _check_folder(Path(recipe.data_dir).expanduser(), titles.get("data_dir", "data_dir"))
    elif extra.get("weights"):
        _check_weights(extra["weights"], titles["weights"])
    else:
        title = titles.get("data", titles.get("recipe", "Data"))
        instead = f"choose {'preferences_ja' if recipe.has_pairs else 'demo'} in *{title}*"
        if "weights" in titles:
            instead = f"write demo=1 into *{titles['weights']}*"
        elif not recipe.has_pairs and "demo" not in choices:
            instead = "read a folder of your own (*Your own text*)"
        _check_data(recipe, title, instead)
    if recipe.task != "train":
        _check_base(recipe.base, titles.get("base", "base"))
    else:
        _check_own_start(recipe, titles)
    _check_packages(recipe, titles)


def _check_folder(folder: Path, title: str) -> None:
    from newllm_lib.data.readers.file_names import find_files

    try:
        found = find_files(folder)
    except UsageError as error:
        raise UsageError(f"*{title}*: {str(error).removeprefix('--data_dir ')}") from None
    if "train" not in found:
        raise UsageError(f"*{title}*: {folder} has no train.txt (or .jsonl .json .parquet).")


def _check_weights(weights: str, title: str) -> None:
    from newllm_lib.data import mixture
    from newllm_lib.data.cache import cache_root
    from newllm_lib.data.datasets import open_source

    try:
        for name in mixture.parse_weights(weights):
            folder = Path(name).expanduser().is_dir()
            open_source(Recipe(data_dir=name) if folder else Recipe(data=name), cache_root(None))
    except NewLLMError as error:
        said = str(error).replace("--weights ", "").replace(", or --data_dir FOLDER", ", or a folder")
        raise UsageError(f"*{title}*: {said}") from None


def _check_data(recipe: Recipe, title: str, instead: str) -> None:
    data = recipe.data
    if data == "demo" or data == "preferences_ja":
        return
    if data.endswith((".jsonl", ".json")):
        if not Path(data).expanduser().is_file():
            raise UsageError(f"*{title}*: there is no file {data} in {Path.cwd()}.")
        return
    if not hub_answers():
        say(
            f"⚠ The Hugging Face hub does not answer, and {data} comes from there unless it was read before: "
            f"without a network {instead}."
        )
    elif "/" in data:
        _check_on_hub(data.partition(":")[0], "dataset", title)


def check_start(start: str, title: str) -> None:
    """Refuse a name that is no run's, and no recipe's of which there is a run."""
    try:
        start_run(start, "new_llm")
    except UsageError:
        here = [run.name for run in list_runs()]
        known = f"there are {', '.join(here[:8])}{' …' * (len(here) > 8)}" if here else "none is trained yet"
        raise UsageError(
            f"*{title}*: there is no run {start} here ({known}). A model of the hub is written as owner/name."
        ) from None


def _check_own_start(recipe: Recipe, titles: dict[str, str]) -> None:
    """Refuse adapters of a model that has learned nothing; warn of a start that the recipe has and that is
    not here, for a copy on Drive goes on without it."""
    start, rank = (titles.get(key, key) for key in ("from_run", "lora_rank"))
    if recipe.lora_rank and recipe.from_run is None:
        raise UsageError(
            f"*{rank}* trains adapters beside weights that have learned something: choose a run or a model "
            f"of the hub in *{start}*, or leave it empty."
        )
    if recipe.from_run in shipped_recipes():
        try:
            start_run(recipe.from_run, recipe.model)
        except UsageError:
            say(
                f"⚠ {recipe.recipe} starts from a run of {recipe.from_run}, and there is none here: train it "
                f"first (notebook 1), or choose none, or another start, in *{start}*."
            )


def _check_base(base: str, title: str) -> None:
    if Path(base).expanduser().is_dir() or "/" not in base:
        if not Path(base).expanduser().is_dir():
            check_start(base, title)
    elif hub_answers():
        _check_on_hub(base, "model", title)


def _check_packages(recipe: Recipe, titles: dict[str, str]) -> None:
    """Refuse a tracker or a way to hold a base that needs a package that is not here, and 4 bits without
    adapters."""
    bits, rank = (titles.get(key, key) for key in ("load_in", "lora_rank"))
    quantized = recipe.task != "train" and recipe.load_in != "full"
    if quantized and not recipe.lora_rank:
        raise UsageError(
            f"*{bits}* freezes the model's weights, so adapters are trained beside them: type 16 into "
            f"*{rank}*."
        )
    tracker = "" if recipe.report_to == "none" else recipe.report_to
    for key, package in (("report_to", tracker), ("load_in", "bitsandbytes" if quantized else "")):
        if package and importlib.util.find_spec(package) is None:
            raise UsageError(
                f"*{titles.get(key, key)}* needs the package {package}: run `%pip install {package}` in a "
                "cell of its own, then this cell again."
            )


def hub_answers() -> bool:
    """Whether anything answers where the hub should be, within a second."""
    from huggingface_hub import constants

    url = urllib.parse.urlsplit(constants.ENDPOINT)
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        socket.create_connection(
            (url.hostname, url.port or (443 if url.scheme == "https" else 80)), SECONDS
        ).close()
    except OSError:
        return False
    return True


def _check_on_hub(name: str, kind: str, title: str) -> None:
    """Refuse a name that the hub does not know; whatever else the hub says comes when it is read."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    try:
        (HfApi().dataset_info if kind == "dataset" else HfApi().model_info)(name, timeout=2 * SECONDS)
    except (RepositoryNotFoundError, HFValidationError):
        what = "data set" if kind == "dataset" else "model"
        raise UsageError(
            f"*{title}*: the Hugging Face hub has no {what} {name} (or it needs a token: HF_TOKEN)."
        ) from None
    except Exception:  # slow, busy, gated: reading it says what and why
        return
