"""What training a base by TRL's trainers will need: memory, time, rows at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib import metadata

from packaging.version import Version

from newllm_lib import checkpoints
from newllm_lib.device import Device
from newllm_lib.errors import NewLLMError
from newllm_lib.recipe import Recipe
from newllm_lib.training.throughput import GPU_START_HOURS, TFLOPS, dtype_in, gain


def estimate_of_base(recipe: Recipe, device: Device) -> dict:
    """As `estimate`; all None where the base has to be asked of the hub first. Of GRPO the hours are None:
    how long answers become, and how fast they are written, is known when the base has written some."""
    known = checkpoints.base_sizes(recipe.base)
    if known is None:
        return dict.fromkeys(("parameters", "memory_estimate_gib", "hours_estimate"))
    need, hours = base_needs(recipe, device, *known), None
    if recipe.task != "grpo" and (recipe.max_samples or recipe.max_steps):
        rows = recipe.epochs * (recipe.max_samples or math.inf)
        rows = min(rows, (recipe.max_steps or math.inf) * recipe.batch_size)
        warm = 3 * recipe.sft_warm_start * (recipe.max_samples or 0) / 8
        hours = base_hours(recipe, device, need, (rows + warm) * recipe.max_seq_length)
    return {"parameters": need.parameters, "memory_estimate_gib": need.memory_gib, "hours_estimate": hours}


@dataclass(frozen=True)
class BaseNeeds:
    """What training a base will need on a device.

    Attributes:
        parameters: of the base.
        at_once: rows (dialogues, pairs) at a time: the recipe's, or as many as fit.
        checkpointing: whether activations are computed again in the backward pass.
        memory_gib: an estimate.
        least_gib: with one row at a time.
    """

    parameters: int
    at_once: int
    checkpointing: bool
    memory_gib: float
    least_gib: float


def base_needs(recipe: Recipe, device: Device, config, count: int) -> BaseNeeds:
    """The needs of training a base by TRL's trainers.

    Args:
        config: the base's transformers config.
        count: its parameters.
    """
    config = config.get_text_config()
    weights = _base_weights_gib(recipe, device, config, count)
    room = (0.7 if device.torch_device == "cuda" else 0.4) * device.memory_gib - weights
    checkpointing = recipe.gradient_checkpointing == "on"
    if recipe.gradient_checkpointing == "auto":
        some = min(4, recipe.batch_size)  # fewer at a time keep no GPU busy: rather compute twice
        checkpointing = some * _row_gib(recipe, device, config, False) > room
    row = _row_gib(recipe, device, config, checkpointing)
    wanted = max(1, int(room / row)) if recipe.micro_batch_size == "auto" else int(recipe.micro_batch_size)
    at_once = next(n for n in range(min(wanted, recipe.batch_size), 0, -1) if recipe.batch_size % n == 0)
    held = weights + (0.4 if device.torch_device == "cpu" else 0.8)  # with the libraries' own
    return BaseNeeds(count, at_once, checkpointing, round(held + at_once * row, 2), round(held + row, 2))


def _row_gib(recipe: Recipe, device: Device, config, checkpointing: bool) -> float:
    """What one row keeps for the backward pass (of a pair both sides): of a token about 34 numbers of the
    stream's width in each layer, and with an older TRL three times the head's logits.

    Measured on an H200 (Qwen2.5-0.5B's sizes, bf16, adapters, 16 rows of 512 tokens): 12.3 GiB beside the
    weights, 1.2 with activations computed twice; this says 12.8 and 1.3.
    """
    layers, width = config.num_hidden_layers, config.hidden_size
    kept = 2 * layers + 34 if checkpointing else 34 * layers
    # from some version on TRL's trainers of answers and of pairs compute the loss of a few tokens at a time
    whole = recipe.task not in ("sft", "dpo") or Version(metadata.version("trl")) < Version("1.16")
    token = kept * width * (4 if dtype_in(recipe, device) == "fp32" else 2.3) + whole * 12 * config.vocab_size
    return (2 if recipe.task in ("dpo", "orpo", "reward") else 1) * recipe.max_seq_length * token / 2**30


def _base_weights_gib(recipe: Recipe, device: Device, config, count: int) -> float:
    """Weights; with all of them trained their gradients and AdamW's state, else the adapters'."""
    if not recipe.lora_rank:
        return 16 * count / 2**30
    half = 4 if device.torch_device == "cpu" or dtype_in(recipe, device) == "fp32" else 2
    embedding = min(count, config.vocab_size * config.hidden_size)  # is not quantized
    each = {"full": half, "8bit": 1.05, "4bit": 0.56}[recipe.load_in]
    adapters = 14 * recipe.lora_rank * config.hidden_size * config.num_hidden_layers
    return (each * (count - embedding) + half * embedding + 16 * adapters) / 2**30


def base_hours(recipe: Recipe, device: Device, need: BaseNeeds, tokens: float) -> float:
    """Hours for so many tokens: forward, gradients of activations and, without adapters, of weights; computed
    again with checkpointing; DPO's pairs are read by the base as well, KTO's answers beside another one.
    GRPO's answers are not written in that time, only learned from."""
    operations = (4 if recipe.lora_rank else 6) + 2 * need.checkpointing
    busier = 1.0 if device.torch_device == "cpu" else gain(need.parameters)
    if recipe.task == "grpo":
        operations, busier = operations + 2 * bool(recipe.beta), 1.0  # with beta the base reads them as well
    elif recipe.has_pairs:  # of DPO both sides, by the base and by the policy
        operations, tokens, busier = 8 if recipe.task == "dpo" else operations, 2 * tokens, 1.0
    hours = operations * need.parameters * tokens / (TFLOPS[device.kind] * busier * 1e12) / 3600
    return round(hours / device.cores if device.torch_device == "cpu" else hours + GPU_START_HOURS, 3)


def check_base_memory(recipe: Recipe, device: Device, need: BaseNeeds) -> None:
    """Refuse a base that cannot fit, before its weights are downloaded.

    Raises:
        NewLLMError: even one row at a time needs more than the device has; says which keys to turn.
    """
    if need.least_gib <= device.memory_gib:
        return
    keys = [] if recipe.gradient_checkpointing != "off" else ["--gradient_checkpointing on"]
    keys += [] if recipe.lora_rank else ["--lora_rank 16"]
    keys += ["--load_in 4bit"] if recipe.load_in != "4bit" else []
    raise NewLLMError(
        f"{recipe.base} has {need.parameters:,} parameters, and training it needs about {need.least_gib:.1f} "
        f"GiB even with one row at a time; {device.name} has {device.memory_gib:.1f}: "
        f"{', '.join([*keys, 'lower --max_seq_length'])}, or name a smaller --base."
    )
