"""A run as a folder for others, and on the hub: safetensors, tokenizer, recipe, a filled card, and a program.

It loads anywhere. A model of ours brings its program in plain torch (`export.modeling`), which transformers
runs where it is told to trust it; TinyGPT2 is a GPT-2 to everybody; a model of the hub stays what it is.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from newllm_lib import hub_models
from newllm_lib.checkpoints import (
    ModelLocation,
    load_model,
    load_reward_model,
    locate,
    whole_model_folder,
)
from newllm_lib.checkpoints.load import recipe_beside
from newllm_lib.checkpoints.location import is_adapter, shown_name
from newllm_lib.console import say
from newllm_lib.errors import NewLLMError, UsageError
from newllm_lib.export.model_card import (
    best_row,
    foreign_card,
    gives_scores,
    model_card,
    training_command,
)
from newllm_lib.export.modeling import KINDS, auto_map, modeling_file
from newllm_lib.recipe import Recipe
from newllm_lib.runs import MANIFEST, MANIFESTS, MARK, Run, owned_directory, read_json

# Of a checkpoint, what is needed to continue training and by nobody else.
_TRAINING_ONLY = (*MANIFESTS, "SUMS.json", "trainer_state.json", "progress.json", "carried_state.safetensors")


def export(model: Run | str | Path, output_dir: str | Path | None = None, which: str = "best") -> Path:
    """Write the folder and return it; only an earlier export is ever replaced.

    Args:
        model: as for `load_model`. Adapters are merged into their base.
        output_dir: default: `export/` in the run's folder; of a model without a run, `<its name>_export` in
            the current one.
        which: of a run "best", "last" or "checkpoint-N".

    Raises:
        UsageError: no such model, or the folder is in the way.
        NewLLMError: the model is damaged, or the disk is full.
    """
    location = locate(model, which)
    source = whole_model_folder(location)
    name = location.title().rpartition("/")[2]
    folder = (
        Path(output_dir)
        if output_dir
        else location.run.path / "export"
        if location.run
        else Path(f"{name}_export")
    )
    with owned_directory(folder, "export", "--output_dir", name) as staging:
        _write_model(location, source, staging)
        recipe, licence = recipe_beside(location, source), hub_models.read_card(source).get("license")
        if recipe is not None and recipe.task != "train":
            licence = licence or _licence_of_base(recipe.base)
        if recipe is not None:
            recipe = _without_this_machine(recipe)
            (staging / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
        (staging / "README.md").write_text(_card(location, recipe, staging, licence), encoding="utf-8")
    (folder / MANIFEST).unlink()
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    say(
        f"Exported {location.title()}{f' ({which})' if location.run else ''} to {folder} "
        f"({size / 2**20:,.1f} MiB)"
    )
    return folder


def _write_model(location: ModelLocation, source: Path, folder: Path) -> None:
    """The model's files; of adapters an ordinary model, merged into the weights of their base."""
    if is_adapter(source):
        recipe = location.recipe()
        scores = recipe is not None and recipe.task == "reward"
        loaded = load_reward_model(location) if scores else load_model(source)
        loaded.model.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)
    else:
        for file in sorted(source.iterdir()):
            if file.is_file() and file.name not in _TRAINING_ONLY and file.suffix not in (".pt", ".pth"):
                shutil.copyfile(file, folder / file.name)
    _make_portable(folder)


def _make_portable(folder: Path) -> None:
    """Let transformers load it where this library is not."""
    path = folder / "config.json"
    config = read_json(path)
    if not isinstance(config, dict):
        raise NewLLMError("The model's config.json is damaged: copy the model again from where it was made.")
    kind = config.get("model_type")
    if kind in KINDS:
        (folder / f"modeling_{kind}.py").write_text(modeling_file(kind), encoding="utf-8")
        config["auto_map"] = auto_map(kind)
    elif kind == "tiny_gpt2":  # `separate_documents` stays, by which it is known for one here
        made_as = "GPT2ForSequenceClassification" if gives_scores(config) else "GPT2LMHeadModel"
        config |= {"model_type": "gpt2", "architectures": [made_as]}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _licence_of_base(base: str) -> str | None:
    """The licence on the base's card, where that is here: what was trained from the hub has fetched it."""
    try:
        folder = locate(base).folder or hub_models.cached_snapshot(
            base, lambda f: (f / "README.md").is_file()
        )
    except UsageError:  # a folder that is gone
        return None
    return hub_models.licence_of(folder) if folder else None


def _without_this_machine(recipe: Recipe) -> Recipe:
    """A folder of this machine means nothing elsewhere, and may name its user."""
    if recipe.task != "train":
        recipe.base, recipe.data = shown_name(recipe.base), shown_name(recipe.data)
    recipe.data_dir, recipe.mirror_dir, recipe.output_dir = recipe.data_dir and "FOLDER", None, None
    return recipe


def _card(location: ModelLocation, recipe: Recipe | None, folder: Path, licence: str | None) -> str:
    if recipe is None:
        return foreign_card(location.title(), folder, location.folder is None, licence)
    best = best_row(location.run) if location.run else None
    card = model_card(location.title(), best, recipe, folder, training_command(recipe), licence)
    own = location.run.path / "card.md" if location.run else None  # a preference run's, with what it measured
    return _with_use_of(card, own.read_text(encoding="utf-8")) if own and own.is_file() else card


def _with_use_of(card: str, own: str) -> str:
    """A preference run's own card, with the front matter of a model's and how the exported folder is used."""
    front, use = card.partition("\n# ")[0], card.partition("## Use\n")[2].partition("\n## ")[0]
    return (
        f"{front}\n{own.partition('## Use')[0].replace('![curves](curves.png)', '').rstrip()}\n\n## "
        f"Use\n{use}\n"
    )


def push(folder: Path, repository: str, token: str | None = None, private: bool = True) -> str:
    """Upload an exported folder to the hub as `owner/name`; returns its address, never the token.

    Args:
        token: default: HF_TOKEN, or what `hf auth login` stored.

    Raises:
        UsageError: no token, or a name that is none.
        NewLLMError: the hub refused, or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    token = check_push(repository, token)
    say(f"Uploading {folder} to {repository} ({'private' if private else 'public'})")
    api = HfApi(token=token)
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        about = f"Upload {folder.parent.name}"
        api.upload_folder(
            repo_id=repository, folder_path=str(folder), commit_message=about, ignore_patterns=[MARK]
        )
    except HfHubHTTPError as error:
        raise NewLLMError(
            f"The hub refused {repository}: {_first_line(error, token)}. Look at the token's rights."
        ) from None
    except Exception as error:
        # the hub's library passes on those of httpx, whatever that is called there
        if not isinstance(error, OSError) and "HTTPError" not in [k.__name__ for k in type(error).__mro__]:
            raise
        raise NewLLMError(
            f"The hub cannot be reached ({_first_line(error, token)}): try again later."
        ) from None
    return f"{api.endpoint}/{repository}"


def check_push(repository: str, token: str | None, flag: str = "--push ") -> str:
    """The token with which a model can be uploaded as `repository`. Arguments as for `push`.

    Args:
        flag: what the reader gave the name with.

    Raises:
        UsageError: no token, or a name that is none.
    """
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    token = token or os.environ.get("HF_TOKEN") or get_token()
    if not token:
        raise UsageError(
            "Pushing needs a token with write access: set HF_TOKEN (in Colab: as a secret, under the key "
            "icon)."
        )
    if repository.count("/") != 1 or not repository.isprintable():
        raise UsageError(f"{flag}{repository!r}: give it as OWNER/NAME.")
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise UsageError(f"{flag}{repository}: {_first_line(error, token)}") from None
    return token


def _first_line(error: Exception, token: str) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__).replace(token, "***")[:200]
