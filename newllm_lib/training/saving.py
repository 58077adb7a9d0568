"""A folder of a run, written by one process or by several together: whole, or not there."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

import torch.distributed as dist

from newllm_lib import console
from newllm_lib.errors import NewLLMError
from newllm_lib.runs import Run, explained, link_model, may_wait, remove_directory, staged_directory
from newllm_lib.training.curves import write_training_log
from newllm_lib.training.distributed import process_group

RETRY_AFTER = (1.0, 4.0, 10.0)  # seconds after which a save that failed is tried again
_T = TypeVar("_T")


def save_directory(final: Path, *parts: Callable[[Path], None]) -> None:
    """Fill `final` by `parts`, each called with the folder to write into. All processes call it.

    A disk may be full for a moment: only what fails again and again ends the run. Then every part is called
    again, with an empty folder.

    Args:
        parts: they may exchange tensors, but write only after the last exchange; between two writes of one
            part's stands `together`.

    Raises:
        NewLLMError: the disk is full or fails, in every process where it does in one.
    """
    for seconds in RETRY_AFTER:
        try:
            return _try_to_save(final, parts)
        except NewLLMError as error:
            console.say(f"  {error} Trying again in {seconds:g} s")
            time.sleep(seconds)
    _try_to_save(final, parts)


def _try_to_save(final: Path, parts: tuple[Callable[[Path], None], ...]) -> None:
    with ExitStack() as staged:
        main = process_group.is_main_process()
        staging = together(final, lambda: staged.enter_context(staged_directory(final)) if main else None)
        folder = Path(process_group.broadcast_object(str(staging)))
        for part in parts:
            together(final, lambda part=part: part(folder))
        together(final, staged.close)


def keep_newest(run: Run, newest: Path, count: int) -> None:
    """After a save: `last/` is that checkpoint's model, and of the checkpoints the newest `count` stay."""
    with may_wait(run.last):
        link_model(newest, run.last)
        for old in run.checkpoints()[:-count]:
            remove_directory(old)
    write_training_log(run)
    console.say("  [Checkpoint saved]")


def together(path: Path, write: Callable[[], _T]) -> _T:
    """Do it in every process, for the sake of `path`; return when all have.

    Raises:
        NewLLMError: the disk failed, in every process where it did in one.
    """
    result, trouble = None, None
    try:
        with explained(path):
            result = write()
    except NewLLMError as error:
        trouble = error
    if process_group.is_distributed():
        said = [None] * process_group.world_size()
        mine = None if trouble is None else str(trouble)
        dist.all_gather_object(said, mine, group=process_group.host_group())
        first = next(filter(None, said), None)
        if first is not None and trouble is None:
            raise NewLLMError(first)
    if trouble is not None:
        raise trouble
    return result
