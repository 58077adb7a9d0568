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


def release_memory() -> None:
    """Give back what only a trainer that has ended still holds: a prepared model holds itself."""
    gc.collect()
    torch.cuda.empty_cache()  # nothing happens where no GPU is in use


def with_smaller_micro_batches(
    micro: int,
    batch_size: int,
    unit: str,
    advice: str,
    attempt: Callable[[int, bool], None],
    least: int = 1,
) -> None:
    """`attempt(micro, first)`; when memory runs out, again with about half of `micro`.

    Args:
        unit: what a batch holds ("sequences", "pairs").
        advice: what to lower when even the fewest at a time do not fit.
        least: the fewest at a time.

    Raises:
        NewLLMError: even the fewest at a time do not fit.
    """
    first = True
    while True:
        try:
            return attempt(micro, first)
        except torch.OutOfMemoryError as error:
            if not (fewer := [n for n in range(micro // 2, least - 1, -1) if batch_size % n == 0]):
                raise NewLLMError(
                    f"The GPU's memory is too small even for one {unit[:-1]} at a time: {advice}."
                    if micro == 1
                    else f"The GPU's memory is too small even for {micro} {unit} at a time: {advice}."
                ) from error
        micro, first = fewer[0], False
        console.say(
            f"  Out of GPU memory: going on with {micro} {unit} at a time (the batch stays {batch_size})"
        )
        release_memory()
