"""Full-parameter training of 1.4 to 1.5 billion parameters, 16 sequences of 1,024 tokens a step: memory, speed, MFU; ours and
peers.

    newllm bench phase7 [--ways lowest speed bnb] [--limit 8] [--steps 6]
    python -m newllm_lib.benchmarks.train_1p5b --model llama --rows "lowest;speed;bnb"

Each row is a process of its own: whole steps (forward, backward, optimizer) on random tokens, the median of the later ones. MFU
counts 6 floating-point operations a parameter and token against 800 TFLOP/s, whatever is computed twice. `--limit` refuses the
process more GPU memory than that many GiB. The rows of peers need bitsandbytes, torchao and liger-kernel.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from newllm_lib.console import say
from newllm_lib.errors import NewLLMError

LENGTH, BATCH, VOCABULARY = 1024, 16, 50304
PEAK = 800e12  # a matrix product in bfloat16 on an H100

# optimizer, bits of momentum, sequences at a time in a block (None: all), inputs on the host, checkpointing, compiled blocks
OURS = {
    "lowest": dict(optimizer="adafactor", bits=4, sequences=4, offload=True),
    "lowest, 2 at a time": dict(optimizer="adafactor", bits=4, sequences=2, offload=True),
    "no momentum": dict(optimizer="adafactor", bits=0, sequences=4, offload=True),
    "8-bit momentum": dict(optimizer="adafactor", bits=8, sequences=4, offload=True),
    "8 at a time": dict(optimizer="adafactor", bits=4, sequences=8, offload=True),
    "on the device": dict(optimizer="adafactor", bits=4, sequences=8, offload=False),
    "lowest, eager": dict(optimizer="adafactor", bits=4, sequences=4, offload=True, compiled=False),
    "speed": dict(optimizer="adafactor", bits=8, micro=4, in_backward=False),
    "speed, 8 at a time": dict(optimizer="adafactor", bits=8, micro=8, in_backward=False),
}
PEERS = {
    "bnb": "bf16, bitsandbytes AdamW8bit in the backward pass, checkpointing, Liger's loss, 16 at a time",
    "torchao": "bf16, torchao AdamW4bit with stochastic rounding, checkpointing, Liger's loss, 4 at a time",
}


def llama(layers: int | None = None):
    """The peers' model: 1.42 billion parameters in Llama's shape (or another depth)."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = dict(hidden_size=2048, intermediate_size=5504, num_hidden_layers=24, num_attention_heads=16, num_key_value_heads=16)
    sizes |= dict(num_hidden_layers=layers) if layers else {}
    sizes |= dict(vocab_size=VOCABULARY, max_position_embeddings=LENGTH, tie_word_embeddings=False)
    config = LlamaConfig(use_cache=False, **sizes)
    config._attn_implementation = "sdpa"
    return LlamaForCausalLM(config)


def phase7(layers: int | None = None):
    """Phase 7's recipe of 1.51 billion parameters (or another depth)."""
    import torch

    from newllm_lib.models import build_model
    from newllm_lib.recipe import load_recipe

    keys = {"num_layers": layers} if layers else {}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return build_model(load_recipe("phase7_1.5b", {"sized_for": "h100", **keys}), VOCABULARY, device=device)


def loss_of(model, ids):
    """Mean cross-entropy of ids (sequences, LENGTH + 1), each token predicted from those before it."""
    from newllm_lib.ops.cross_entropy import linear_cross_entropy

    if not hasattr(model.model, "rotary_emb"):  # not the Llama, whose own loss would hold all logits
        return model(ids[:, :-1].contiguous(), shift_labels=ids[:, 1:].contiguous(), use_cache=False).loss
    hidden = model.model(ids[:, :-1], use_cache=False).last_hidden_state
    return linear_cross_entropy(hidden, model.lm_head.weight, ids[:, 1:])


def ours(device, build, optimizer: str, bits: int, sequences=None, offload=False, micro=None, in_backward=True, compiled=True):
    """(model, one step on (batch, LENGTH + 1) ids)."""
    import torch

    from newllm_lib.training.lowmem.adafactor import RoundedAdafactor
    from newllm_lib.training.lowmem.blocks import checkpoint_blocks, find_blocks
    from newllm_lib.training.lowmem.in_backward import StepInBackward
    from newllm_lib.training.lowmem.weights import build_light

    model = build_light(build, device).train()
    groups = [{"params": [p for p in model.parameters() if (p.ndim < 2) == thin], "weight_decay": 0.0 if thin else 0.1}
              for thin in (False, True)]  # fmt: skip
    stepper = {"adafactor": RoundedAdafactor}[optimizer](groups, lr=1e-4, momentum_bits=bits)
    passes = None
    if micro is None:
        passes = checkpoint_blocks(model, sequences, offload, compiled)
    elif compiled:
        for block in find_blocks(model):
            block.forward = torch.compile(block.forward, dynamic=False)
    inside = StepInBackward(model, stepper, 1.0, passes) if in_backward else None
    micro = micro or BATCH

    def step(ids):
        total = 0.0
        for part in ids.split(micro):
            with torch.autocast(device.type, torch.bfloat16):
                loss = loss_of(model, part) * (len(part) / len(ids))
            loss.backward()
            total += loss.detach()
        if inside is None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            stepper.step()
            model.zero_grad()
        else:
            inside.finish()
        return total

    return model, step


def peer(device, name: str):
    import torch
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    with torch.device(device):
        torch.set_default_dtype(torch.bfloat16)
        model = llama()
        torch.set_default_dtype(torch.float32)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    head = LigerFusedLinearCrossEntropyLoss()
    if name == "bnb":
        import bitsandbytes

        micro, optimizers = BATCH, {p: bitsandbytes.optim.AdamW8bit([p], lr=1e-4) for p in model.parameters()}

        def at_once(p):
            optimizers[p].step()
            optimizers[p].zero_grad()

        for p in model.parameters():
            p.register_post_accumulate_grad_hook(at_once)
        optimizer = None
    else:
        from torchao.optim import AdamW4bit

        micro, optimizer = 4, AdamW4bit(model.parameters(), lr=1e-4, bf16_stochastic_round=True)

    def step(ids):
        for part in ids.split(micro):
            hidden = model.model(part[:, :-1]).last_hidden_state
            loss = head(model.lm_head.weight, hidden.reshape(-1, hidden.shape[-1]), part[:, 1:].reshape(-1)) * micro / len(ids)
            loss.backward()
        if optimizer:
            optimizer.step()
            optimizer.zero_grad()
        return loss.detach()

    return model, step


def take_turns(folder: Path, row: str, others: int):
    """Wait until all have warmed up, then for the turn: timings are taken one process after the other. Returns the lock."""
    import fcntl

    (folder / row.replace(" ", "_").replace(",", "")).touch()
    waited = time.monotonic()
    while len(list(folder.iterdir())) < others and time.monotonic() - waited < 40:
        time.sleep(0.1)
    lock = open(folder.with_suffix(".lock"), "w")  # held until it is closed
    fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def measure(row: str, name: str, steps: int, limit: float | None, profiled: bool, together: str | None, layers=None) -> dict:
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if limit and device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(limit * 2**30 / torch.cuda.get_device_properties(0).total_memory)
    torch.manual_seed(0)
    began = time.monotonic()
    build = partial({"llama": llama, "phase7": phase7}[name], layers)
    model, step = ours(device, build, **OURS[row]) if row in OURS else peer(device, row)
    ids = torch.randint(0, VOCABULARY, (BATCH, LENGTH + 1), device=device)
    times, losses, first = [], [], 0.0
    lock = None
    for number in range(steps):
        if number == 2 and together:
            lock = take_turns(Path(together.split(":")[0]), row + name, int(together.split(":")[1]))
        start = time.monotonic()
        losses.append(round(float(step(ids)), 4))  # waits for the device
        times.append(time.monotonic() - start)
        print(f"{row}: step of {times[-1]:.3f} s, loss {losses[-1]}", file=sys.stderr, flush=True)
        first = first or time.monotonic() - began
    if lock is not None:
        lock.close()
    if profiled:
        with torch.profiler.profile() as profile:
            step(ids)
        print(profile.key_averages().table(sort_by="self_device_time_total", row_limit=28, max_name_column_width=60))
        print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=12, max_name_column_width=60))
    seconds = statistics.median(times[min(2, steps - 1) :])
    count = sum(p.numel() for p in model.parameters())
    found = {
        "row": row, "model": name if row in OURS else "llama", "parameters": count, "step_s": round(seconds, 4),
        "tokens_per_second": round(BATCH * LENGTH / seconds),
        "mfu": round(6 * count * BATCH * LENGTH / seconds / PEAK, 3), "first_step_s": round(first, 1), "losses": losses,
    }  # fmt: skip
    if device.type == "cuda":
        found["peak_allocated_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 3)
        found["held_gib"] = round(torch.cuda.memory_allocated() / 2**30, 3)  # between two steps
        found["peak_reserved_gib"] = round(torch.cuda.max_memory_reserved() / 2**30, 3)
        found["gpu"] = torch.cuda.get_device_name()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", default="lowest;speed;bnb;torchao", help="; ".join([*OURS, *PEERS]))
    parser.add_argument("--num_layers", type=int, help="another depth than the model's own")
    parser.add_argument("--model", default="llama", choices=("llama", "phase7"), help="of our rows; the peers have Llama")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--limit", type=float, help="GiB of GPU memory that the process may use at most")
    parser.add_argument("--profile", action="store_true", help="also print where one step's time goes")
    parser.add_argument("--together", metavar="FOLDER:N", help="N of these side by side: only the timed steps take turns")
    parser.add_argument("--one", help="internal: measure this row in this process")
    arguments = parser.parse_args()
    if arguments.one:
        how = arguments.model, arguments.steps, arguments.limit, arguments.profile, arguments.together, arguments.num_layers
        print(json.dumps(measure(arguments.one, *how)))
        return
    for row in arguments.rows.split(";"):
        try:
            how = arguments.model, arguments.steps, arguments.limit, arguments.num_layers
            print(json.dumps(in_a_process(row, *how)), flush=True)
        except NewLLMError as error:
            print(error, flush=True)


def in_a_process(row: str, model: str, steps: int, limit: float | None = None, layers: int | None = None) -> dict:
    """`measure` where nothing was allocated before.

    Raises:
        NewLLMError: it failed; says with what (out of memory, a package that is not there).
    """
    words = ["--one", row, "--model", model, "--steps", str(steps)]
    words += ["--limit", str(limit)] if limit else []
    words += ["--num_layers", str(layers)] if layers else []
    environment = {**os.environ, "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    command = [sys.executable, "-m", "newllm_lib.benchmarks.train_1p5b", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise NewLLMError(f"{row} failed: {(done.stderr.strip().splitlines() or ['no message'])[-1][:300]}")
    return json.loads(done.stdout.splitlines()[-1])


def run(rows, ways: list[str], steps: int = 6, limit: float | None = None) -> None:
    """Measure each way and add its figures to `rows` (benchmarks.rows.Rows). What fails is said, and the others go on."""
    for way in ways:
        try:
            found = in_a_process(way, "llama" if way in PEERS else "phase7", steps, limit)
        except NewLLMError as error:
            say(f"  {error}")
            continue
        name = f"{PEERS.get(way, 'Phase 7, ' + way)} ({found['parameters'] / 1e9:.2f}B)"
        note = f"whole steps of {BATCH} x {LENGTH} tokens, median of {steps - 2}" + (f", at most {limit:g} GiB" if limit else "")
        say(f"  {name}: {found['peak_reserved_gib']:.2f} GiB, {found['tokens_per_second']:,} tokens/s, MFU {found['mfu']:.3f}")
        rows.add(name, "peak memory reserved", found["peak_reserved_gib"], "GiB", note)
        rows.add(name, "speed", found["tokens_per_second"], "tokens/s", note)
        rows.add(name, "MFU", found["mfu"], "of 800 TFLOP/s", note)


def largest(way: str = "lowest") -> tuple[int, int]:
    """(layers, parameters) of the deepest Phase 7 of width 2,048 whose training step fits this GPU.

    Raises:
        NewLLMError: not even the smallest fits.
    """
    counts = {}

    def fits(layers: int) -> bool:
        try:
            counts[layers] = in_a_process(way, "phase7", 2, layers=layers)["parameters"]
        except NewLLMError:
            say(f"  {layers} layers: too large")
            return False
        say(f"  {layers} layers, {counts[layers] / 1e9:.2f}B parameters: fits")
        return True

    found = deepest(fits)
    if not found:
        raise NewLLMError("Not even a few layers fit this GPU: is another process using its memory (`nvidia-smi`)?")
    return found, counts[found]


def deepest(fits: Callable[[int], bool], start: int = 12, precision: int = 4) -> int:
    """The largest number (within `precision`) for which `fits`, which holds up to some number and not beyond; 0: for none."""
    low, high = 0, start
    while fits(high):
        low, high = high, 2 * high
    while high - low > precision:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


if __name__ == "__main__":
    main()
