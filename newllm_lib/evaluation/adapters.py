"""Adapters in a folder of their own (as PEFT saves them) become an ordinary model again: base, adapter, merged.

A run that trained adapters holds its base in `base/` unless that came from the hub, so it can be copied elsewhere as a whole.
"""

from __future__ import annotations

import json
from pathlib import Path

from newllm_lib.errors import NewLLMError

CONFIG = "adapter_config.json"
BASE = "base"


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds adapters and not a whole model."""
    return (Path(folder) / CONFIG).is_file()


def load_with_base(folder: Path, merge: bool = True):
    """The base model of a folder of adapters with them in it.

    Args:
        merge: add the adapters to the weights (an ordinary transformers model), or keep them apart (a `PeftModel`).
    Returns:
        model (in evaluation mode), and the tokenizer that was saved with the adapters.
    Raises:
        NewLLMError: the base is not to be had, or does not fit the adapters.
    """
    from peft import PeftModel
    from transformers import AutoTokenizer

    from newllm_lib.evaluation.base_model import load_base

    folder = Path(folder)
    base, _ = load_base(str(base_of(folder)))
    try:
        model = PeftModel.from_pretrained(base, str(folder))
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # whatever PEFT raises for a damaged file or another base
        cause = str(error).strip().split("\n")[0][:200]
        raise NewLLMError(f"The adapters in {folder} cannot be loaded ({cause}): copy the run again.") from error
    return (model.merge_and_unload() if merge else model).eval(), tokenizer


def base_of(folder: Path) -> str | Path:
    """Where the base model of a folder of adapters is: in the run, or as the adapters' configuration names it."""
    own = Path(folder).parent / BASE
    if own.is_dir():
        return own
    named = json.loads((Path(folder) / CONFIG).read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not named:
        raise NewLLMError(f"{folder} does not say which model its adapters belong to: copy the whole run, with its {BASE}/.")
    return named
