"""Going on with less where a GPU's memory is short: fewer sequences at a time, never a smaller batch."""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch

from newllm_lib import console
from newllm_lib.errors import NewLLMError


def count_from_here() -> None:
    """Count the GPU's peak memory from now on: an earlier run of this process had its own."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def with_smaller_micro_batches(
    micro: int, batch_size: int, unit: str, advice: str, attempt: Callable[[int, bool], None]
) -> None:
    """`attempt(micro, first)`; when memory runs out, again with about half of `micro`.

    Args:
        unit: what a batch holds ("sequences", "pairs").
        advice: what to lower when even one at a time does not fit.

    Raises:
        NewLLMError: even one at a time does not fit.
    """
    first = True
    while True:
        try:
            return attempt(micro, first)
        except torch.OutOfMemoryError as error:
            if micro == 1:
                raise NewLLMError(
                    f"The GPU's memory is too small even for one {unit.removesuffix('s')} at a time: "
                    f"{advice}."
                ) from error
        micro, first = next(n for n in range(micro // 2, 0, -1) if batch_size % n == 0), False
        console.say(
            f"  Out of GPU memory: going on with {micro} {unit} at a time (the batch stays {batch_size})"
        )
        gc.collect()  # a prepared model holds itself
        torch.cuda.empty_cache()
