"""One way to run a training step, measured in this process: what `speed` starts processes for."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import replace

from benchmarks import common, nanogpt
from newllm_lib.errors import NewLLMError

SIZED = ("new_llm", "tiny_gpt2", "attention", "nanogpt")  # what there is of other sizes than 4M
GROUP = 10  # steps between two waits for the GPU: training does not wait for each step either


def measure(
    name: str,
    how: str,
    go,
    *,
    batch: int,
    length: int,
    vocabulary: int,
    steps: int,
    size: str = "4M",
    clone: str | None = None,
) -> dict:
    """One way in this process: tokens/s of the median group of steps and of a step that is waited for, the
    peak memory (GPU), and seconds to the first step's end. `go()` returns when the timing may begin.

    Args:
        size: of `peers.SIZES`.
        clone: the folder of nanoGPT, where that is measured.
    """
    began = time.monotonic()
    if how == "trainer":
        return _through_the_trainer(name, go, batch, length, vocabulary, steps)
    import torch

    from newllm_lib.ops import precompile

    precompile.start(compiles=how not in ("eager", "replay"))
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(0)
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    model = _model(name, vocabulary, length, size, clone).to(device)
    tokens = torch.randint(1, vocabulary, (4, batch, length + 1), device=device)
    precompile.trace_and_compile(
        model,
        lambda: _loss(model.step, model, tokens[0, :, :-1].contiguous(), tokens[0, :, 1:].contiguous())[0],
    )
    ways = {"captured": _captured, "replay": _replayed}
    step = ways[how](model, batch, length) if how in ways else _launched(model, how, batch)
    batches = [(part[:, :-1].contiguous(), part[:, 1:].contiguous()) for part in tokens]
    wait = torch.cuda.synchronize if gpu else lambda: None
    step(*batches[0])
    wait()
    first = time.monotonic() - began
    for number in range(GROUP if gpu else 1):
        step(*batches[number % 4])
    wait()
    go()
    grouped, waited = [], []
    size = GROUP if gpu else 1
    for _ in range(max(3, steps // size)):
        start = time.monotonic()
        for number in range(size):
            step(*batches[number % 4])
        wait()
        grouped.append((time.monotonic() - start) / size)
    for number in range(max(10, steps // 3) if gpu else 0):
        start = time.monotonic()
        step(*batches[number % 4])
        wait()
        waited.append(time.monotonic() - start)
    return {
        "tokens_per_second": batch * length / statistics.median(grouped),
        "first_step": first,
        "carries": model.carries,
        "waited": batch * length / statistics.median(waited) if waited else None,
        "gib": torch.cuda.max_memory_allocated() / 2**30 if gpu else None,
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def _loss(forward, model, inputs, labels, state=None):
    """Loss and new state as a training step computes them; `state` None: the one before the first token."""
    import torch

    if state is None and model.carries:
        state = model.initial_state(len(inputs))
    with torch.autocast(inputs.device.type, torch.bfloat16, enabled=inputs.is_cuda):
        return forward(inputs, labels, state)


def _launched(model, how: str, batch: int):
    """step(inputs, labels): forward and backward in one of the ways, then the optimizer."""
    import torch

    modes = {"eager": None, "compiled": {}, "graphs": {"mode": "reduce-overhead"}}
    forward = model.step if modes[how] is None else torch.compile(model.step, dynamic=False, **modes[how])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    state = model.initial_state(batch) if model.carries else None

    def step(inputs, labels):
        loss, _ = _loss(forward, model, inputs, labels, state)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _replayed(model, batch: int, length: int):
    """step(inputs, labels): our loss, gradients and state replayed from a graph; then the optimizer."""
    import torch

    from newllm_lib.training.cuda_graphs import StepGraph

    graph = StepGraph(model.model, torch.device("cuda"), torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    tokens = torch.tensor(batch * length, device="cuda")
    states = [model.initial_state(batch)]

    def step(inputs, labels):
        named = {
            "input_ids": inputs,
            "shift_labels": labels,
            "num_items_in_batch": tokens,
            "state": states[0],
        }
        states[0] = graph(named, use_cache=True)[1]
        optimizer.step()
        optimizer.zero_grad()

    return step


def _captured(model, batch: int, length: int):
    """step(inputs, labels): all of it in one CUDA graph, captured after three steps as they are."""
    import torch

    forward = torch.compile(model.step, dynamic=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True, capturable=True)
    inputs, labels = torch.zeros(2, batch, length, dtype=torch.long, device="cuda")
    state = model.initial_state(batch) if model.carries else None

    def body():
        loss, after = _loss(forward, model, inputs, labels, state)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if state is not None:
            state.copy_(after.detach())

    stream, graph = torch.cuda.Stream(), []
    stream.wait_stream(torch.cuda.current_stream())
    calls = [0]

    def step(new_inputs, new_labels):
        inputs.copy_(new_inputs)
        labels.copy_(new_labels)
        calls[0] += 1
        if calls[0] <= 3:
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                body()
            torch.cuda.current_stream().wait_stream(stream)
            return
        if not graph:
            graph.append(torch.cuda.CUDAGraph())
            with torch.cuda.graph(graph[0]):
                body()
        graph[0].replay()

    return step


def _through_the_trainer(name: str, go, batch: int, length: int, vocabulary: int, steps: int) -> dict:
    """`newllm train` on ChitChat: the median of its log's rows, all but the first two, in which it compiles
    and warms up. It is timed where it stands, so it prepares when its turn comes. Ends the process."""
    import torch

    from newllm_lib.recipe import load_recipe
    from newllm_lib.training.model_config import count_parameters, model_config

    go()
    sizes = {"hidden_size": 256, "context_dim": 256, "num_layers": 4, "mlp_size": 1024, "num_heads": 4}
    folder = tempfile.mkdtemp()
    keys = {
        "model": name,
        "vocab_size": vocabulary,
        "max_seq_length": length,
        "batch_size": batch,
        "optimizer": "adamw",
        "learning_rate": 1e-3,
        "dropout": 0.0,
        "epochs": 1000,
        "max_steps": 10 * steps,
        "logging_steps": max(1, steps // 3),
        "sized_for": "h100" if torch.cuda.is_available() else "cpu",
        "output_dir": folder,
        **sizes,
    }
    recipe = load_recipe("demo", keys)

    def report(rows: list[dict]) -> None:
        gpu = torch.cuda.is_available()
        found = {
            "tokens_per_second": statistics.median(row["tokens_per_second"] for row in rows[2:]),
            "first_step": None,
            "carries": recipe.carry_state,
            "waited": None,
            "gib": torch.cuda.max_memory_allocated() / 2**30 if gpu else None,
            "parameters": count_parameters(model_config(recipe, vocabulary)),
        }
        shutil.rmtree(folder, ignore_errors=True)
        print(json.dumps(found), file=out, flush=True)

    out = sys.stdout
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        common.train_until(recipe, 6, report)
    raise NewLLMError("The training ended before its log had enough rows.")


def _model(name: str, vocabulary: int, length: int, size: str = "4M", clone: str | None = None):
    """At 4M about 5M parameters at a vocabulary of 8,192: width 256, 4 layers, as GPT-2 has them."""
    from benchmarks import peers
    from newllm_lib.training.model_config import build_model

    if name == "nanogpt":
        return nanogpt.load(clone, peers.SIZES[size], vocabulary, length)
    if size != "4M":
        if name == "attention":
            return peers.build_peer(name, size, vocabulary, 0.0)
        recipe = peers.sized_recipe(name, size, vocabulary, max_seq_length=length, dropout=0.0)
        return peers.Ours(build_model(recipe, vocabulary))
    if name == "gpt2":
        return _plain_gpt2(vocabulary, length)
    if name == "lstm":
        return peers.Lstm(vocabulary, 384, 2, 0.0)
    if name == "attention":
        return peers.Attention(vocabulary, 256, 4, 4, 688, 0.0)
    if name.startswith("seed"):
        return _seed(name, vocabulary, length)
    # the inner sizes of 4M; the embedding grows with the vocabulary
    recipe = replace(
        peers.sized_recipe(name, "4M", 4096, max_seq_length=length, dropout=0.0), vocab_size=vocabulary
    )
    return peers.Ours(build_model(recipe, vocabulary))


def _seed(name: str, vocabulary: int, length: int):
    """The original's sequential recurrence: one layer of 1,024, or as many parameters as New-LLM here."""
    from benchmarks import peers
    from newllm_lib.recipe import load_recipe
    from newllm_lib.training.model_config import build_model, count_parameters, model_config

    def recipe(mlp_size: int):
        one = {"recurrence": "sequential", "num_layers": 1, "hidden_size": 256, "context_dim": 256}
        one |= {"sized_for": "cpu", "dropout": 0.0, "mlp_size": mlp_size}
        return load_recipe("demo", one)

    size = 1024
    if name.endswith("equal"):
        wanted = sum(p.numel() for p in _model("new_llm", vocabulary, length).parameters())
        few, many = (count_parameters(model_config(recipe(n), vocabulary)) for n in (256, 512))
        size = 256 + round((wanted - few) * 256 / (many - few))
    return peers.Ours(build_model(recipe(size), vocabulary))


def _plain_gpt2(vocabulary: int, length: int):
    """transformers' GPT-2 with the loss that everyone writes first: all logits, then cross-entropy."""
    import torch.nn.functional as F
    from torch import nn
    from transformers import GPT2Config, GPT2LMHeadModel

    class Plain(nn.Module):
        carries = False

        def __init__(self):
            super().__init__()
            sizes = {
                "n_positions": length,
                "n_embd": 256,
                "n_layer": 4,
                "n_head": 4,
                "bos_token_id": None,
                "eos_token_id": None,
            }
            sizes |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "use_cache": False}
            self.model = GPT2LMHeadModel(
                GPT2Config(vocab_size=vocabulary, attn_implementation="sdpa", **sizes)
            )

        def step(self, ids, labels, state):
            return F.cross_entropy(self.model(ids).logits.flatten(0, 1), labels.flatten()), state

    return Plain()
