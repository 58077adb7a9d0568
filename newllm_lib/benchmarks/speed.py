"""Training tokens a second and memory: whole steps of New-LLM and its peers on random tokens, each in a process of its own.

The setting is one for all: blocks, vocabulary, bf16 matrix products on a GPU, fused AdamW, no dropout. Ways to run a step:

    eager       as it is
    compiled    model and loss by torch.compile
    graphs      the same, replayed from CUDA graphs ("reduce-overhead"), the optimizer launched after them: what training does
    replay      loss and gradients as they are in one CUDA graph, nothing compiled but our kernels: what New-LLM's training does
    captured    the whole step in one CUDA graph, the optimizer in it
    trainer     `newllm train` on ChitChat: the training loop with its clipping, schedule and log
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

from newllm_lib.benchmarks.rows import Rows
from newllm_lib.console import say

WAYS = (
    "seed:eager", "gpt2:eager", "gpt2:compiled", "gpt2:graphs", "gpt2:captured", "attention:graphs",
    "attention:captured", "lstm:eager", "tiny_gpt2:graphs", "new_llm:eager", "new_llm:compiled", "new_llm:graphs",
    "new_llm:replay", "new_llm:captured", "new_llm:trainer",
)  # fmt: skip
CPU_WAYS = ("seed_equal:eager", "new_llm:eager")
GROUP = 10  # steps between two waits for the GPU: training does not wait for each step either
SETTING = {"batch": 512, "length": 128, "vocabulary": 8192}
CPU_SETTING = {"batch": 1, "length": 128, "vocabulary": 4096}
_TITLES = {
    "seed": "seed recurrence as a Python loop", "gpt2": "GPT-2 (transformers)",
    "tiny_gpt2": "TinyGPT2", "attention": "modern attention", "lstm": "LSTM (cuDNN)", "new_llm": "New-LLM",
    "seed_equal": "seed recurrence as a Python loop, New-LLM's parameters",
}  # fmt: skip


def run(rows: Rows, ways=WAYS, *, steps: int = 60, jobs: int = 1, **setting) -> None:
    """Measure each way and add its rows; one that fails is said, and the others go on.

    Args:
        jobs: so many processes import and compile at a time, and then are timed one after the other while the rest wait. How
            long a first step takes is recorded only of one that was alone.
    """
    setting = {**SETTING, **setting, "steps": steps}
    for first in range(0, len(ways), jobs):
        together = [_Child(way, setting, alone=jobs == 1) for way in ways[first : first + jobs]]
        for child in together:
            child.ready()
        for child in together:
            found = child.measured()
            if found is None:
                say(f"{child.way}: failed: {child.complaint}")
            else:
                _record(rows, child.way, found, setting, alone=jobs == 1)


def _record(rows: Rows, way: str, found: dict, setting: dict, alone: bool) -> None:
    name, how = way.split(":")
    title = f"{_TITLES[name]}, {how}"
    note = f"{found['parameters']:,} parameters, {setting['batch']} x {setting['length']}, vocabulary {setting['vocabulary']:,}"
    if found["carries"]:
        note += "; the state goes in and out"
    rows.add(title, "training step", found["tokens_per_second"], "tokens/s", note)
    text = f"{title:<44} {found['tokens_per_second'] / 1e6:>7.3f} M tokens/s"
    if found["waited"] is not None:
        rows.add(title, "each training step waited for", found["waited"], "tokens/s", note)
        text += f" ({found['waited'] / 1e6:.3f} when each step is waited for)"
    if found["gib"] is not None:
        rows.add(title, "peak memory of a training step", found["gib"], "GiB", note)
        text += f", {found['gib']:.2f} GiB"
    if found["first_step"] is not None:
        text += f", first step {found['first_step']:.1f} s"
        if alone:
            rows.add(title, "first training step after the start", found["first_step"], "s", note)
        else:
            text += " (beside others)"
    say(text)


class _Child:
    """A process that prepares one way, says that it is ready, and measures when it is told to."""

    def __init__(self, way: str, setting: dict, alone: bool):
        self.way, self.complaint = way, "no message"
        words = [sys.executable, "-m", "newllm_lib.benchmarks.speed", way, json.dumps(setting)]
        self._errors = tempfile.TemporaryFile("w+")
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._errors, "text": True}
        # Beside others, torch compiles in the process itself: each would start as many helpers as there are cores.
        environment = os.environ if alone else {**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": "1"}
        self._process = subprocess.Popen(words, env=environment, **pipes)

    def ready(self) -> None:
        self._line("ready")

    def measured(self) -> dict | None:
        """What came out; None if it failed, and `complaint` is its last line."""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write("go\n")
            self._process.stdin.close()
        line = self._line("{")
        if self._process.wait() or line is None:
            self._errors.seek(0)
            self.complaint = next((text for text in reversed(self._errors.read().splitlines()) if text.strip()), "no message")
            return None
        return json.loads(line)

    def _line(self, begins: str) -> str | None:
        """Its next line that begins so; None if it ends before."""
        return next((line for line in self._process.stdout if line.startswith(begins)), None)


def measure(name: str, how: str, go, *, batch: int, length: int, vocabulary: int, steps: int) -> dict:
    """One way in this process: tokens/s of the median group of steps and of a step that is waited for, the peak memory (GPU), and
    seconds to the first step's end. `go()` returns when the timing may begin.
    """
    began = time.monotonic()
    if how == "trainer":
        return _through_the_trainer(name, go, batch, length, vocabulary, steps)
    import torch

    from newllm_lib.ops import ahead

    ahead.start(compiles=how not in ("eager", "replay"))
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(0)
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    model = _model(name, vocabulary, length).to(device)
    tokens = torch.randint(1, vocabulary, (4, batch, length + 1), device=device)
    ahead.rehearse(model, lambda: _loss(model.step, model, tokens[0, :, :-1].contiguous(), tokens[0, :, 1:].contiguous())[0])
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
        "tokens_per_second": batch * length / statistics.median(grouped), "first_step": first, "carries": model.carries,
        "waited": batch * length / statistics.median(waited) if waited else None,
        "gib": torch.cuda.max_memory_allocated() / 2**30 if gpu else None,
        "parameters": sum(p.numel() for p in model.parameters()),
    }  # fmt: skip


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
    """step(inputs, labels): our model's loss and gradients replayed from a graph, the state with them; then the optimizer."""
    import torch

    from newllm_lib.training.lowmem.graphs import StepGraph

    graph = StepGraph(model.model, torch.device("cuda"), torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    tokens = torch.tensor(batch * length, device="cuda")
    states = [model.initial_state(batch)]

    def step(inputs, labels):
        named = {"input_ids": inputs, "shift_labels": labels, "num_items_in_batch": tokens, "state": states[0]}
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
    """`newllm train` on ChitChat, from its second step on; the median of the rows in its log, the first two left out (one
    of them has waited for the word to begin)."""
    import torch

    from newllm_lib.ops import ahead
    from newllm_lib.recipe import load_recipe
    from newllm_lib.training.model_config import count_parameters, model_config

    ahead.start(compiles=name != "new_llm")
    from newllm_lib.training import log, run

    sizes = {"hidden_size": 256, "context_dim": 256, "num_layers": 4, "mlp_size": 1024, "num_heads": 4, "dropout": 0.0}
    keys = {
        "model": name, "vocab_size": vocabulary, "max_seq_length": length, "batch_size": batch, "optimizer": "adamw",
        "learning_rate": 1e-3, "epochs": 1000, "max_steps": 10 * steps, "logging_steps": max(1, steps // 3), **sizes,
        "sized_for": "h100" if torch.cuda.is_available() else "cpu",
    }  # fmt: skip
    speeds = []

    class Measured(Exception):
        """Enough rows are there."""

    class Timed(log.EpochLines):
        """Told of each row when it is written."""

        def training_line(self, row):
            super().training_line(row)
            if row["step"] == 1:
                go()
            else:
                speeds.append(row["tokens_per_second"])
            if len(speeds) == 6:
                raise Measured

    log.EpochLines = Timed
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere:
        recipe = load_recipe("demo", {**keys, "output_dir": folder})
        with contextlib.redirect_stdout(nowhere), contextlib.suppress(Measured):
            run.train(recipe)
    return {
        "tokens_per_second": statistics.median(speeds[2:]), "first_step": None, "carries": name == "new_llm", "waited": None,
        "gib": torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None,
        "parameters": count_parameters(model_config(recipe, vocabulary)),
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
    if name.startswith("seed"):
        return _seed(name, vocabulary, length)
    model = peers.build(name, "4M", 4096, length, 0.0).model  # the inner sizes of 4M; the embedding grows with the vocabulary
    model.resize_token_embeddings(vocabulary, mean_resizing=False)
    return peers.Ours(model)


def _seed(name: str, vocabulary: int, length: int):
    from newllm_lib.benchmarks import peers
    from newllm_lib.recipe import load_recipe
    from newllm_lib.training.model_config import build_model, count_parameters, model_config

    def recipe(mlp_size):
        one = {"recurrence": "sequential", "num_layers": 1, "hidden_size": 256, "context_dim": 256, "mlp_size": mlp_size}
        return load_recipe("demo", {"sized_for": "cpu", "dropout": 0.0, **one})

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
            sizes = {"n_positions": length, "n_embd": 256, "n_layer": 4, "n_head": 4, "bos_token_id": None, "eos_token_id": None}
            sizes |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "use_cache": False}
            self.model = GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, attn_implementation="sdpa", **sizes))

        def step(self, ids, labels, state):
            return F.cross_entropy(self.model(ids).logits.flatten(0, 1), labels.flatten()), state

    return Plain()


def _wait_for_the_word(out=sys.stdout) -> None:
    print("ready", file=out, flush=True)  # not the redirected one
    sys.stdin.readline()


if __name__ == "__main__":
    print(json.dumps(measure(*sys.argv[1].split(":"), _wait_for_the_word, **json.loads(sys.argv[2]))))
