"""Loading a model, whatever it is: a run, an exported folder, adapters with their base, or one of the hub.

Only safetensors are read, never pickles, no program that lies beside a model is run, and only what is whole
is loaded: a folder that lost a file, or whose file was cut off, is refused by name. Only a hub id is fetched
from a network, and only once.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from newllm_lib import hub_models
from newllm_lib.checkpoints.location import (
    ADAPTER_CONFIG,
    ModelLocation,
    base_of,
    check_model_folder,
    is_adapter,
    locate,
    missing_parts,
    only_pickles,
)
from newllm_lib.data.templates import PLAIN_TURNS
from newllm_lib.errors import NewLLMError, UsageError
from newllm_lib.hub import Asked, HubUnreachable
from newllm_lib.recipe import Recipe
from newllm_lib.runs import Run, read_json

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_MADE_FOR = "task_specific_params"  # in configurations of 2020
_PICKLE = re.compile(r".*\.(bin|pt|pth|ckpt|h5|msgpack|ot)")


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready for use.

    Attributes:
        model: a transformers causal language model in evaluation mode.
        tokenizer: its own.
        recipe: the record of its training; None where its folder holds none.
        folder: where its files are (of a hub model: in the hub's cache).
        location: where it was found, with the run that it belongs to and its name.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    recipe: Recipe | None
    folder: Path
    location: ModelLocation

    @property
    def run(self) -> Run | None:
        """The run that it belongs to; None: an export, another folder, or the hub's."""
        return self.location.run


@dataclass(frozen=True)
class ModelOutline:
    """A model before its weights are read, or even downloaded.

    Attributes:
        model: on torch's device `meta`: its architecture and sizes.
        tokenizer: its own.
        folder: where its files are, as far as they are here.
        location: where it was found.
        adapters: whether it is adapters beside another model's weights; `model` is that one.
        licence: as its card on the hub says; None: it does not, or has none.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    folder: Path
    location: ModelLocation
    adapters: bool
    licence: str | None

    @property
    def parameters(self) -> int:
        """All of them; tied ones count once."""
        return sum(p.numel() for p in self.model.parameters())


def outline(model: str | Path | ModelLocation) -> ModelOutline:
    """What a model is, from its small files alone: of the hub nothing else is downloaded.

    Raises:
        UsageError: there is no such model here, nor on the hub.
        NewLLMError: as `load_model`, as far as it can be known by now.
    """
    return _outline(model if isinstance(model, ModelLocation) else locate(model), within=())


def _outline(location: ModelLocation, within: tuple[Path, ...]) -> ModelOutline:
    import torch
    from transformers import AutoModelForCausalLM

    name = location.name if location.folder is None else str(location.folder)
    folder = location.folder or _fetched_text(location.name)
    if folder in within:
        raise NewLLMError(f"{folder} holds adapters that name themselves as their base: copy it again.")
    if location.folder is not None:
        check_model_folder(folder)
    own = any((folder / file).is_file() for file in ("tokenizer.json", "tokenizer_config.json"))
    if is_adapter(folder):
        base = _outline_of_base(folder, name, (*within, folder))
        model, tokenizer = base.model, tokenizer_in(folder, name) if own else base.tokenizer
    else:
        config = _config(folder, name)
        with one_line(name), torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        tokenizer = tokenizer_in(folder, name)
    _check_tokenizer(name, model, tokenizer)
    return ModelOutline(model, tokenizer, folder, location, is_adapter(folder), hub_models.licence_of(folder))


def _outline_of_base(folder: Path, name: str, within: tuple[Path, ...]) -> ModelOutline:
    """The outline of what the adapters in a folder belong to."""
    wanted = base_of(folder)
    try:
        return _outline(locate(wanted), within)
    except UsageError as error:
        raise NewLLMError(_base_is_gone(name, wanted)) from error


def _base_is_gone(name: str, wanted: str) -> str:
    return (
        f"The adapters in {name} belong to {wanted}, which is neither here nor on the hub: copy the whole "
        "run, with its base/."
    )


def load_model(
    model: str | Path | Run | ModelLocation,
    which: str = "best",
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = "auto",
    merge: bool = True,
    load_in: str = "full",
) -> LoadedModel:
    """Load a model by whatever name a user gave it.

    Args:
        model: a run (its name or folder), a folder that holds a model or adapters, a hub id, or what `locate`
            found.
        which: of a run "best", "last" or "checkpoint-N".
        device: put the model there (default: the CPU).
        dtype: of the weights, such as `torch.float32`; "auto": as they were saved.
        merge: add adapters to the weights of their base (an ordinary model), or keep them apart (a
            `PeftModel`).
        load_in: hold the weights in "full", "8bit" or "4bit" (bitsandbytes; not of adapters).

    Raises:
        UsageError: there is no such model here, nor on the hub.
        NewLLMError: it is not whole, is no causal language model, is gated, needs a program of its own, has
            its weights only as a pickle, or the hub cannot be reached.
    """
    location = model if isinstance(model, ModelLocation) else locate(model, which)
    quantization = None
    if load_in != "full":
        quantization, device = _quantization(load_in, dtype), device or "cpu"
    return _load(location, device, dtype, merge, within=(), quantization=quantization)


def _quantization(load_in: str, dtype: str | torch.dtype):
    """Four bits as in QLoRA (Dettmers et al., 2023, arXiv 2305.14314): NF4, the scales quantized too."""
    import torch
    from transformers import BitsAndBytesConfig

    if load_in == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype if isinstance(dtype, torch.dtype) else torch.float32,
    )


def whole_model_folder(model: str | Path | Run | ModelLocation, which: str = "best") -> Path:
    """The folder of a model (of a hub id: in the hub's cache), every file whole and none that could run code.

    Raises:
        UsageError: there is no such model.
        NewLLMError: it is not whole, not to be trusted, or the hub cannot be reached.
    """
    location = model if isinstance(model, ModelLocation) else locate(model, which)
    folder = location.folder or _fetched(location.name)
    check_model_folder(folder)
    return folder


def base_sizes(name: str) -> tuple[PreTrainedConfig, int] | None:
    """A model's configuration and number of parameters, without weights; None where only the hub could tell.

    Raises:
        UsageError: there is no such model.
        NewLLMError: its configuration cannot be read, or is no causal language model's.
    """
    import torch
    from transformers import AutoModelForCausalLM, GPT2Config

    location = locate(name)
    if name == "microsoft/DialoGPT-small":
        config = GPT2Config()  # GPT-2 small's architecture, to the letter
    else:
        folder = location.folder or hub_models.cached_snapshot(name, lambda f: (f / "config.json").is_file())
        if folder is None or is_adapter(folder):
            return None
        config = _config(folder, name)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    return config, sum(p.numel() for p in model.parameters())


def _load(
    location: ModelLocation,
    device: str | torch.device | None,
    dtype: str | torch.dtype,
    merge: bool,
    within: tuple[Path, ...],
    quantization: object = None,
) -> LoadedModel:
    """`within`: the folders of adapters that this model is the base of."""
    if location.folder is not None and any(location.folder.glob("pytorch_model*.bin")):
        _config(location.folder, location.name)  # what kind of model it is matters before how it is saved
    folder = whole_model_folder(location)
    if folder in within:
        raise NewLLMError(f"{folder} holds adapters that name themselves as their base: copy it again.")
    name = location.name if location.folder is None else str(folder)
    if is_adapter(folder):
        model, tokenizer = _adapted(folder, name, dtype, merge, (*within, folder))
    else:
        placed = {"quantization_config": quantization, "device_map": {"": device}} if quantization else {}
        model, tokenizer = _pretrained(folder, name, dtype, **placed)
    _check_tokenizer(name, model, tokenizer)
    if not tokenizer.chat_template and "conversational" in str(getattr(model.config, _MADE_FOR, "")):
        tokenizer.chat_template = PLAIN_TURNS  # DialoGPT and its kin, who were trained on turns of this form
    vars(model.config).pop("auto_map", None)  # no program came with it, and what is saved of it names none
    # What is saved with it, such as adapters that are trained on it, names the hub's model, not this cache.
    model.name_or_path = model.config._name_or_path = tokenizer.name_or_path = name
    model.eval()
    model = model.to(device) if device and quantization is None else model
    return LoadedModel(model, tokenizer, recipe_beside(location, folder), folder, location)


def recipe_beside(location: ModelLocation, folder: Path) -> Recipe | None:
    """The record of a model's training (of a hub model: what its owner uploaded with it), if there is one."""
    if location.folder is not None:
        return location.recipe()
    return Recipe.from_yaml(folder / "recipe.yaml") if (folder / "recipe.yaml").is_file() else None


def _pretrained(
    folder: Path, name: str, dtype: str | torch.dtype, **placed: object
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """`placed`: how transformers quantizes and places the weights."""
    import torch
    from transformers import AutoModelForCausalLM

    from newllm_lib.checkpoints.weights import check_weights

    config = _config(folder, name)
    with one_line(name), _quiet():
        if getattr(config, "quantization_config", None) is None:
            with torch.device("meta"):
                check_weights(folder, AutoModelForCausalLM.from_config(config, trust_remote_code=False))
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            **placed,
        )
    if report["missing_keys"]:
        names = ", ".join(sorted(report["missing_keys"])[:3])
        raise NewLLMError(
            f"{name} holds no weights for {names}: it was made by another version or is damaged."
        )
    return model, tokenizer_in(folder, name)


def _adapted(
    folder: Path, name: str, dtype: str | torch.dtype, merge: bool, within: tuple[Path, ...]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The base with the adapters in it (Hu et al., 2021, arXiv 2106.09685; PEFT's files), and a tokenizer."""
    import torch.distributed.tensor  # noqa: F401  # peft uses it and does not import it
    from peft import PeftModel

    if read_json(folder / ADAPTER_CONFIG).get("task_type") == "SEQ_CLS":
        raise NewLLMError(
            f"{name} is a reward model: it gives a text a number and writes none. `newllm evaluate` "
            "measures it, and `newllm train grpo --reward` takes it."
        )
    wanted = base_of(folder)
    try:
        base = _load(locate(wanted), None, dtype, True, within)
    except UsageError as error:
        raise NewLLMError(_base_is_gone(name, wanted)) from error
    with one_line(f"The adapters in {name}"):
        model = PeftModel.from_pretrained(base.model, str(folder))
        model = model.merge_and_unload() if merge else model
    own = any((folder / file).is_file() for file in ("tokenizer.json", "tokenizer_config.json"))
    return model, tokenizer_in(folder, name) if own else base.tokenizer


def _config(folder: Path, name: str) -> PreTrainedConfig:
    """The configuration in a folder, if it is that of a causal language model which is known here."""
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    from newllm_lib.checkpoints.weights import check_depth
    from newllm_lib.models import TinyGPT2Config  # which also registers our models with transformers

    with one_line(name):
        written = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if written.get("auto_map") and written.get("model_type") not in CONFIG_MAPPING:
            raise NewLLMError(
                f"{name} needs a program of its own (auto_map in its config.json), and none is run from "
                "a model's folder: name a model that transformers knows."
            )
        as_gpt2 = written.get("architectures") == ["GPT2LMHeadModel"]
        if as_gpt2 and "separate_documents" in written:  # an export of TinyGPT2
            ours = {"model_type": "tiny_gpt2", "architectures": ["TinyGPT2ForCausalLM"]}
            config = TinyGPT2Config.from_dict(written | ours)
        else:
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    causal = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), ())
    known = {kind.__name__ for kind in (causal if isinstance(causal, tuple) else (causal,))}
    made_as = list(config.architectures or ())
    text_alone = hasattr(config, "vocab_size")  # one that sees pictures too keeps its text's sizes apart
    if not known or not text_alone or (made_as and known.isdisjoint(made_as)):
        raise NewLLMError(
            f"{name} is no causal language model of text (it is {', '.join(made_as) or config.model_type}), "
            "which is what trains, chats and is measured here: name one, such as openai-community/gpt2."
        )
    check_depth(folder, config)
    return config


def tokenizer_in(folder: Path, name: str) -> PreTrainedTokenizerBase:
    """A folder's tokenizer; NewLLMError, which calls it `name`, where it cannot be read."""
    from transformers import AutoTokenizer

    try:
        with one_line(name, "its tokenizer"):
            return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except NewLLMError as error:  # transformers asks for another package than the one that helps
        needed = re.search("sentencepiece|tiktoken|protobuf", str(error), re.IGNORECASE)
        if not needed or find_spec("sentencepiece") is not None:
            raise
        raise NewLLMError(
            f"The tokenizer of {name} is SentencePiece's: `pip install sentencepiece protobuf`, "
            "or name another model."
        ) from error


def _check_tokenizer(name: str, model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    if tokenizer.eos_token_id is None:
        raise NewLLMError(
            f"{name}: its tokenizer has no end token (eos_token), so nothing could say where a text ends: "
            "name another model, or set eos_token in its tokenizer_config.json."
        )
    if len(tokenizer) > model.config.vocab_size:
        raise NewLLMError(
            f"{name}: its tokenizer has {len(tokenizer):,} tokens, its model only {model.config.vocab_size:,}"
            ": they do not belong together. Copy the folder again from where it was trained."
        )


def _fetched(name: str) -> Path:
    """The folder in the hub's cache that holds a model of the hub, downloaded if it was not before."""
    cached = hub_models.cached_snapshot(name, lambda folder: not missing_parts(folder))
    if cached:
        return cached
    asked = _asked(name)
    try:
        folder = hub_models.fetch(name, hub_models.TEXT_FILES, asked)
        if not is_adapter(folder) and (folder / "config.json").is_file():
            _config(folder, name)  # before gigabytes of weights
        if weights := [file for file in missing_parts(folder) if file.endswith(".safetensors")]:
            files = hub_models.list_files(name, asked)
            there = set(weights) <= set(files)
            folder = (
                hub_models.fetch(name, weights, asked) if there else _converted(name, folder, files, asked)
            )
    except HubUnreachable as error:
        raise error if "/" in name else UsageError(str(error)) from error
    if missing := missing_parts(folder):
        raise NewLLMError(f"{name} on the hub has no {missing[0]}: it cannot be loaded. Name another model.")
    return folder


def _fetched_text(name: str) -> Path:
    """The folder in the hub's cache with all of a model but its weights."""
    cached = hub_models.cached_snapshot(name, lambda folder: not _missing_text(folder))
    if cached:
        return cached
    try:
        folder = hub_models.fetch(name, hub_models.TEXT_FILES, _asked(name))
    except HubUnreachable as error:
        raise error if "/" in name else UsageError(str(error)) from error
    if missing := _missing_text(folder):
        raise NewLLMError(f"{name} on the hub has no {missing[0]}: it cannot be loaded. Name another model.")
    return folder


def _missing_text(folder: Path) -> list[str]:
    return [name for name in missing_parts(folder) if not name.endswith(".safetensors")]


def _asked(name: str) -> Asked:
    what = f"Model {name}" if "/" in name else f"No run {name!r} is here, and a model of that name"
    return Asked(what, "name one of our runs (`newllm runs` lists them) or a folder")


def _converted(name: str, folder: Path, files: list[str], asked: Asked) -> Path:
    """The same model with its weights as safetensors, where the hub has converted them.

    Raises:
        NewLLMError: it has not.
    """
    pickle = next((file for file in sorted(files) if _PICKLE.fullmatch(file)), None)
    if pickle is None:
        return folder
    revision = hub_models.converted_revision(name, asked)
    if revision is None:
        raise NewLLMError(only_pickles(name, pickle))
    return hub_models.fetch(name, (*hub_models.TEXT_FILES, "*.safetensors"), asked, revision)


@contextlib.contextmanager
def one_line(name: str, part: str = "") -> Iterator[None]:
    """What a damaged or unknown file makes transformers or PEFT raise becomes one line: name and cause."""
    try:
        yield
    except NewLLMError:
        raise
    except Exception as error:
        cause = (str(error).strip().split("\n")[0] or type(error).__name__)[:200]
        if "trust_remote_code" in str(error):
            cause = "it needs a program of its own, and none is run from a model's folder"
        what = f"{name}: {part} cannot" if part else f"{name} cannot"
        raise NewLLMError(f"{what} be loaded ({cause}). Copy it again, or take another.") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bar of transformers for the few milliseconds that loading takes."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
