"""What a recipe's memory keys mean for a run: what is refused, how the model and its blocks are made."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import nn

from newllm_lib.device import Device
from newllm_lib.errors import UsageError
from newllm_lib.recipe import Recipe
from newllm_lib.training import memory

if TYPE_CHECKING:
    from newllm_lib.training.memory.blocks import BlockPasses

HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
ROUNDED = ("adafactor", "muon", "adamw8bit", "adamw4bit")  # optimizers that round weights stochastically


def refuse(recipe: Recipe, device: Device) -> None:
    """What does not go together, before anything is made.

    Raises:
        UsageError: says what to choose instead.
    """
    if recipe.gradient_checkpointing == "auto" and recipe.task == "train":
        raise UsageError(
            "gradient_checkpointing auto is for training with --base: choose off, on or offload."
        )
    if recipe.weights_dtype != "fp32":
        _refuse_half_weights(recipe, device)
    elif recipe.optimizer_in_backward and (
        recipe.dtype == "fp16" or (recipe.dtype == "auto" and device.dtype == "fp16")
    ):
        raise UsageError(
            "optimizer_in_backward does not go with fp16 and float32 weights: there loss scaling must see "
            "all gradients before the first step. Add --weights_dtype fp16 --optimizer adafactor, leave it "
            "out (micro_batch_size and gradient_checkpointing save memory too), or train in fp32."
        )
    small = recipe.micro_batch_size != "auto" and int(recipe.micro_batch_size) < recipe.batch_size
    if recipe.optimizer_in_backward and small and recipe.gradient_checkpointing == "off":
        raise UsageError(
            "optimizer_in_backward cuts micro-batches inside the blocks: set gradient_checkpointing on or "
            "offload."
        )
    if recipe.optimizer == "muon" and recipe.weights_dtype != "fp32" and recipe.momentum_bits == 0:
        raise UsageError("momentum_bits 0 is for adafactor: Muon is its momentum. Use 4, 8 or 32.")

    if recipe.compile == "replay":
        _refuse_replay(recipe)


def _refuse_half_weights(recipe: Recipe, device: Device) -> None:
    kind = recipe.weights_dtype
    rounded = ROUNDED if kind == "bf16" else ROUNDED[:2]  # torchao's round to bf16 alone
    if recipe.optimizer not in rounded:
        raise UsageError(
            f"weights_dtype {kind} loses small steps with {recipe.optimizer}: use one of "
            f"{', '.join(rounded)}."
        )
    if kind == "bf16" and device.dtype == "fp16":
        raise UsageError(f"weights_dtype bf16: {device.name} has no bf16. Use fp16, or leave it at fp32.")
    if kind == "fp16" and device.torch_device == "cpu":
        raise UsageError("weights_dtype fp16 is for GPUs: use bf16 here, or leave it at fp32.")
    if kind == "fp16" and not recipe.optimizer_in_backward:
        raise UsageError(
            "weights_dtype fp16 goes with optimizer_in_backward: add it, or leave the weights at fp32."
        )
    if recipe.dtype not in ("auto", kind) and device.torch_device == "cuda":
        raise UsageError(f"weights_dtype {kind} does not go with dtype {recipe.dtype}: leave dtype at auto.")


def _refuse_replay(recipe: Recipe) -> None:
    if recipe.lora_rank or recipe.teacher:
        raise UsageError("compile replay is for training without adapters or a teacher: choose on or off.")
    if recipe.optimizer_in_backward and (recipe.dropout or recipe.carry_state):
        raise UsageError(
            "compile replay with optimizer_in_backward is without dropout or carried state: leave one of "
            "them out."
        )
    if (recipe.gradient_checkpointing == "off") == recipe.optimizer_in_backward:
        raise UsageError(
            "compile replay goes with gradient_checkpointing off, or with optimizer_in_backward and "
            "gradient_checkpointing on or offload: change one of the three."
        )


def make_model(recipe: Recipe, device: torch.device, build: Callable[[], nn.Module]) -> nn.Module:
    """What `build` makes; with weights in half precision on the device itself and never in float32."""
    if recipe.weights_dtype == "fp32":
        return build()
    if device.type == "cuda":
        _expandable_segments()
    return memory.low_precision.build_light(build, device, HALVES[recipe.weights_dtype])


def _expandable_segments() -> None:
    """Large tensors come and go: no holes between them. The name of torch's setting changed with 2.11."""
    newer = getattr(torch._C, "_accelerator_setAllocatorSettings", None)
    (newer or torch.cuda.memory._set_allocator_settings)("expandable_segments:True")


def prepare_blocks(model: nn.Module, recipe: Recipe, micro: int, how: str) -> BlockPasses | None:
    """Make the blocks recompute their activations where transformers' own checkpointing does not do.
    Micro-batches are cut inside them where parameters are stepped in the backward pass, else the loop cuts
    them.

    how: compiling.compilation's answer.
    """
    if recipe.gradient_checkpointing == "off" or (
        recipe.gradient_checkpointing == "on" and not recipe.optimizer_in_backward
    ):
        return None
    inside = micro if recipe.optimizer_in_backward and micro < recipe.batch_size else None
    offload = recipe.gradient_checkpointing == "offload"
    compiled, graphs = how in ("on", "graphs"), how == "replay"
    return memory.blocks.checkpoint_blocks(model, inside, offload, compiled=compiled, graphs=graphs)
