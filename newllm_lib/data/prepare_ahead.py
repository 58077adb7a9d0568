"""What the process of `ahead` does: it prepares a command's data without torch, into the cache."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
from pathlib import Path

from newllm_lib.data.cache import cache_root
from newllm_lib.data.prepared import open_for_training, packed_for_training
from newllm_lib.data.tokenizer import TRAINED, load_tokenizer
from newllm_lib.device import guess_kind
from newllm_lib.recipe import Recipe, load_recipe

_POLITE = 5  # the imports go first: they are what the first step waits for longest
NOTHING_DONE = 3  # exit code: these data are prepared when they are needed


def main(name: str, keys: str) -> int:
    """Prepare what training that recipe with these keys needs; the process's exit code."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.nice(_POLITE)
    sys.modules["torch"] = None  # type: ignore[assignment]  # transformers' tokenizers do without, and sooner
    recipe = load_recipe(name, json.loads(keys), guess_kind(), resolve_start=False)
    cache = cache_root()
    source = open_for_training(recipe, cache) if needs_no_network(recipe) else None
    if source is None or source.in_segments:  # a large set is prepared while it is trained on
        return NOTHING_DONE
    packed_for_training(recipe, source, load_tokenizer(recipe, source, cache), cache)
    return 0


def needs_no_network(recipe: Recipe) -> bool:
    """Whether a fresh tokenizer and data of this machine are all that training reads."""
    local = bool(recipe.data_dir) or recipe.data == "demo" or Path(recipe.data).expanduser().exists()
    fresh = recipe.task == "train" and recipe.from_run is None and recipe.tokenizer in TRAINED
    return fresh and local


def _end_with_parent() -> None:
    with contextlib.suppress(OSError, ValueError):
        sys.stdin.read()
    os._exit(NOTHING_DONE)
