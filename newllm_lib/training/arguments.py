"""What transformers' Trainer is told, from the recipe and the device."""

from __future__ import annotations

from transformers import TrainingArguments

from newllm_lib.device import Device
from newllm_lib.recipe import Recipe
from newllm_lib.runs import Run
from newllm_lib.training import ranks
from newllm_lib.training.compiling import dtype_of


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
