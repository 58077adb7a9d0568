"""Which implementation of an operation runs: Triton's kernels on a GPU that has them, plain torch everywhere else."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os

import torch

from newllm_lib.device import probe
from newllm_lib.ops import ahead

_HAS_TRITON = importlib.util.find_spec("triton") is not None
_KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_switched_off = False


def runs_triton(x: torch.Tensor) -> bool:
    """Whether our kernels take this tensor: on a CUDA device, triton there, of a dtype that float32 can accumulate."""
    return _HAS_TRITON and not _switched_off and x.is_cuda and x.dtype in _KERNEL_DTYPES


@contextlib.contextmanager
def kernels(on: bool):
    """Within it, no Triton kernel of ours runs unless `on`: plain torch everywhere (the recipe's `kernels: off`)."""
    global _switched_off
    before, _switched_off = _switched_off, not on
    try:
        yield
    finally:
        _switched_off = before


def autocast_dtype(x: torch.Tensor) -> torch.dtype:
    """The dtype that matrix products of x would have under autocast; custom operators are not autocast by themselves."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def runs_triton_dot(x: torch.Tensor, float32: bool = False) -> bool:
    """Whether kernels that multiply matrices take it: Triton has this GPU's tensor cores (from sm80 on), and x is in half
    precision, or in float32 for kernels that multiply that in three parts.
    """
    return runs_triton(x) and (float32 or x.dtype != torch.float32) and _tensor_core_dot()


def _tensor_core_dot() -> bool:
    return _tensor_core_dot_of(os.environ.get("NEWLLM_DEVICE"))


# It asks the system, which can't be traced. This is what torch.compiler.assume_constant_result does, but that imports all of
# torch's compiler, a third of what else is imported to chat with a model.
_tensor_core_dot._dynamo_marked_constant = True


@functools.cache
def _tensor_core_dot_of(named: str | None) -> bool:
    """`named`: the device that NEWLLM_DEVICE names, which `probe` reads."""
    return probe().tensor_core_dot


def on_its_device(function):
    """Run `function(x, ...)` with x's GPU as the current one: Triton launches there, wherever the tensors are. What is being
    compiled ahead is waited for.
    """

    @functools.wraps(function)
    def run(x: torch.Tensor, *args, **kwargs):
        ahead.finish()
        with torch.cuda.device_of(x):
            return function(x, *args, **kwargs)

    return run


def on_the_processor(x: torch.Tensor, *others: torch.Tensor | None) -> bool:
    """Whether gradients written by hand take it: all of it on the processor, in the one dtype that it is computed in. A compiler
    fuses what autograd makes by itself."""
    kinds = {(y.device.type, y.dtype) for y in (x, *others) if y is not None}
    exact = kinds <= {("cpu", x.dtype)} and x.dtype in (torch.float32, torch.float64)
    return exact and not torch.compiler.is_compiling()


@functools.cache
def shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that one program may have on this GPU (on the processor, in Triton's interpreter: an H100's)."""
    if device.type != "cuda":
        return 232_448
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin
