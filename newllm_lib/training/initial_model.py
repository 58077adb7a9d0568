"""What a run starts from: fresh weights, or another run's best ones with its tokenizer (`--from`)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from newllm_lib import checkpoints
from newllm_lib.data.templates import TEMPLATES
from newllm_lib.data.tokenizer import named_tokenizer
from newllm_lib.errors import UsageError
from newllm_lib.recipe import Recipe, is_of_hub, start_run
from newllm_lib.runs import Run, is_locked


@dataclass(frozen=True)
class InitialModel:
    """Another run's best model, or the one that an export on the hub holds."""

    name: str
    folder: Path

    @cached_property
    def fingerprint(self) -> str:
        """The same if and only if its weights are; computed when it is asked for: it reads them all."""
        return weights_fingerprint(self.folder)


def load_initial_model(recipe: Recipe) -> InitialModel | None:
    """The start that the recipe names; None: from scratch.

    Raises:
        UsageError: there is no such run, or it is being trained now.
        NewLLMError: its best model is not whole.
    """
    if recipe.from_run is None:
        return None
    if is_of_hub(recipe.from_run):
        return InitialModel(recipe.from_run, checkpoints.whole_model_folder(recipe.from_run))
    run = start_run(recipe.from_run, recipe.model)
    if is_locked(run):
        raise UsageError(
            f"{run.name}, from which this starts, is being trained now: wait for its end, or stop it first."
        )
    folder = checkpoints.whole_model_folder(run, "best")
    if checkpoints.is_adapter(folder):
        raise UsageError(
            f"{run.name} holds adapters beside another model's weights: merge them first "
            f"(`newllm export {recipe.from_run}`), and start from that folder with --from."
        )
    return InitialModel(run.name, folder)


def start_to_resume(recipe: Recipe, run: Run, recorded: str) -> InitialModel | None:
    """The start of a run with checkpoints, which hold all of it: it may be gone, but not be another.

    Raises:
        UsageError: other weights stand under the start's name than those that the run was started from.
    """
    try:
        start = load_initial_model(recipe)
    except UsageError:
        return None
    if start is not None and start.fingerprint != recorded:
        raise UsageError(
            f"{run.name} was started from other weights than {start.name} has now (it was trained anew): "
            f"give the new run a folder of its own with --output_dir, or move {run.path} away."
        )
    return start


def tokenizer_for(recipe: Recipe, start: InitialModel | None, checkpoint: Path | None):
    """The tokenizer that a start decides, from the run's own checkpoint if it has one, with the recipe's
    template; None: there is no start, and the recipe decides."""
    if recipe.from_run is None:
        return None
    tokenizer = named_tokenizer(str(checkpoint or start.folder))
    tokenizer.chat_template = TEMPLATES[recipe.template]
    return tokenizer


def weights_fingerprint(folder: Path) -> str:
    """The same if and only if the weights in a model's folder are."""
    digest = hashlib.blake2b(digest_size=10)
    for path in sorted(folder.glob("*.safetensors")):
        with open(path, "rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    return digest.hexdigest()
