"""The original recurrence as a Python loop over time and as we run it: training tokens a second, in one run.

    python benchmarks/bench_sequential_context.py --out benchmarks/sequential_context.csv
    python benchmarks/bench_sequential_context.py --device cpu --batch 16

One step is embedding, recurrence, head, cross-entropy, backward and AdamW, under autocast on a GPU, in float32 on a CPU.
The loss is torch's on all logits, and with "our loss" the one that New-LLM trains with.
"""

from __future__ import annotations

import argparse
import time

import torch
from measuring import append_rows, machine
from torch import nn

from newllm_lib.ops.cross_entropy import linear_cross_entropy
from newllm_lib.ops.sequential_context import SequentialWeights, reference, sequential_context


class SeedModel(nn.Module):
    """The original model: embedding, recurrence, head; no dropout."""

    def __init__(self, recurrence, vocab: int, size: int, hidden: int, layers: int):
        super().__init__()
        self.recurrence = recurrence
        self.embedding = nn.Embedding(vocab, size)
        sizes = [2 * size] + [hidden] * layers
        self.mlp = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes[:-1], sizes[1:], strict=True))
        self.gates, self.norm = nn.Linear(hidden, 3 * size), nn.LayerNorm(size)
        self.head = nn.Linear(hidden, vocab, bias=False)

    def forward(self, ids):
        h, _ = self.recurrence(self.embedding(ids), SequentialWeights.of(self.mlp, self.gates, self.norm))
        return h


def plain_loss(h, weight, labels):
    """Mean cross-entropy, from all the logits at once."""
    return nn.functional.cross_entropy(nn.functional.linear(h, weight).flatten(0, 1).float(), labels.flatten())


def tokens_per_second(recurrence, loss, options) -> dict[str, float]:
    """The median step's tokens/s, the first step's seconds and (on a GPU) the peak memory in GiB."""
    device, gpu = torch.device(options.device), options.device == "cuda"
    torch.manual_seed(0)
    model = SeedModel(recurrence, options.vocab, options.context, options.hidden, options.layers).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=gpu)
    ids = torch.randint(0, options.vocab, (options.batch, options.time + 1), device=device)
    dtype = torch.bfloat16 if gpu and torch.cuda.get_device_capability() >= (8, 0) else torch.float16
    if gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(options.steps + 2):
        start = time.perf_counter()
        with torch.autocast("cuda", dtype, enabled=gpu):
            total = loss(model(ids[:, :-1]), model.head.weight, ids[:, 1:])
        total.backward()
        optimizer.step()
        optimizer.zero_grad()
        if gpu:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    median = sorted(times[2:])[options.steps // 2]
    peak = torch.cuda.max_memory_allocated() / 2**30 if gpu else 0.0
    speed = options.batch * options.time / median
    return dict(step_ms=median * 1e3, tokens_per_second=speed, first_step_s=times[0], peak_gib=peak)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    numbers = dict(batch=2048, time=128, layers=1, vocab=1000, context=256, hidden=1024, steps=5)
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--out", help="append the rows to this CSV file")
    options = parser.parse_args()
    here, rows = machine(), []
    for name, recurrence, loss in (
        ("eager loop", reference.sequential_context, plain_loss),
        ("ours", sequential_context, plain_loss),
        ("ours, our loss", sequential_context, linear_cross_entropy),
    ):
        found = tokens_per_second(recurrence, loss, options)
        sizes = {key: getattr(options, key) for key in numbers}
        rows.append(dict(by=name, **sizes, **{key: round(value, 3) for key, value in found.items()}, **here))
        print(
            f"{name:<15}{found['step_ms']:>9.1f} ms a step {found['tokens_per_second'] / 1e6:>8.3f} M tokens/s "
            f"{found['peak_gib']:>6.2f} GiB, first step {found['first_step_s']:.1f} s",
            flush=True,
        )
    ratios = [row["tokens_per_second"] / rows[0]["tokens_per_second"] for row in rows[1:]]
    print(" and ".join(f"{ratio:.1f}" for ratio in ratios) + " times the eager loop")
    if options.out:
        append_rows(options.out, rows)


if __name__ == "__main__":
    main()
