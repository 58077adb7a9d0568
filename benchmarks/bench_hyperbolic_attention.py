"""How fast attention by exact Poincaré distance is, beside what else computes it and beside plain dot-product attention.

    python benchmarks/bench_hyperbolic_attention.py --out benchmarks/results.csv --picture docs/hyperbolic_attention.png

Forward and forward + backward on one GPU, causal, replayed from a CUDA graph over several sets of inputs, so that neither
launches nor the cache flatter anyone. The peers get points inside the ball; ours gets vectors and maps them itself:

- eager: the distance in torch, all scores in memory
- FlexAttention: the distance as its score_mod, compiled by torch
- SDPA: torch's fused attention by dot product, another mathematics: the price of the distance is the gap to it

The limit of the special-function units, three evaluations a score each way at 16 a clock and multiprocessor, stands beside.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import subprocess
from typing import NamedTuple

import torch
import torch.nn.functional as F
from measuring import append_rows, gpu_ms, machine
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from newllm_lib.ops.hyperbolic_attention import hyperbolic_attention

HEADS, INPUT_SETS = 16, 3
TARGETS = [(8, 1024, 128), (2, 4096, 128), (8, 1024, 64)]  # batch, time, head size
LENGTHS = [128, 256, 512, 1024, 2048, 4096, 8192]  # of 8,192 tokens at head size 128, for the crossover
WINDOW, WINDOWED = 128, [4096, 8192, 16384, 32768, 65536]
EAGER_SCORES = 2**28  # more are gigabytes


class Figure(NamedTuple):
    by: str
    batch: int
    time: int
    dim: int
    window: int | None
    forward_ms: float
    step_ms: float
    peak_gib: float


def vectors(batch: int, time: int, dim: int) -> list[torch.Tensor]:
    """q, k of length about 1.5, v, beta and curvature."""
    scales = 1.5 * dim**-0.5, 1.5 * dim**-0.5, 1.0
    drawn = [(torch.randn(batch, HEADS, time, dim, device="cuda") * scale).bfloat16() for scale in scales]
    return [x.requires_grad_() for x in (*drawn, *torch.ones(2, HEADS, device="cuda"))]


def points(batch: int, time: int, dim: int) -> list[torch.Tensor]:
    """The same as points of the unit ball of curvature -1."""
    q, k, v, _, _ = vectors(batch, time, dim)
    inside = [F.normalize(x.detach(), dim=-1) * torch.tanh(x.detach().norm(dim=-1, keepdim=True)) for x in (q, k)]
    return [*(x.requires_grad_() for x in inside), v]


def by_eager(x: torch.Tensor, y: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    row, column = (z.float().square().sum(-1) for z in (x, y))
    apart = row[..., :, None] + column[..., None, :] - 2 * (x @ y.mT).float()
    argument = 1 + 2 * apart.clamp_min(1e-6) / ((1 - row)[..., :, None] * (1 - column)[..., None, :])
    hidden = torch.ones(x.shape[2], y.shape[2], dtype=torch.bool, device=x.device).triu(1)
    return torch.acosh(argument).neg().masked_fill(hidden, float("-inf")).softmax(-1).to(v.dtype) @ v


def by_flex(window: int | None, time: int):
    """FlexAttention with the distance as score_mod, compiled for this length."""

    def visible(batch, head, query, key):
        return (query >= key) if window is None else (query >= key) & (query - key < window)

    mask = create_block_mask(visible, None, None, time, time, device="cuda", _compile=time > 8192)

    @torch.compile(dynamic=False)
    def attend(x, y, v):
        row, column = (z.float().square().sum(-1) for z in (x, y))

        def distance(product, batch, head, query, key):
            a, b = row[batch, head, query], column[batch, head, key]
            more = 2 * torch.clamp_min(a + b - 2 * product, 1e-6) / ((1 - a) * (1 - b))
            return -torch.log1p(more + torch.sqrt(more * (more + 2)))

        return flex_attention(x, y, v, score_mod=distance, block_mask=mask, scale=1.0)

    return attend


def by_sdpa(x: torch.Tensor, y: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(x, y, v, is_causal=True)


def measure(by: str, function, draw, batch: int, time: int, dim: int, window: int | None) -> Figure:
    sets = [draw(batch, time, dim) for _ in range(INPUT_SETS)]
    upstream = torch.randn_like(function(*sets[0]))
    torch.autograd.grad(function(*sets[0]), sets[0], upstream)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    torch.autograd.grad(function(*sets[0]), sets[0], upstream)
    peak = (torch.cuda.max_memory_allocated() - before) / 2**30
    with torch.no_grad():
        forward = gpu_ms([lambda inputs=inputs: function(*inputs) for inputs in sets])
    step = gpu_ms([lambda inputs=inputs: torch.autograd.grad(function(*inputs), inputs, upstream) for inputs in sets])
    return Figure(by, batch, time, dim, window, forward, step, peak)


@functools.cache
def clock_hz() -> float:
    query = ["nvidia-smi", "--query-gpu=clocks.max.sm", "--format=csv,noheader,nounits"]
    return float(subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]) * 1e6


def special_function_ms(figure: Figure) -> float:
    """Forward + backward if the special-function units were all: the backward pass makes every score twice."""
    seen = figure.window or figure.time
    scores = figure.batch * HEADS * (figure.time * seen - seen * (seen - 1) / 2)
    per_second = 16 * torch.cuda.get_device_properties(0).multi_processor_count * clock_hz()
    return 3 * 3 * scores / per_second * 1e3


def run(peers: set[str], batch: int, time: int, dim: int, window: int | None = None) -> list[Figure]:
    size = batch, time, dim, window
    found = [measure("New-LLM", lambda *x: hyperbolic_attention(*x, window=window), vectors, *size)]
    if "flex" in peers:
        found.append(measure("FlexAttention", by_flex(window, time), points, *size))
    if "sdpa" in peers and window is None:
        found.append(measure("SDPA (dot product)", by_sdpa, points, *size))
    if "eager" in peers and window is None and batch * HEADS * time**2 <= EAGER_SCORES:
        found.append(measure("eager torch", by_eager, points, *size))
    for figure in found:
        limit = f"{special_function_ms(figure):10.3f}" if figure.by == "New-LLM" else " " * 10
        print(
            f"{figure.by:<20}{f'{batch} x {HEADS} x {time} x {dim}':<24}{window or 'full':>6}{figure.forward_ms:>11.3f}"
            f"{figure.step_ms:>10.3f}{limit}{figure.peak_gib:>8.2f}",
            flush=True,
        )
    torch.cuda.empty_cache()
    return found


def results(figures: list[Figure]) -> list[dict]:
    """Rows of benchmarks/results.csv."""
    here, today = machine(), datetime.date.today().isoformat()
    versions = f"torch {here['torch'].split('+')[0]}, triton {here['triton']}"
    rows = []
    for figure in figures:
        size = f"{figure.batch} x {HEADS} x {figure.time:,} x {figure.dim}"
        reach = f"window {figure.window}" if figure.window else "causal"
        for metric, value, unit in (
            ("forward", figure.forward_ms, "ms"), ("forward + backward", figure.step_ms, "ms"),
            ("peak memory beyond the inputs", figure.peak_gib, "GiB"),
        ):  # fmt: skip
            rows.append(
                dict(
                    date=today, benchmark="hyperbolic attention", model=figure.by, metric=f"{metric}, {size}, {reach}",
                    value=round(value, 3), unit=unit, hardware=here["gpu"], versions=versions, commit=here["commit"],
                    command=here["command"], note="batch x heads x time x head size, bf16, exact Poincaré distance",
                )
            )  # fmt: skip
    return rows


def draw(figures: list[Figure], gpu: str, path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    picture, (full, windowed) = pyplot.subplots(1, 2, figsize=(10, 4))
    for axis, keep, title in (
        (full, lambda f: f.window is None and f.batch * f.time == 8192 and f.dim == 128, "causal, 8,192 tokens"),
        (windowed, lambda f: f.window is not None, f"window {WINDOW}, one sequence"),
    ):
        kept = [f for f in figures if keep(f)]
        for by in dict.fromkeys(f.by for f in kept):
            line = sorted({f.time: f.step_ms for f in kept if f.by == by}.items())
            axis.plot(*zip(*line, strict=True), marker="o", label=by)
        axis.set(title=f"{title}, {HEADS} heads of 128", xlabel="positions", ylabel="forward + backward, ms")
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.grid(alpha=0.3)
        axis.legend(loc="lower right")
    first = min((f for f in figures if f.window), key=lambda f: f.time, default=None)
    if first:
        times = sorted(f.time for f in figures if f.window)
        windowed.plot(times, [first.step_ms * t / first.time for t in times], "k:", label="linear")
        windowed.legend(loc="lower right")
    picture.suptitle(f"Attention by exact Poincaré distance, {gpu}, bf16")
    picture.tight_layout()
    picture.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", help="append the rows to this CSV file")
    parser.add_argument("--picture", help="draw the times over the length into this file")
    parser.add_argument("--peers", default="flex,sdpa,eager", help="which to measure beside ours (compiling flex takes long)")
    parser.add_argument("--flex-lengths", default="256,1024,4096", help="lengths at which FlexAttention is measured")
    arguments = parser.parse_args()
    peers, flex = set(arguments.peers.split(",")), {int(x) for x in arguments.flex_lengths.split(",")}
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, bf16; columns: by, batch x heads x time x head size,")
    print("window, forward ms, forward + backward ms, the special-function units' limit of it, GiB beyond the inputs")
    sizes = [*((*size, None) for size in TARGETS), *((8192 // time, time, 128, None) for time in LENGTHS)]
    sizes += [(1, time, 128, WINDOW) for time in WINDOWED]
    figures = []
    for batch, time, dim, window in dict.fromkeys(sizes):
        compiled = {"flex"} if time in flex and dim == 128 else set()
        found = run(set() if window else peers - {"flex"} | peers & compiled, batch, time, dim, window)
        figures += found
        if arguments.out:  # at once: what is cut off keeps what it has
            append_rows(arguments.out, results(found))
    if arguments.picture:
        draw(figures, torch.cuda.get_device_name(), arguments.picture)


if __name__ == "__main__":
    main()
