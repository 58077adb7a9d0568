"""How near New-LLM's fused operations come to what the memory bus allows, and how far ahead of plain torch they are.

    python benchmarks/bench_gated_scan.py --out benchmarks/gated_scan.csv

Times forward and forward + backward of the gated scan (with its read-out) and the short convolution on one GPU, replayed
from a CUDA graph over several sets of inputs, so that neither launches nor the cache flatter anyone. The floor is the
time that the bytes of every input, output and gradient, each moved once, take at the bandwidth of a large copy measured
in the same run.
"""

from __future__ import annotations

import argparse
import time
from typing import NamedTuple

import torch
from measuring import append_rows, gpu_ms, machine

from newllm_lib.ops.gated_scan import reference as plain_mixer
from newllm_lib.ops.gated_scan import triton as mixer
from newllm_lib.ops.short_conv import reference as plain_conv
from newllm_lib.ops.short_conv import triton as conv

SIZES = [(512, 128, 256), (32, 1024, 1024), (1, 65536, 256)]  # batch, time, dim; the first is a small model's training
INPUT_SETS = 4


class Case(NamedTuple):
    """One operation at one size: the bytes it must move, how to draw its inputs, and who computes it."""

    name: str
    forward_bytes: int
    backward_bytes: int
    draw: object  # () -> inputs
    implementations: dict  # name -> function of the inputs


def cases(batch: int, steps: int, dim: int, dtype: torch.dtype) -> list[Case]:
    size = batch * steps * dim * dtype.itemsize
    starts = torch.rand(batch, steps, device="cuda") < 0.01

    def normal(*shape, dtype=torch.float32):
        return torch.randn(*shape, device="cuda", dtype=dtype, requires_grad=True)

    def mixer_inputs():
        return normal(batch, steps, 3 * dim, dtype=dtype), normal(dim), normal(dim), normal(batch, dim)

    def conv_inputs():
        return normal(batch, steps, dim, dtype=dtype), normal(dim, 4), normal(batch, 3, dim)

    def mix(module):
        return lambda p, bias, weight, state: module.gated_scan(p, bias, weight, starts, None, state)[0]

    def convolve(module):
        return lambda x, weight, tail: module.short_conv(x, weight, starts, tail)

    mixers, convs = (
        {"triton": make(kernels), "torch": make(plain)}
        for make, kernels, plain in ((mix, mixer, plain_mixer), (convolve, conv, plain_conv))
    )
    return [
        Case("gated_scan", 5 * size, 8 * size, mixer_inputs, mixers),  # p -> y, c; p, c, dy -> dp; p counts three
        Case("short_conv", 2 * size, 3 * size, conv_inputs, convs),  # x -> u; x, du -> dx
    ]


def measure(case: Case, function) -> dict[str, float]:
    """Milliseconds of the first call, of forward and of forward + backward; GiB that a step adds to its inputs."""
    sets = [case.draw() for _ in range(INPUT_SETS)]
    start = time.perf_counter()
    upstream = torch.randn_like(function(*sets[0]))
    torch.autograd.grad(function(*sets[0]), sets[0], upstream)
    torch.cuda.synchronize()
    first = (time.perf_counter() - start) * 1e3
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    torch.autograd.grad(function(*sets[0]), sets[0], upstream)
    peak = (torch.cuda.max_memory_allocated() - before) / 2**30
    with torch.no_grad():
        forward = gpu_ms([lambda inputs=inputs: function(*inputs) for inputs in sets])
    step = gpu_ms([lambda inputs=inputs: torch.autograd.grad(function(*inputs), inputs, upstream) for inputs in sets])
    return dict(first_call_ms=first, forward_ms=forward, step_ms=step, peak_gib=peak)


def copy_bandwidth() -> float:
    """Bytes a second of a large copy on the device, read and written."""
    source = torch.rand(2**29, device="cuda")
    target = torch.empty_like(source)
    copies = [lambda: target.copy_(source)], [lambda: torch.mul(source, 2.0, out=target)]  # by the copy engine, by a kernel
    return 2 * source.numel() * source.itemsize / (min(map(gpu_ms, copies)) * 1e-3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", help="append the rows to this CSV file")
    arguments = parser.parse_args()
    here = machine()
    dtype = torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float16
    speed = copy_bandwidth()
    print(f"{here['gpu']}, torch {here['torch']}, triton {here['triton']}, {dtype}; copy {speed / 1e12:.2f} TB/s")
    columns = ("forward ms", 11), ("step ms", 9), ("floor", 8), ("x", 6), ("GiB", 7)
    print(
        f"{'operation':<14}{'batch x time x dim':<20}{'by':<8}" + "".join(f"{name:>{width}}" for name, width in columns)
    )
    rows = []
    for sizes in SIZES:
        for case in cases(*sizes, dtype):
            floor = (case.forward_bytes + case.backward_bytes) / speed * 1e3
            for name, function in case.implementations.items():
                found = measure(case, function)
                torch.cuda.empty_cache()
                rows.append(
                    dict(
                        operation=case.name, batch=sizes[0], time=sizes[1], dim=sizes[2], dtype=str(dtype)[6:], by=name,
                        **{key: round(value, 4) for key, value in found.items()}, floor_step_ms=round(floor, 4),
                        copy_tb_s=round(speed / 1e12, 3), **here,
                    )
                )  # fmt: skip
                print(
                    f"{case.name:<14}{' x '.join(map(str, sizes)):<20}{name:<8}{found['forward_ms']:>11.3f}"
                    f"{found['step_ms']:>9.3f}{floor:>8.3f}{found['step_ms'] / floor:>6.1f}{found['peak_gib']:>7.2f}",
                    flush=True,
                )
    if arguments.out:
        append_rows(arguments.out, rows)


if __name__ == "__main__":
    main()
