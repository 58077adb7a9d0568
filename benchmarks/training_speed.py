"""Training speed of New-LLM, TinyGPT2 and a plain GPT-2 at about 5M parameters: whole steps of a bare loop, on one GPU.

    python benchmarks/training_speed.py [--out results.csv] [--only new_llm] [--batch 512 --length 128 --vocabulary 8192]

Each row is one model compiled in one way: not at all, block by block, whole, or whole and replayed from CUDA graphs. The
setting is that of the peers: random tokens, bf16 autocast, fused AdamW.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time


def build(name: str, vocabulary: int, length: int):
    """The model, and a function (ids, labels) -> loss."""
    import torch.nn.functional as F

    from newllm_lib.models import build_model
    from newllm_lib.recipe import load_recipe

    if name == "gpt2":
        from transformers import GPT2Config, GPT2LMHeadModel

        sizes = {"n_positions": length, "n_embd": 256, "n_layer": 4, "n_head": 4}
        model = GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, attn_implementation="sdpa", use_cache=False, **sizes))

        def loss(ids, labels):
            return F.cross_entropy(model(ids).logits.flatten(0, 1), labels.flatten())
    else:
        sizes = {"sized_for": "h100", "model": name, "dropout": 0.0, "max_seq_length": length}
        model = build_model(load_recipe("demo", sizes), vocabulary)
        model.config.bos_token_id = 0

        def loss(ids, labels):
            return model(ids, shift_labels=labels, use_cache=False).loss

    return model.cuda(), loss


def compiled(model, loss, how: str):
    import torch

    if how == "blocks":
        for block in model.model.layers if hasattr(model, "model") else model.transformer.h:
            block.compile()
    if how in ("whole", "graphs"):
        return torch.compile(loss, mode="reduce-overhead" if how == "graphs" else None)
    return loss


def measure(name: str, how: str, batch: int, length: int, vocabulary: int, steps: int = 20, warm: int = 6) -> dict:
    import torch

    began = time.monotonic()
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(0)
    model, loss = build(name, vocabulary, length)
    loss = compiled(model, loss, how)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    tokens = torch.randint(1, vocabulary, (4, batch, length + 1), device="cuda")
    times, first = [], None
    torch.cuda.reset_peak_memory_stats()
    for step in range(warm + steps):
        row = tokens[step % 4]
        torch.cuda.synchronize()
        start = time.monotonic()
        with torch.autocast("cuda", torch.bfloat16):
            value = loss(row[:, :-1].contiguous(), row[:, 1:].contiguous())
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        torch.cuda.synchronize()
        times.append(time.monotonic() - start)
        first = first or time.monotonic() - began
    step = statistics.median(times[warm:])
    return {
        "model": name, "compiled": how, "parameters": sum(p.numel() for p in model.parameters()), "batch": batch,
        "length": length, "vocabulary": vocabulary, "step_ms": round(1e3 * step, 3),
        "tokens_per_second": round(batch * length / step), "first_step_s": round(first, 1),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 3), "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out")
    parser.add_argument("--only", nargs="*", default=["new_llm", "tiny_gpt2", "gpt2"])
    parser.add_argument("--how", nargs="*", default=["eager", "blocks", "whole", "graphs"])
    parser.add_argument("--one", help="internal: measure MODEL:HOW in this process")
    for key, value in (("batch", 512), ("length", 128), ("vocabulary", 8192)):
        parser.add_argument(f"--{key}", type=int, default=value)
    arguments = parser.parse_args()
    if arguments.one:
        name, how = arguments.one.split(":")
        print(json.dumps(measure(name, how, arguments.batch, arguments.length, arguments.vocabulary)))
        return
    for name in arguments.only:
        for how in arguments.how:  # a process each: memory and compilation start from nothing
            words = [f"--{key}={getattr(arguments, key)}" for key in ("batch", "length", "vocabulary")]
            done = subprocess.run([sys.executable, __file__, "--one", f"{name}:{how}", *words], capture_output=True, text=True)
            if done.returncode:
                print(name, how, "failed:", done.stderr[-1500:], flush=True)
                continue
            row = json.loads(done.stdout.splitlines()[-1])
            print(json.dumps(row), flush=True)
            if arguments.out:
                import csv
                from pathlib import Path

                new = not Path(arguments.out).exists()
                with open(arguments.out, "a", newline="") as file:
                    writer = csv.DictWriter(file, row)
                    if new:
                        writer.writeheader()
                    writer.writerow(row)


if __name__ == "__main__":
    main()
