"""Which implementation of an operation runs: the one mechanism, and what its rules ask.

An operation's package has a plain `reference`, which runs everywhere, and modules with the same functions
that are better where they can run: Triton's kernels on a GPU, gradients written by hand on the CPU. Its
face says which, and when:

    _implementation = Operation(reference)

    @_implementation.register(runs_triton)
    def _triton():
        from newllm_lib.ops.swiglu import triton  # loaded when it is first chosen

        return triton

    def swiglu(gate_up):
        return _implementation(gate_up).swiglu(gate_up)
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib.util
import inspect
import os
from collections.abc import Callable, Iterator
from types import ModuleType

import torch

from newllm_lib.device import probe
from newllm_lib.ops import precompile

_HAS_TRITON = importlib.util.find_spec("triton") is not None
_KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_switched_off = False


class Operation:
    """The implementations of an operation, modules with the same functions, and how one is chosen."""

    def __init__(self, reference: ModuleType):
        self.reference = reference
        self.better: list[tuple[Callable[..., bool], Callable[[], ModuleType]]] = []

    def register(self, takes: Callable[..., bool]):
        """Decorate a function that gives a module: the first whose `takes(*tensors)` is true is chosen."""

        def add(load: Callable[[], ModuleType]) -> Callable[[], ModuleType]:
            self.better.append((takes, load))
            return load

        return add

    def __call__(self, *tensors: torch.Tensor | None) -> ModuleType:
        """The module for these tensors, as the rules want them."""
        for takes, load in self.better:
            if takes(*tensors):
                return load()
        return self.reference

    def named(self, backend: str, *tensors: torch.Tensor | None) -> ModuleType:
        """The implementation of that name, whatever the rules say; "auto": the one that they choose."""
        if backend == "auto":
            return self(*tensors)
        return next(
            (load() for _, load in self.better if load.__name__.lstrip("_") == backend), self.reference
        )


def runs_triton(x: torch.Tensor, *_: object) -> bool:
    """Whether our kernels take this tensor: on CUDA, with triton, in a dtype that float32 can accumulate."""
    return _HAS_TRITON and not _switched_off and x.is_cuda and x.dtype in _KERNEL_DTYPES


def runs_triton_dot(x: torch.Tensor, float32: bool = False) -> bool:
    """Whether kernels that multiply matrices take it: Triton has this GPU's tensor cores (from sm80 on), and
    x is in half precision, or in float32 for kernels that multiply that in three parts.
    """
    return runs_triton(x) and (float32 or x.dtype != torch.float32) and _tensor_core_dot()


def runs_cpu_kernel(x: torch.Tensor, *others: torch.Tensor | None) -> bool:
    """Whether gradients written by hand take it: all of it on the CPU, in the one dtype that it is
    computed in. A compiler fuses what autograd makes by itself."""
    kinds = {(y.device.type, y.dtype) for y in (x, *others) if y is not None}
    exact = kinds <= {("cpu", x.dtype)} and x.dtype in (torch.float32, torch.float64)
    return exact and not torch.compiler.is_compiling()


@contextlib.contextmanager
def kernels(on: bool) -> Iterator[None]:
    """Within it, no Triton kernel of ours runs unless `on`: plain torch (the recipe's `kernels: off`)."""
    global _switched_off
    before, _switched_off = _switched_off, not on
    try:
        yield
    finally:
        _switched_off = before


def autocast_dtype(x: torch.Tensor) -> torch.dtype:
    """The dtype of x's matrix products under autocast, which custom operators do not get by themselves."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def on_device_of_first_argument(function):
    """Run `function(x, ...)` with x's GPU as the current one: Triton launches there, wherever the tensors
    are. What is being compiled ahead is waited for.
    """

    @functools.wraps(function)
    def run(x: torch.Tensor, *args, **kwargs):
        precompile.wait()
        with torch.cuda.device_of(x):
            return function(x, *args, **kwargs)

    run.__signature__ = inspect.signature(function, eval_str=True)  # types, for `torch.library.custom_op`
    return run


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Within it Python collects no cycles, as a recording of a CUDA graph wants it: a Triton kernel that an
    earlier model left behind unloads its module when it is collected, which a recording does not survive
    (triton.testing's `cuda_graph_without_gc`).
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


@functools.cache
def shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that a program may have on this GPU (in Triton's interpreter: an H100's)."""
    if device.type != "cuda":
        return 232_448
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin


def half_dtype() -> torch.dtype:
    """The half precision in which this machine multiplies matrices fast; on a CPU bfloat16."""
    return _half_dtype_of(os.environ.get("NEWLLM_DEVICE"))


@functools.cache
def _half_dtype_of(named: str | None) -> torch.dtype:
    return torch.float16 if probe().dtype == "fp16" else torch.bfloat16


def _tensor_core_dot() -> bool:
    return _tensor_core_dot_of(os.environ.get("NEWLLM_DEVICE"))


# It asks the system, which can't be traced. This is what torch.compiler.assume_constant_result does, but that
# imports all of torch's compiler, a third of what else is imported to chat with a model.
_tensor_core_dot._dynamo_marked_constant = True


@functools.cache
def _tensor_core_dot_of(named: str | None) -> bool:
    """`named`: the device that NEWLLM_DEVICE names, which `probe` reads."""
    return probe().tensor_core_dot
