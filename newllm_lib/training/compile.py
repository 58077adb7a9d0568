"""A run's dtype and what is compiled for it: known before torch and transformers are imported."""

from __future__ import annotations

from newllm_lib.device import Device
from newllm_lib.errors import UsageError
from newllm_lib.recipe import Recipe
from newllm_lib.training import distributed


def dtype_of(recipe: Recipe, device: Device) -> str:
    """The dtype of matrix products.

    Raises:
        UsageError: this device does not compute in the recipe's.
    """
    if recipe.weights_dtype != "fp32":
        return recipe.weights_dtype
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
    """ "off", "on", "graphs" or "replay" (on a GPU).

    Raises:
        UsageError: torch's compiler is asked to take a recurrence that is walked token by token.
    """
    # With these a step is not measured as a recording.
    apart = bool(recipe.lora_rank or recipe.teacher) or distributed.process_group.is_distributed()
    if is_walked(recipe):
        if recipe.compile in ("on", "graphs"):
            raise UsageError(
                f"--compile {recipe.compile} would compile every token of --recurrence sequential anew: "
                "leave it at auto."
            )
        replays = recipe.compile != "off" and device.torch_device == "cuda" and not apart
        return "replay" if replays else "off"
    if recipe.compile == "replay" and device.torch_device == "cpu":
        return "off"
    if recipe.compile != "auto":
        return recipe.compile
    if not device.compile:
        return "off"
    if apart:
        return "on"
    if needs_no_compiler(recipe):
        return "replay"
    return "graphs" if dtype_of(recipe, device) == "bf16" else "on"


def is_walked(recipe: Recipe) -> bool:
    """Whether the model goes through a text token by token: the original recurrence."""
    return recipe.model == "new_llm" and recipe.recurrence == "sequential"


def needs_no_compiler(recipe: Recipe) -> bool:
    """Whether torch's compiler would find little to fuse in a step: then it need not be waited for. Products
    are cuBLAS's (or our kernels'), the rest is our kernels or, in TinyGPT2, torch's fused ones.
    """
    whole = recipe.gradient_checkpointing == "off" and not recipe.optimizer_in_backward
    ours = recipe.model == "tiny_gpt2" or (recipe.model == "new_llm" and recipe.kernels != "off")
    return ours and whole and not is_walked(recipe)
