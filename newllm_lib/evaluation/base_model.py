"""The model that fine-tuning starts from: one of our runs, a folder, or a causal language model of the hub."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

from newllm_lib.data.hub import Asked, explain, patiently
from newllm_lib.errors import NewLLMError, UsageError
from newllm_lib.runs import find_run

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def load_base(name: str):
    """Model (float32, in evaluation mode, on the CPU) and tokenizer.

    Raises:
        UsageError: there is no such run, folder or hub id. NewLLMError: it cannot be read or reached.
    """
    try:
        return _from_here(name) if local_base(name) is not None else _from_hub(name)
    except NewLLMError as error:  # transformers asks for another package than the one that helps
        if find_spec("sentencepiece") is not None or not re.search("sentencepiece|tiktoken|protobuf", str(error), re.IGNORECASE):
            raise
        raise NewLLMError(
            f"The tokenizer of {name} is SentencePiece's: `pip install sentencepiece protobuf`, or name another --base."
        ) from error


def _from_here(name: str):
    from newllm_lib.evaluation.load import load_run

    model, tokenizer, _ = load_run(local_base(name))
    return model, tokenizer


def _from_hub(name: str):
    if name.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(name):
        raise UsageError(f"There is no base model {name}: name one of our runs, a folder, or a hub id (owner/name).")
    return _fetched(name)


def local_base(name: str) -> Path | None:
    """The folder of a base model that lies here (of a run: its best); None: it is to be asked of the hub."""
    from newllm_lib.evaluation.load import model_folder

    folder = Path(name).expanduser()
    if folder.is_dir():
        return model_folder(folder)
    try:
        find_run(name)
    except UsageError:
        return None
    return model_folder(name)


def shown_name(place: str) -> str:
    """How a base or a file is called where others read it: a folder of this machine by its name alone, a hub id as it is."""
    path = Path(place).expanduser()
    if not path.is_absolute() and not place.startswith(".") and not path.exists():
        return place
    return path.parent.name if re.fullmatch(r"best|last|checkpoint-\d+", path.name) else path.resolve().name


def base_sizes(name: str):
    """The config of a base model and its number of parameters, without loading it; None where only the hub could tell."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config

    import newllm_lib.models  # noqa: F401  registers our models with transformers

    folder = local_base(name)
    try:
        if name == "microsoft/DialoGPT-small":
            config = GPT2Config()  # GPT-2 small's architecture, to the letter
        else:
            config = AutoConfig.from_pretrained(folder or name, local_files_only=True)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError, ImportError):
        return None
    return config, sum(p.numel() for p in model.parameters())


def _fetched(name: str):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    asked = Asked(f"Base model {name}", "name a folder or one of our runs with --base (`newllm runs` lists them)")

    def load(**options):
        model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32, **options)
        return model.eval(), AutoTokenizer.from_pretrained(name, **options)

    try:  # what was downloaded before needs no network
        return load(local_files_only=True)
    except (OSError, ValueError, ImportError):
        pass
    try:
        return patiently(load, asked)
    except NewLLMError:
        raise
    except Exception as error:
        raise explain(error, asked) from error
