"""LoRA in a run: small trained matrices beside frozen weights (Hu et al., 2021, arXiv 2106.09685; PEFT).

The adapters are put into the model itself, so that everything else sees the model it knows. The run keeps
`base/`, the start's weights; each checkpoint has the adapters as PEFT saves them (`adapter/`) beside the
merged model, which loads like any other. To continue, base and adapters are put together again: a merged
weight would be rounded.
"""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from newllm_lib.errors import NewLLMError
from newllm_lib.recipe import Recipe
from newllm_lib.runs import MANIFESTS, Run, is_complete, staged_directory

BASE, ADAPTER = "base", "adapter"
_WEIGHTS = "adapter_model.safetensors"


def keep_base(run: Run, start: Path) -> None:
    """Copy the start into the run, so that the run's folder is all that is needed to continue."""
    if is_complete(run.path / BASE):
        return
    with staged_directory(run.path / BASE) as staging:
        for file in start.iterdir():
            if file.is_file() and file.name not in MANIFESTS:
                shutil.copyfile(file, staging / file.name)


def add_adapters(model, recipe: Recipe, base: Path):
    """The model with adapters on every linear layer but the head. They alone train, and begin at zero."""
    import torch.distributed.tensor  # noqa: F401  # peft uses it and does not import it
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=recipe.lora_rank,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=recipe.lora_dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
        fan_in_fan_out=recipe.model == "tiny_gpt2",
        base_model_name_or_path=str(base.absolute()),
    )
    return inject_adapter_in_model(config, model)


def save_adapted(model, folder: Path) -> None:
    """The merged model into `folder`, the adapters into `folder/adapter`."""
    _merged(model).save_pretrained(folder)
    place = folder / ADAPTER
    place.mkdir()
    model.peft_config["default"].save_pretrained(place)
    save_file(
        {key: p.detach().contiguous() for key, p in _adapters(model).items()},
        place / _WEIGHTS,
        {"format": "pt"},
    )


@torch.no_grad()
def load_adapters(model, folder: Path) -> None:
    """Put the adapters of `folder/adapter` into a model that has the same ones.

    Raises:
        NewLLMError: they are other ones.
    """
    saved, wanted = load_file(folder / ADAPTER / _WEIGHTS), _adapters(model)
    if {key: value.shape for key, value in saved.items()} != {key: p.shape for key, p in wanted.items()}:
        raise NewLLMError(
            f"{folder / ADAPTER} holds other adapters than this run's: copy it again from where it was "
            "trained."
        )
    for key, parameter in wanted.items():
        parameter.copy_(saved[key])


def _adapters(model) -> dict[str, torch.nn.Parameter]:
    """The trained parameters by the names that PEFT gives them in its files."""
    trained = ((name, p) for name, p in model.named_parameters() if p.requires_grad)
    return {f"base_model.model.{name.replace('.default.', '.')}": p for name, p in trained}


def _merged(model):
    """A copy of the model with the adapters added to the weights and gone."""
    from peft.tuners.lora import LoraLayer

    plain = copy.deepcopy(model)
    for name, module in list(plain.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            parent, _, own = name.rpartition(".")
            setattr(plain.get_submodule(parent), own, module.get_base_layer())
    return plain
