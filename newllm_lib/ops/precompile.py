"""Triton's kernels compiled side by side, before a first step needs them.

Left alone, each kernel is compiled when it is first launched: a dozen of them one after the other, which is
most of the time until the first step. Here the step is traced once, with every launch replaced by a
compilation in a thread (most of which is spent in MLIR, LLVM and ptxas, where Python's lock is free), while
torch goes on to compile the model.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait as wait_for_futures

import torch
from torch import nn

_THREADS = 6  # more would only wait for Python's lock, and take it from torch's own compiling
# a model's first block has no branch to add, its second has: the others launch what the second does
_LAYERS = 2
# what Triton's compiler for NVIDIA's GPUs calls of LLVM
_OF_LLVM = ("init_targets", "to_module", "attach_datalayout", "link_extern_libs", "optimize_module")
_OF_LLVM += ("translate_to_asm",)
_jobs: list[Future] = []
_rehearsing = False
_elsewhere: Future | None = None  # whether a process that compiles for this one has failed
_process: subprocess.Popen[str] | None = None
TRAINING_IS_THERE = "training"  # the line that such a process says when it goes on with other kernels


def start(compiles: bool) -> None:
    """Where there is a GPU, start what takes seconds and needs nothing of ours, while imports go on: the GPU
    itself, and where torch `compiles` the processes in which it does (until they are up, torch.compile works
    without them).
    """
    if not torch.cuda.is_available() or importlib.util.find_spec("triton") is None:
        return
    if torch.cuda.device_count() == 1:
        threading.Thread(target=_first_touch, daemon=True).start()
    if compiles:
        # a torch that names it otherwise starts them late, as always
        with contextlib.suppress(ImportError, AttributeError):
            from torch._inductor.async_compile import AsyncCompile

            AsyncCompile.use_process_pool()


def _first_touch() -> None:
    with contextlib.suppress(RuntimeError):  # whoever needs the GPU meets the same, and says it
        matrix = torch.zeros(16, 16, device="cuda", dtype=torch.bfloat16)
        matrix @ matrix  # its libraries for matrix products are large files


def wait_for_process(process: subprocess.Popen) -> None:
    """Another process compiles the kernels into Triton's cache: `wait` waits for those of a training step,
    `wait_for_all` for all; nothing is traced.

    Args:
        process: says `TRAINING_IS_THERE` when it is so far, or ends.
    """
    global _elsewhere, _process
    pool, _process = ThreadPoolExecutor(1, thread_name_prefix="kernels elsewhere"), process
    _elsewhere = pool.submit(_has_failed, process)
    _jobs.append(_elsewhere)
    pool.shutdown(wait=False)


def _has_failed(process: subprocess.Popen[str]) -> bool:
    return all(line.strip() != TRAINING_IS_THERE for line in process.stdout or ()) and process.wait() != 0


def wait_for_all() -> None:
    """Wait for the other process, if there is one: what it still compiles would be compiled twice."""
    if _process is not None:
        _process.wait()


def trace_and_compile(model: nn.Module, step: Callable[[], torch.Tensor | None]) -> None:
    """Begin to compile the kernels that a step of `model` launches.

    Args:
        model: on the GPU that it will be trained on, not compiled yet. Only its first blocks are gone
            through.
        step: runs `model` forward on a batch as training will, and returns the loss (None: there is nothing
            to go back through); its numbers are garbage, since no kernel runs, and leave nothing behind.
    """
    if not next(model.parameters()).is_cuda or importlib.util.find_spec("triton") is None:
        return
    if _elsewhere is not None and not (_elsewhere.done() and _elsewhere.result()):  # unless it has failed
        return
    try:
        with (
            _launches_become_compilations(),
            _first_blocks(model),
            torch.random.fork_rng(devices=[torch.cuda.current_device()]),
        ):
            loss = step()
            if loss is not None:
                loss.backward()
    except torch.OutOfMemoryError:
        # the step itself will report it, or retry with a smaller batch, which compiles its own
        pass
    finally:
        model.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()


def wait() -> None:
    """Wait until all is compiled; a kernel that could not be complains when it is launched."""
    if _jobs and not _rehearsing:
        wait_for_futures(_jobs)
        _jobs.clear()


@contextlib.contextmanager
def _launches_become_compilations() -> Iterator[None]:
    from triton.runtime.jit import JITFunction

    global _rehearsing
    _llvm_one_at_a_time()
    launch, known = JITFunction.__getitem__, set()
    pool = ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1), thread_name_prefix="kernel")

    def compile_instead(kernel, grid):
        def submit(*arguments, **constants):
            key = kernel, tuple(map(_kind, arguments)), tuple(sorted(constants.items()))
            if key not in known:
                known.add(key)
                _jobs.append(pool.submit(_compile, kernel, arguments, constants, grid))

        return submit

    def launch_when_compiled(kernel, grid):
        wait()
        JITFunction.__getitem__ = launch
        return launch(kernel, grid)

    JITFunction.__getitem__, _rehearsing = compile_instead, True
    try:
        yield
    finally:
        # Compiled by a launch and by a thread at once, a kernel's second module would take the first one's
        # place, which Triton unloads (from 3.8 on), whatever graph has recorded it.
        JITFunction.__getitem__, _rehearsing = launch_when_compiled, False
        pool.shutdown(wait=False)


@functools.cache
def _llvm_one_at_a_time() -> None:
    """Let no two threads be in LLVM at once: Triton before 3.9 sets LLVM's options, which are the process's,
    without a lock, and a thread that optimizes beside others has been seen to end in a segmentation fault.
    What comes before LLVM, and ptxas after it, still goes on side by side.
    """
    with contextlib.suppress(ImportError):  # a Triton for other GPUs alone
        from triton.backends.nvidia import compiler

        if hasattr(compiler, "get_llvm_flags"):  # from 3.9 on: it sees to it itself
            return
        lock = threading.Lock()
        for name in _OF_LLVM:
            setattr(compiler.llvm, name, _locked(lock, getattr(compiler.llvm, name)))


def _locked(lock: threading.Lock, function: Callable) -> Callable:
    def one_at_a_time(*arguments, **more):
        with lock:
            return function(*arguments, **more)

    return one_at_a_time


def _compile(kernel, arguments: tuple, constants: dict, grid) -> None:
    """Compile a kernel and load it, with what launches it, which takes another compiler."""
    kernel.warmup(*arguments, grid=grid, **constants).run  # noqa: B018 (a property)


def _kind(value):
    """What Triton specialises on: a tensor's type and alignment, whether an integer is 1 or divides by 16."""
    if isinstance(value, torch.Tensor):
        return value.dtype, value.data_ptr() % 16 == 0
    if isinstance(value, int) and not isinstance(value, bool):
        return value if abs(value) < 16 else (value % 16 == 0, value.bit_length() > 31)
    return value


@contextlib.contextmanager
def _first_blocks(model: nn.Module) -> Iterator[None]:
    """Within it, the model's list of blocks ends after a few."""
    lists = [
        (m, name, part)
        for m in model.modules()
        for name, part in m.named_children()
        if isinstance(part, nn.ModuleList)
    ]
    if not lists:
        yield
        return
    parent, name, blocks = max(lists, key=lambda found: sum(p.numel() for p in found[2].parameters()))
    setattr(parent, name, blocks[:_LAYERS])
    try:
        yield
    finally:
        setattr(parent, name, blocks)
