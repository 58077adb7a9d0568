"""The tensor-train head with its cross-entropy against a dense tied head with the fused one: time and memory on one GPU.

    python benchmarks/bench_tensor_train.py [--out benchmarks/tensor_train.csv] [--tokens 16384 --vocabulary 50257 --dim 2048]

Each row is one way to the loss and all its gradients (hidden states and weights), bf16 matrix products: milliseconds, and the
most memory held beyond the inputs. The floor is three matrix products of tokens x vocabulary x dim, at the speed that one large
product reaches in the same run. The last rows are the embedding's look-up with its gradient.
"""

from __future__ import annotations

import argparse
import statistics

import torch
import torch.nn.functional as F
from measuring import append_rows, machine

from newllm_lib.layers.tensor_train import TensorTrainEmbedding
from newllm_lib.ops.cross_entropy import linear_cross_entropy
from newllm_lib.ops.tensor_train import pieces, tensor_train_cross_entropy, tensor_train_rows


def milliseconds(step, repeats: int = 12) -> float:
    """Median of `repeats` calls, each between two events, after three to warm up."""
    times = []
    for _ in range(repeats + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        step()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times[3:])


def peak_gib(step) -> float:
    """GiB that one call holds at most beyond what was held before."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**30


def gradients(loss, *leaves):
    def step():
        torch.autograd.grad(loss(), leaves)

    return step


def cases(tokens: int, vocabulary: int, dim: int, ranks: list[int]) -> dict:
    """Name -> function that computes the loss (or the rows) and the gradients of everything."""
    random = torch.Generator("cuda").manual_seed(0)
    hidden = torch.randn(tokens, dim, device="cuda", generator=random).bfloat16().requires_grad_()
    labels = torch.randint(0, vocabulary, (tokens,), device="cuda", generator=random)
    weight = (0.02 * torch.randn(vocabulary, dim, device="cuda", generator=random)).requires_grad_()
    small = weight.detach().bfloat16().requires_grad_()
    padded = torch.cat([small.detach(), small.detach()[: -vocabulary % 128]]).requires_grad_()  # whole tiles of a product
    aligned = f"dense, fused, bf16 weight, {len(padded):,} words"
    found = {
        aligned: gradients(lambda: linear_cross_entropy(hidden, padded, labels), hidden, padded),
        "dense, fused, fp32 weight": gradients(lambda: linear_cross_entropy(hidden, weight, labels), hidden, weight),
        "dense, fused, bf16 weight": gradients(lambda: linear_cross_entropy(hidden, small, labels), hidden, small),
        "dense, all logits": gradients(lambda: F.cross_entropy(hidden @ small.T, labels), hidden, small),
    }
    for rank in ranks:
        with torch.device("cuda"):
            table = TensorTrainEmbedding(vocabulary, dim, rank)
        for parameter in table.parameters():
            torch.nn.init.normal_(parameter, std=table.core_std(0.02), generator=random)
        leaves = tuple(table.parameters())

        def head(table=table):
            return tensor_train_cross_entropy(hidden, *table.cores(), labels, vocabulary)

        def rows(table=table):
            return tensor_train_rows(labels, *table.cores()).sum()

        found[f"tensor train, rank 2 x {rank}"] = gradients(head, hidden, *leaves)
        found[f"rows, rank 2 x {rank}"] = gradients(rows, *leaves)
    found["rows, dense"] = gradients(lambda: F.embedding(labels, weight).sum(), weight)
    return found


def floor_ms(tokens: int, vocabulary: int, dim: int) -> float:
    """Three products of the head's size, at the speed of one large product."""
    a, b = (torch.randn(8192, 8192, device="cuda").bfloat16() for _ in range(2))
    speed = 2 * 8192**3 / milliseconds(lambda: a @ b)
    return 3 * 2 * tokens * vocabulary * dim / speed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", help="append the rows to this CSV file")
    parser.add_argument("--ranks", type=int, nargs="*", default=[64, 128])
    parser.add_argument("--row-elements", type=int, help="matrix entries formed at a time (default: the library's)")
    for name, value in (("tokens", 16384), ("vocabulary", 50257), ("dim", 2048)):
        parser.add_argument(f"--{name}", type=int, default=value)
    arguments = parser.parse_args()
    sizes = arguments.tokens, arguments.vocabulary, arguments.dim
    if arguments.row_elements:
        pieces.ROW_ELEMENTS = arguments.row_elements
    floor, rows = floor_ms(*sizes), []
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}: {sizes}, floor {floor:.2f} ms", flush=True)
    for name, step in cases(*sizes, arguments.ranks).items():
        try:
            step()
            memory, ms = peak_gib(step), milliseconds(step)
        except torch.OutOfMemoryError:
            memory = ms = float("nan")
        torch.cuda.empty_cache()
        print(f"{name:<42}{ms:>9.2f} ms{memory:>8.3f} GiB", flush=True)
        rows.append(
            {"case": name, "tokens": sizes[0], "vocabulary": sizes[1], "dim": sizes[2], "ms": round(ms, 3),
             "peak_gib": round(memory, 4), "floor_ms": round(floor, 3), **machine()}
        )  # fmt: skip
    if arguments.out:
        append_rows(arguments.out, rows)


if __name__ == "__main__":
    main()
