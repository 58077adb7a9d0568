"""A run's dtype and what is compiled for it: known before torch and transformers are imported."""

from __future__ import annotations

from newllm_lib.device import Device
from newllm_lib.errors import UsageError
from newllm_lib.recipe import Recipe
from newllm_lib.training import distributed

KERNELS_MAX_DIM = 256  # channels up to which all of New-LLM's block is in our kernels: `relu2_mlp.MAX_DIM`


def dtype_of(recipe: Recipe, device: Device) -> str:
    """The dtype of matrix products.

    Raises:
        UsageError: this device does not compute in the recipe's.
    """
    if recipe.weights_dtype == "bf16":
        return "bf16"
    if recipe.dtype in ("auto", "fp32"):
        return device.dtype if recipe.dtype == "auto" else "fp32"
    if device.torch_device == "cpu":
        raise UsageError(f"--dtype {recipe.dtype} needs a GPU: leave it at auto, which is fp32 here.")
    if recipe.dtype == "bf16" and (device.capability or (0, 0)) < (8, 0):
        raise UsageError(
            f"--dtype bf16: {device.name} only emulates it, slowly. Leave it at auto, which is fp16 here."
        )
    return recipe.dtype


def compilation(recipe: Recipe, device: Device) -> str:
    """ "off", "on", "graphs" or "replay" (on a GPU, without loss scaling).

    Raises:
        UsageError: torch's compiler is asked to take a recurrence that is walked token by token.
    """
    if is_walked(recipe):
        if recipe.compile in ("on", "graphs"):
            raise UsageError(
                f"--compile {recipe.compile} would compile every token of --recurrence sequential anew: "
                "leave it at auto."
            )
        alone = not (recipe.lora_rank or recipe.teacher or distributed.process_group.is_distributed())
        replays = (
            recipe.compile != "off" and device.torch_device == "cuda" and dtype_of(recipe, device) != "fp16"
        )
        return "replay" if replays and alone else "off"
    if recipe.compile == "replay" and (device.torch_device == "cpu" or dtype_of(recipe, device) == "fp16"):
        return "off"
    if recipe.compile != "auto":
        return recipe.compile
    if not device.compile:
        return "off"
    # with these, and with fp16's scaling, graphs are not measured yet
    if recipe.lora_rank or recipe.teacher or distributed.process_group.is_distributed():
        return "on"
    if dtype_of(recipe, device) != "bf16":
        return "on"
    return "replay" if is_made_of_kernels(recipe) else "graphs"


def is_walked(recipe: Recipe) -> bool:
    """Whether the model goes through a text token by token: the original recurrence."""
    return recipe.model == "new_llm" and recipe.recurrence == "sequential"


def is_made_of_kernels(recipe: Recipe) -> bool:
    """Whether torch's compiler would find little to fuse in a step: then it need not be waited for."""
    plain = recipe.recurrence == "parallel" and recipe.hidden_size <= KERNELS_MAX_DIM
    whole = recipe.gradient_checkpointing == "off" and not recipe.optimizer_in_backward
    return recipe.model == "new_llm" and plain and whole and recipe.kernels != "off"
