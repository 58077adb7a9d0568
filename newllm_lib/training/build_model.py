"""The model of a run, as it is trained: fresh or a start's; on its device; cut, compiled or checkpointed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn

from newllm_lib import training
from newllm_lib.checkpoints.weights import check_weights
from newllm_lib.ops import precompile
from newllm_lib.training import distributed
from newllm_lib.training.compile import compilation
from newllm_lib.training.context import RunContext
from newllm_lib.training.distributed import process_group
from newllm_lib.training.distributed.strategy import is_sharded, num_shards
from newllm_lib.training.memory.plan import make_model, prepare_blocks
from newllm_lib.training.model_config import build_model, count_parameters, load_model, model_config

if TYPE_CHECKING:
    from newllm_lib.training.memory.blocks import BlockPasses

# Parameters from which on a model is made on its GPU: a small machine's host could not hold it.
_LARGE = 200_000_000


@dataclass
class BuiltModel:
    """A model with how its step is run.

    Args:
        blocks: how its blocks recompute their activations, where ours do.
        compilation: "off", "on", "graphs" (torch's compiler) or "replay" (whole steps from a CUDA graph).
        sharded: each process has a part of every weight.
    """

    model: nn.Module
    blocks: BlockPasses | None
    compilation: str
    sharded: bool = False


def build(context: RunContext) -> BuiltModel:
    """The model on its device, as it begins. A checkpoint's weights are read later (`checkpointing`)."""
    recipe, device = context.recipe, context.torch_device
    model = make_model(recipe, torch.device(device.type), partial(_make, context))
    if context.checkpoint:
        check_weights(context.checkpoint, model)
    model.config.use_cache = False  # training asks for a state where it carries one
    sharded = is_sharded(recipe, context.device)
    how = compilation(recipe, context.device)
    if how == "replay" and sharded:
        how = "off"  # what processes send each other in a pass is not recorded
    blocks = prepare_blocks(model, recipe, context.micro_batch, how)
    if recipe.gradient_checkpointing == "on" and blocks is None:
        _checkpoint_activations(model)
    if blocks is None and not recipe.teacher and device.type == "cuda" and not process_group.is_distributed():
        precompile.trace_and_compile(model.to(device), partial(_loss_of_a_batch, model, context))
    compiled = how in ("on", "graphs") and blocks is None
    if sharded:
        parts = num_shards(recipe, context.device)
        distributed.fsdp.apply_fsdp(model, torch.device(device.type), parts, compiled=compiled)
        return BuiltModel(model, blocks, how, sharded=True)
    if compiled:
        # it would cut the graph where gradients are sent, which takes little time
        torch._dynamo.config.optimize_ddp = False
        # a distilled student's loss is computed outside the model
        body = model.model if recipe.teacher else model
        body.compile(mode="reduce-overhead" if how == "graphs" else None)
    return BuiltModel(model.to(device), blocks, how)


def _make(context: RunContext) -> nn.Module:
    """Fresh, the start's, or (to be filled later) of the sizes that the checkpoint has."""
    recipe, tokenizer = context.recipe, context.data.tokenizer
    if recipe.from_run is None:
        large = count_parameters(model_config(recipe, len(tokenizer))) > _LARGE
        return build_model(recipe, len(tokenizer), tokenizer, context.device.torch_device if large else None)
    if not recipe.lora_rank:
        return load_model(context.checkpoint or context.start.folder, recipe)
    base = context.run.path / training.adapters.BASE
    if not context.checkpoint:
        with process_group.main_process_first(process_group.is_main_process()):
            training.adapters.keep_base(context.run, context.start.folder)
    return training.adapters.add_adapters(load_model(base, recipe), recipe, base)


def _checkpoint_activations(model: nn.Module) -> None:
    """transformers' own activation checkpointing, by the name that its version has for it."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable()


def _loss_of_a_batch(model: nn.Module, context: RunContext) -> torch.Tensor:
    """The loss of a batch of nothing, computed as a training step will."""
    size = context.micro_batch, context.recipe.max_seq_length
    ids = torch.ones(size, dtype=torch.long, device=context.torch_device)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(context.dtype)
    state = {"use_cache": True} if context.recipe.carry_state else {}
    with torch.autocast(context.torch_device.type, dtype, enabled=dtype is not None):
        return model.train()(input_ids=ids, shift_labels=ids, **state).loss
