"""Saving a model so that `load_model`, and transformers alone, load it again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from newllm_lib.runs import staged_directory

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write model (safetensors) and tokenizer into a folder that is there whole or not at all.

    Raises:
        NewLLMError: the disk is full, or the folder cannot be written.
    """
    with staged_directory(folder) as staging:
        model.save_pretrained(staging)
        tokenizer.save_pretrained(staging)
