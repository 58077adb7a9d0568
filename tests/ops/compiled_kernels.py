"""Compile every kernel for a GPU that need not be there: `python compiled_kernels.py 75`. Prints one line a kernel.

Triton's compiler needs no GPU, only to be told of one. Every launch becomes a compilation, so the results are garbage.
"""

import re
import sys

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver, jit

from newllm_lib.ops.context_scan import launch
from newllm_lib.ops.context_scan import triton as scan
from newllm_lib.ops.gated_scan import triton as gated
from newllm_lib.ops.sequential_context import SequentialWeights, hoisted
from newllm_lib.ops.sequential_context.triton import TritonCell
from newllm_lib.ops.short_conv import triton as conv

CAPABILITY = int(sys.argv[1])


class NoDriver:
    """What the compiler asks a driver."""

    def get_current_target(self):
        return GPUTarget("cuda", CAPABILITY, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device=0):
        return 0

    def get_active_torch_device(self):
        return torch.device("cpu")


def compile_instead(kernel, grid):
    def compile_it(*arguments, **constants):
        compiled = kernel.warmup(*arguments, grid=grid, **constants)
        assert not re.search(r"\b(wg)?mma\b", compiled.asm["ptx"]), f"{kernel.fn.__name__} uses a tensor-core dot"
        print(kernel.fn.__name__, len(compiled.asm["cubin"]))

    return compile_it


def run_everything(dtype, batch=2, time=64, dim=64):
    def normal(*size, dtype=dtype):
        return torch.randn(*size, dtype=dtype, requires_grad=True)

    def float32(*size):
        return normal(*size, dtype=torch.float32)

    starts = torch.zeros(batch, time, dtype=torch.bool)
    for chunks in (1, 4):
        launch.count_chunks = lambda programs, steps, device, chunks=chunks: chunks if steps == time else 1
        c, final = scan.context_scan(normal(batch, time, dim), normal(batch, time, dim), float32(batch, dim))
        (c * 2).sum().backward()
        y, c, final = gated.gated_context(
            normal(batch, time, 3 * dim), float32(dim), float32(dim), starts, starts, float32(batch, dim)
        )
        (y * 2).sum().backward()
    (conv.short_conv(normal(batch, time, dim), float32(dim, 4), starts, float32(batch, 3, dim)) * 2).sum().backward()
    hoisted._cell_type = lambda x: TritonCell
    layers = (normal(32, 2 * dim), normal(32)), (normal(32, 32), normal(32))
    weights = SequentialWeights(layers, (normal(3 * dim, 32), normal(3 * dim)), (float32(dim), float32(dim)))
    h, final = hoisted.sequential_context(normal(batch, 2, dim), weights, None, starts[:, :2], starts[:, :2])
    (h * 2).sum().backward()


driver.set_active(NoDriver())
jit.JITFunction.__getitem__ = compile_instead
run_everything(torch.float16)
if CAPABILITY >= 80:
    run_everything(torch.bfloat16)
