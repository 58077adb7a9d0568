"""How fast linear attention's kernels are, beside plain torch and flash-linear-attention's, and how long one waits at first.

    python benchmarks/bench_linear_attention.py --out benchmarks/results.csv [--peers chunked,fla]

Forward and forward + backward of one head layout, bf16, replayed from a CUDA graph. flash-linear-attention (`chunk_simple_gla`:
the same recurrence, without the division by the sum of weights) tunes its kernels at the first call for each new size; the
seconds until the first result are those that a user waits. Everyone gets the inputs in the layout that it wants.
"""

from __future__ import annotations

import argparse
import datetime
import time

import torch
from measuring import append_rows, gpu_ms, machine

from newllm_lib.ops.linear_attention import linear_attention

HEADS, DIM, FEATURES = 8, 64, 64
SIZES = [(64, 256), (4, 4096), (1, 16_384), (1, 65_536)]  # texts, tokens


def inputs(name: str, batch: int, length: int) -> list[torch.Tensor]:
    places = (batch, length, HEADS) if name == "fla" else (batch, HEADS, length)
    q, k = (torch.randn(*places, FEATURES, device="cuda").softmax(-1).bfloat16() for _ in "qk")
    v = torch.randn(*places, DIM, device="cuda").bfloat16()
    log_decay = torch.nn.functional.logsigmoid(torch.randn(*places, device="cuda") + 4)
    return [x.requires_grad_() for x in (q, k, v, log_decay)]


def by_fla(q, k, v, log_decay):
    from fla.ops.simple_gla import chunk_simple_gla

    return chunk_simple_gla(q, k, v, log_decay, scale=1.0)[0]


WAYS = {
    "New-LLM": lambda *x: linear_attention(*x)[0],
    "chunked": lambda *x: linear_attention(*x, backend="chunked")[0],
    "fla": by_fla,
}


def measure(name: str, batch: int, length: int) -> dict[str, float]:
    function, given = WAYS[name], inputs(name, batch, length)
    began = time.monotonic()
    upstream = torch.randn_like(function(*given))
    torch.autograd.grad(function(*given), given, upstream)
    torch.cuda.synchronize()
    first = time.monotonic() - began
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    torch.autograd.grad(function(*given), given, upstream)
    peak = (torch.cuda.max_memory_allocated() - before) / (batch * length) / 1024
    with torch.no_grad():
        forward = gpu_ms([lambda: function(*given)])
    both = gpu_ms([lambda: torch.autograd.grad(function(*given), given, upstream)])
    return {"forward": forward, "forward + backward": both, "seconds to the first result": first, "KiB a token": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", help="append the rows to this CSV file")
    parser.add_argument("--peers", default="chunked,fla", help="which to measure beside ours")
    arguments = parser.parse_args()
    here, today = machine(), datetime.date.today().isoformat()
    versions, rows = f"torch {here['torch'].split('+')[0]}, triton {here['triton']}", []
    for name in ["New-LLM", *arguments.peers.split(",")]:
        for batch, length in SIZES:
            found = measure(name, batch, length)
            print(f"{name:<10}{batch:>4} x {length:<7,}", ", ".join(f"{k} {v:.3f}" for k, v in found.items()), flush=True)
            for metric, value in found.items():
                unit = {"s": "s", "K": "KiB"}.get(metric[0], "ms")
                rows.append(
                    dict(
                        date=today, benchmark="linear attention", model=name, metric=f"{metric}, {batch} x {length:,} tokens",
                        value=round(value, 3), unit=unit, hardware=here["gpu"], versions=versions, commit=here["commit"],
                        command=here["command"], note=f"{HEADS} heads, {FEATURES} features, values of {DIM}, bf16",
                    )
                )  # fmt: skip
            torch.cuda.empty_cache()
        if arguments.out:
            append_rows(arguments.out, rows)
            rows = []


if __name__ == "__main__":
    main()
