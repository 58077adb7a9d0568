"""Which implementation of an operation runs: Triton's kernels on a GPU that has them, plain torch everywhere else."""

from __future__ import annotations

import functools
import importlib.util

import torch

_HAS_TRITON = importlib.util.find_spec("triton") is not None
_KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def runs_triton(x: torch.Tensor) -> bool:
    """Whether our kernels take this tensor: on a CUDA device, triton there, of a dtype that float32 can accumulate."""
    return _HAS_TRITON and x.is_cuda and x.dtype in _KERNEL_DTYPES


def on_its_device(function):
    """Run `function(x, ...)` with x's GPU as the current one: Triton launches there, wherever the tensors are."""

    @functools.wraps(function)
    def run(x: torch.Tensor, *args, **kwargs):
        with torch.cuda.device_of(x):
            return function(x, *args, **kwargs)

    return run
