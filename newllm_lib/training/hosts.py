"""Whether all processes of a run, on however many hosts, are about to do the same: before any of them waits for another."""

from __future__ import annotations

from contextlib import nullcontext

from newllm_lib.device import Device
from newllm_lib.errors import NewLLMError
from newllm_lib.recipe import Recipe
from newllm_lib.runs import Run, mark_in
from newllm_lib.training import ranks
from newllm_lib.training.compiling import dtype_of
from newllm_lib.training.estimate import micro_batch_size
from newllm_lib.training.several import distribution, parts


def check_that_all_plan_the_same(recipe: Recipe, device: Device) -> None:
    """Raises:
    NewLLMError: the machine of some process asks for something else than the first one's, and they would wait for each other.
    """
    pieces, micro = parts(recipe, device), micro_batch_size(recipe, device, ranks.world())
    mine = f"{distribution(recipe, device)} in {pieces} parts, {dtype_of(recipe, device)}, {micro} sequences at a time"
    first = ranks.as_the_first_says(mine)
    if ranks.summed({"others": int(mine != first)})["others"]:
        other = f"; process {ranks.rank()}: {mine}" if mine != first else ""
        raise NewLLMError(
            f"The hosts would not train alike (the first process: {first}{other}): use the same GPUs, and as many on each host, "
            "or say --distribution, --dtype and --micro_batch_size."
        )


def check_that_all_see(run: Run, checkpoint) -> None:
    """Raises:
    NewLLMError: processes on another host have another folder than the first one, or go on from another checkpoint.
    """
    if not ranks.several():
        return
    where = f"{run.path.absolute()}: all hosts need the run's folder on a disk they share (--output_dir)."
    with mark_in(run.path) if ranks.is_first() else nullcontext() as mark:
        blind = ranks.summed({"blind": int(not (run.path / ranks.as_the_first_says(mark)).exists())})["blind"]
    if blind:
        raise NewLLMError(f"{blind} of {ranks.world()} processes do not see what the first one wrote into {where}")
    mine, said = (checkpoint.name if checkpoint else "none"), ranks.as_the_first_says(checkpoint.name if checkpoint else "none")
    if mine != said:
        raise NewLLMError(f"Process {ranks.rank()} sees {mine}, where the first process sees {said}, in {where}")
