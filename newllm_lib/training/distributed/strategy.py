"""Several GPUs from a recipe's keys: how many, how they share the work, and what does not go with them.

DDP: each process has a whole model and its part of the batch; gradients are averaged (torch's
DistributedDataParallel). FSDP2: weights, gradients and optimizer state are cut into as many parts as there
are processes (torch's fully_shard, block by block).
"""

from __future__ import annotations

import os

import torch

from newllm_lib.device import Device
from newllm_lib.errors import UsageError
from newllm_lib.recipe import Recipe
from newllm_lib.training.distributed import process_group
from newllm_lib.training.estimate import fits_whole

DDP, FSDP2 = "ddp", "fsdp2"


def num_processes(recipe: Recipe, device: Device) -> int:
    """How many processes train this run: those that were started together, or as many as the recipe asks for.

    Raises:
        UsageError: more than this machine has GPUs.
    """
    if process_group.is_distributed():
        return process_group.world_size()
    gpus = torch.cuda.device_count() if device.torch_device == "cuda" else 0
    if recipe.num_gpus == "auto":
        return max(1, gpus)
    if gpus and recipe.num_gpus > gpus:
        raise UsageError(
            f"--num_gpus {recipe.num_gpus}: this machine has {gpus}. Use auto, or start several hosts by "
            "torchrun."
        )
    return recipe.num_gpus


def distribution(recipe: Recipe, device: Device) -> str:
    """DDP or FSDP2."""
    if recipe.distribution != "auto":
        return recipe.distribution
    return DDP if recipe.model != "phase7" or fits_whole(recipe, device) else FSDP2


def is_sharded(recipe: Recipe, device: Device) -> bool:
    """Whether each process has a part of the model only."""
    return (process_group.is_distributed() or num_processes(recipe, device) > 1) and distribution(
        recipe, device
    ) == FSDP2


def num_shards(recipe: Recipe, device: Device) -> int:
    """The number of shards: a host's processes, where that is enough, else those of all hosts."""
    if not is_sharded(recipe, device):
        return 1
    count = num_processes(recipe, device)
    in_host = process_group.local_world_size() if process_group.is_distributed() else count
    return in_host if count % in_host == 0 and fits_whole(recipe, device, in_host) else count


def describe(recipe: Recipe, device: Device, count: int) -> str:
    """A line about how `count` processes share the work."""
    where = f"{count} GPUs" if device.torch_device == "cuda" else f"{count} processes"
    if distribution(recipe, device) == FSDP2:
        why = "the model is too large for each" if recipe.distribution == "auto" else "as asked for"
        pieces = num_shards(recipe, device)
        held = "" if pieces == count else f", all of them in each of {count // pieces} hosts"
        return (
            f"{where}, FSDP2: weights, gradients and optimizer state are cut into {pieces} parts{held} "
            f"({why})"
        )
    why = "as asked for" if recipe.distribution != "auto" else "it fits"
    return (
        f"{where}, DDP: a whole model on each ({why}), {recipe.batch_size // count} of "
        f"{recipe.batch_size} sequences each"
    )


def check_distributed(recipe: Recipe, device: Device, count: int) -> None:
    """What does not go together with several processes, before anything is made.

    Raises:
        UsageError: says what to choose instead.
    """
    if count == 1 and not process_group.is_distributed():
        return
    for variable, what in (("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed")):
        if os.environ.get(variable, "false").lower() == "true":
            raise UsageError(
                f"accelerate's configuration asks for {what}: start without, --distribution chooses ddp or "
                "fsdp2."
            )
    if recipe.batch_size % count:
        near = max(count, recipe.batch_size // count * count)
        raise UsageError(
            f"batch_size {recipe.batch_size} cannot be shared by {count} processes: use a multiple, such as "
            f"--batch_size {near}."
        )
    if recipe.task != "train":
        what = "Preference training" if recipe.has_pairs else "Training of a --base"
        raise UsageError(
            f"{what} runs in one process, which keeps its rows, reference figures and answers: leave out "
            "--num_gpus."
        )
    if recipe.teacher:
        raise UsageError(
            "teacher: distillation goes past the model's own forward, in one process only: leave out "
            "--num_gpus."
        )
    if distribution(recipe, device) == FSDP2:
        _refuse_fsdp2(recipe, device)
    elif recipe.weights_dtype == "bf16" and recipe.optimizer in ("adamw8bit", "adamw4bit"):
        raise UsageError(
            f"{recipe.optimizer} on bf16 weights rounds by random numbers of each process, so that their "
            "models would drift apart: use --optimizer adafactor, or --weights_dtype fp32."
        )


def _refuse_fsdp2(recipe: Recipe, device: Device) -> None:
    if recipe.model != "phase7":
        raise UsageError(
            f"fsdp2 is for Phase 7, whose large sizes need it: {recipe.model} fits a GPU, use --distribution "
            "ddp."
        )
    instead = "--optimizer adamw --weights_dtype fp32 --optimizer_in_backward false"
    if recipe.optimizer_in_backward:
        raise UsageError(
            "optimizer_in_backward does not go with fsdp2, where a gradient is there only when the "
            f"processes have added theirs up, and each has a part of it: use {instead}."
        )
    if recipe.weights_dtype != "fp32":
        raise UsageError(
            f"weights_dtype {recipe.weights_dtype} does not go with fsdp2, where each keeps a part of "
            f"float32 weights: use {instead}."
        )
    if recipe.optimizer != "adamw":
        raise UsageError(
            f"{recipe.optimizer} does not go with fsdp2: it needs whole matrices (or blocks of them), and "
            f"each process has some rows. Use {instead}; its state is cut into parts too."
        )
    if recipe.lora_rank:
        raise UsageError("lora_rank does not go with fsdp2: adapters are small, so use --distribution ddp.")
    if recipe.dtype == "fp16" or (recipe.dtype == "auto" and device.dtype == "fp16"):
        raise UsageError(
            "fsdp2 needs bf16 or fp32, and fp16's loss scaling is not done across parts: use --dtype fp32, "
            "or ddp."
        )
