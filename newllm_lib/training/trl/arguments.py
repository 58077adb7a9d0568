"""`TrainingArguments` for a trainer of TRL's, from the recipe and the device."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from transformers import TrainerCallback, TrainingArguments

from newllm_lib.device import Device
from newllm_lib.recipe import Recipe
from newllm_lib.runs import Run
from newllm_lib.training.compile import dtype_of


def trainer_arguments(
    recipe: Recipe, run: Run, device: Device, folder: Path, total_steps: int, micro_batch: int
) -> dict:
    """The same whatever is trained. When to log, evaluate and save is the callbacks' decision.

    Args:
        folder: where the trainer writes; the callbacks move what is whole into the run.
    """
    dtype = dtype_of(recipe, device)
    return {
        "output_dir": str(folder),
        "max_steps": total_steps,
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": recipe.batch_size // micro_batch,
        "max_grad_norm": recipe.max_grad_norm,
        "bf16": dtype == "bf16",
        "fp16": dtype == "fp16" and device.torch_device == "cuda",
        "use_cpu": device.torch_device == "cpu",
        "seed": recipe.seed,
        "data_seed": recipe.seed,
        "disable_tqdm": True,
        "logging_nan_inf_filter": False,  # it would hide a NaN, and synchronise every step
        "logging_strategy": "no",
        "eval_strategy": "no",
        "save_strategy": "no",
        "save_total_limit": None,  # what is old goes when what is newer is sealed
        "report_to": [] if recipe.report_to in ("none", "tensorboard") else [recipe.report_to],
        "run_name": run.name,
        "dataloader_pin_memory": device.torch_device == "cuda",
        "remove_unused_columns": False,
    }


def checkpointing(kind: type[TrainingArguments], on: bool) -> dict[str, bool]:
    """What a trainer's arguments call recomputing activations: transformers renames it. TRL has it on."""
    known = {f.name for f in fields(kind)}
    name = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
    return {name: on}


def one_gpu(arguments: TrainingArguments) -> TrainingArguments:
    """One process uses one GPU. The Trainer would split each batch over all of them, and TRL refuses that.

    There is no public switch but the process's environment, which is read before a run is known.
    """
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1
    return arguments


def reporters(recipe: Recipe, run: Run) -> list[TrainerCallback]:
    """TensorBoard's callback, writing into the run: by itself it takes the trainer's folder, which goes."""
    if recipe.report_to != "tensorboard":
        return []
    from transformers.integrations import TensorBoardCallback

    callback = TensorBoardCallback()
    callback.logging_dir = callback.logging_dir or str(run.path / "runs")
    return [callback]
