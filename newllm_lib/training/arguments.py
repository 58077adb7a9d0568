"""What transformers' Trainer is told: dtype, compilation, and its arguments, from the recipe and the device."""

from __future__ import annotations

from transformers import TrainingArguments

from newllm_lib.device import Device
from newllm_lib.errors import UsageError
from newllm_lib.recipe import Recipe
from newllm_lib.runs import Run
from newllm_lib.training import ranks


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
        raise UsageError(f"--dtype bf16: {device.name} only emulates it, slowly. Leave it at auto, which is fp16 here.")
    return recipe.dtype


def training_arguments(recipe: Recipe, run: Run, device: Device, total: int, micro: int) -> TrainingArguments:
    return on_one_gpu(TrainingArguments(**argument_values(recipe, run, device, total, micro)))


def on_one_gpu(arguments: TrainingArguments) -> TrainingArguments:
    """One process uses one GPU: the Trainer would split each batch by threads over all of them."""
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1
    return arguments


def argument_values(recipe: Recipe, run: Run, device: Device, total: int, micro: int) -> dict:
    """The Trainer's arguments, whatever is trained."""
    processes = ranks.world()
    dtype, checkpointing = dtype_of(recipe, device), {}
    if recipe.gradient_checkpointing == "on" and not recipe.step_in_backward:  # else lowmem.blocks does it
        checkpointing = {"gradient_checkpointing": True}
    if recipe.step_in_backward:  # the blocks cut the batch
        micro = recipe.batch_size // processes
    return dict(
        output_dir=str(run.path), max_steps=total, per_device_train_batch_size=micro,
        gradient_accumulation_steps=recipe.batch_size // (micro * processes), max_grad_norm=recipe.max_grad_norm,
        bf16=dtype == "bf16", fp16=dtype == "fp16" and device.torch_device == "cuda",
        use_cpu=device.torch_device == "cpu", seed=recipe.seed, data_seed=recipe.seed, disable_tqdm=True,
        logging_nan_inf_filter=False,  # it would hide a NaN, and synchronise every step
        logging_strategy="no", eval_strategy="no", save_strategy="no",  # callbacks.Timetable decides
        report_to=[] if recipe.report_to == "none" else recipe.report_to.split(","), run_name=run.name,
        dataloader_pin_memory=False, remove_unused_columns=False, average_tokens_across_devices=True,
        ddp_find_unused_parameters=False,  # every parameter takes part in every step
        **checkpointing,
    )  # fmt: skip


def compilation(recipe: Recipe, device: Device) -> str:
    """"off", "on", "graphs" or "replay" (on a GPU, without loss scaling)."""
    if recipe.compile == "replay" and (device.torch_device == "cpu" or dtype_of(recipe, device) == "fp16"):
        return "off"
    if recipe.compile != "auto":
        return recipe.compile
    if not device.compile:
        return "off"
    if recipe.lora_rank or recipe.teacher or ranks.several():  # with these, and with fp16's scaling, graphs are not measured yet
        return "on"
    return "graphs" if dtype_of(recipe, device) == "bf16" else "on"
