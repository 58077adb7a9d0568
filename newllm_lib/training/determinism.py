"""The same bits in every run on one machine: torch's deterministic algorithms while a run trains."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def deterministic(on: bool) -> Iterator[None]:
    """Within it, operations that add in whatever order threads arrive (gathered rows' gradients, some of
    cuBLAS) are replaced by slower ones that do not, and one that has no such replacement raises. Our own
    kernels are deterministic anyway."""
    if not on:
        yield
        return
    # read when cuBLAS starts; torch refuses to go on without
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # nothing reads what was not written
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.utils.deterministic.fill_uninitialized_memory = before[1]
