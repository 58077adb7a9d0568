"""Whether all processes of a run, on all hosts, are about to do the same: checked before any waits."""

from __future__ import annotations

from contextlib import nullcontext

from newllm_lib.device import Device
from newllm_lib.errors import NewLLMError
from newllm_lib.recipe import Recipe
from newllm_lib.runs import Run, mark_in
from newllm_lib.training.compile import dtype_of
from newllm_lib.training.distributed import process_group
from newllm_lib.training.distributed.strategy import distribution, num_shards
from newllm_lib.training.estimate import micro_batch_size


def check_same_plan(recipe: Recipe, device: Device) -> None:
    """Raise NewLLMError where a process's machine asks for another plan: they would wait for each other."""
    pieces, micro = num_shards(recipe, device), micro_batch_size(recipe, device, process_group.world_size())
    mine = (
        f"{distribution(recipe, device)} in {pieces} parts, {dtype_of(recipe, device)}, {micro} sequences "
        "at a time"
    )
    first = process_group.broadcast_object(mine)
    if process_group.all_reduce_sum({"others": int(mine != first)})["others"]:
        other = f"; process {process_group.rank()}: {mine}" if mine != first else ""
        raise NewLLMError(
            f"The hosts would not train alike (the first process: {first}{other}): use the same GPUs, and as "
            "many on each host, or say --distribution, --dtype and --micro_batch_size."
        )


def check_shared_filesystem(run: Run, checkpoint) -> None:
    """Raise NewLLMError where another host has another run folder or resumes another checkpoint."""
    if not process_group.is_distributed():
        return
    where = f"{run.path.absolute()}: all hosts need the run's folder on a disk they share (--output_dir)."
    with mark_in(run.path) if process_group.is_main_process() else nullcontext() as mark:
        blind = process_group.all_reduce_sum(
            {"blind": int(not (run.path / process_group.broadcast_object(mark)).exists())}
        )["blind"]
    if blind:
        raise NewLLMError(
            f"{blind} of {process_group.world_size()} processes do not see what the first one wrote into "
            f"{where}"
        )
    mine, said = (
        (checkpoint.name if checkpoint else "none"),
        process_group.broadcast_object(checkpoint.name if checkpoint else "none"),
    )
    if mine != said:
        raise NewLLMError(
            f"Process {process_group.rank()} sees {mine}, where the first process sees {said}, in {where}"
        )
