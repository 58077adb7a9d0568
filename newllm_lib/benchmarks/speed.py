"""Training tokens a second and memory: whole steps of New-LLM and its peers on random tokens, each in a process of its own.

The setting is one for all: blocks, vocabulary, bf16 matrix products on a GPU, fused AdamW, no dropout. Ways to run a step: eager,
compiled by torch, or the compiled step replayed from CUDA graphs.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time

from newllm_lib.benchmarks.rows import Rows
from newllm_lib.console import say

WAYS = (
    "seed_loop:eager", "seed:eager", "gpt2:eager", "gpt2:compiled", "attention:compiled", "lstm:eager", "tiny_gpt2:compiled",
    "new_llm:eager", "new_llm:compiled", "attention:graphs", "tiny_gpt2:graphs", "new_llm:graphs",
)  # fmt: skip
GROUP = 10  # steps between two waits for the GPU: training does not wait for each step either
SETTING = {"batch": 512, "length": 128, "vocabulary": 8192}
_TITLES = {
    "seed_loop": "seed recurrence as a Python loop", "seed": "seed recurrence", "gpt2": "GPT-2 (transformers)",
    "tiny_gpt2": "TinyGPT2", "attention": "modern attention", "lstm": "LSTM (cuDNN)", "new_llm": "New-LLM",
}  # fmt: skip


def run(rows: Rows, ways=WAYS, *, steps: int = 60, **setting) -> None:
    """Measure each way and add its rows; one that fails is said, and the others go on."""
    setting = {**SETTING, **setting}
    for way in ways:
        words = [sys.executable, "-m", "newllm_lib.benchmarks.speed", way, json.dumps({**setting, "steps": steps})]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            say(f"{way}: failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
            continue
        found = json.loads(done.stdout.strip().splitlines()[-1])
        name, how = way.split(":")
        title = f"{_TITLES[name]}, {how}"
        shape = f"{setting['batch']} x {setting['length']}, vocabulary {setting['vocabulary']:,}"
        note = f"{found['parameters']:,} parameters, {shape}"
        rows.add(title, "training step", found["tokens_per_second"], "tokens/s", note)
        if found["gib"] is not None:
            rows.add(title, "peak memory of a training step", found["gib"], "GiB", note)
        rows.add(title, "first training step after the start", found["first_step"], "s", note)
        memory = "" if found["gib"] is None else f", {found['gib']:.2f} GiB"
        say(f"{title:<44} {found['tokens_per_second'] / 1e6:>7.3f} M tokens/s{memory}, first step {found['first_step']:.1f} s")


def measure(name: str, how: str, batch: int, length: int, vocabulary: int, steps: int) -> dict:
    """One way in this process: tokens/s of the median group of steps, the peak memory (GPU), seconds to the first step's end."""
    began = time.monotonic()
    import torch

    torch.set_float32_matmul_precision("high")
    torch.manual_seed(0)
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    model = _model(name, vocabulary, length).to(device)
    modes = {"eager": None, "compiled": {}, "graphs": {"mode": "reduce-overhead"}}
    forward = model.step if modes[how] is None else torch.compile(model.step, dynamic=False, **modes[how])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    tokens = torch.randint(1, vocabulary, (4, batch, length + 1), device=device)
    state = model.initial_state(batch) if model.carries else None
    times, first = [], None
    wait = torch.cuda.synchronize if gpu else lambda: None
    for _ in range(1 + max(1, steps // GROUP)):  # the first warms up
        start = time.monotonic()
        for number in range(GROUP):
            inputs, labels = tokens[number % 4, :, :-1].contiguous(), tokens[number % 4, :, 1:].contiguous()
            with torch.autocast(device.type, torch.bfloat16, enabled=gpu):
                loss, _ = forward(inputs, labels, state)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if first is None:
                wait()
                first = time.monotonic() - began
        wait()
        times.append((time.monotonic() - start) / GROUP)
    return {
        "tokens_per_second": batch * length / statistics.median(times[1:]), "first_step": first,
        "gib": torch.cuda.max_memory_allocated() / 2**30 if gpu else None,
        "parameters": sum(p.numel() for p in model.parameters()),
    }  # fmt: skip


def _model(name: str, vocabulary: int, length: int):
    """About 5M parameters at a vocabulary of 8,192: width 256, 4 layers, as GPT-2 has them."""
    from newllm_lib.benchmarks import peers

    if name == "gpt2":
        return _plain_gpt2(vocabulary, length)
    if name == "lstm":
        return peers.Lstm(vocabulary, 384, 2, 0.0)
    if name == "attention":
        return peers.Attention(vocabulary, 256, 4, 4, 688, 0.0)
    if name in ("seed", "seed_loop"):
        return _seed(vocabulary, as_a_loop=name == "seed_loop")
    model = peers.build(name, "4M", 4096, length, 0.0).model  # the inner sizes of 4M; the embedding grows with the vocabulary
    model.resize_token_embeddings(vocabulary, mean_resizing=False)
    return peers.Ours(model)


def _seed(vocabulary: int, as_a_loop: bool):
    from newllm_lib.benchmarks import peers
    from newllm_lib.layers import sequential_context
    from newllm_lib.models import build_model
    from newllm_lib.ops.sequential_context import reference
    from newllm_lib.recipe import load_recipe

    if as_a_loop:
        sequential_context.sequential_context = reference.sequential_context
    one = {"recurrence": "sequential", "num_layers": 1, "hidden_size": 256, "context_dim": 256, "mlp_size": 1024, "dropout": 0.0}
    return peers.Ours(build_model(load_recipe("demo", {"sized_for": "cpu", "tie_embeddings": False, **one}), vocabulary))


def _plain_gpt2(vocabulary: int, length: int):
    """transformers' GPT-2 with the loss that everyone writes first: all logits, then cross-entropy."""
    import torch.nn.functional as F
    from torch import nn
    from transformers import GPT2Config, GPT2LMHeadModel

    class Plain(nn.Module):
        carries = False

        def __init__(self):
            super().__init__()
            sizes = {"n_positions": length, "n_embd": 256, "n_layer": 4, "n_head": 4, "bos_token_id": None, "eos_token_id": None}
            sizes |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "use_cache": False}
            self.model = GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, attn_implementation="sdpa", **sizes))

        def step(self, ids, labels, state):
            return F.cross_entropy(self.model(ids).logits.flatten(0, 1), labels.flatten()), state

    return Plain()


if __name__ == "__main__":
    print(json.dumps(measure(*sys.argv[1].split(":"), **json.loads(sys.argv[2]))))
