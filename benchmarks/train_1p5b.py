"""Full-parameter training of 1.4 to 1.5 billion parameters, 16 sequences of 1,024 tokens a step: memory, speed, MFU; ours and
peers.

    python benchmarks/train_1p5b.py [--rows lowest,speed,bnb] [--model llama] [--limit 8] [--steps 5] [--out results.csv]

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
from pathlib import Path

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


def llama():
    """The peers' model: 1.42 billion parameters in Llama's shape."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = dict(hidden_size=2048, intermediate_size=5504, num_hidden_layers=24, num_attention_heads=16, num_key_value_heads=16)
    layers = os.environ.get("TRAIN_1P5B_LAYERS")  # to try the script on a small machine
    if layers:
        sizes |= dict(num_hidden_layers=int(layers), hidden_size=256, intermediate_size=512)
    sizes |= dict(vocab_size=VOCABULARY, max_position_embeddings=LENGTH, tie_word_embeddings=False)
    config = LlamaConfig(use_cache=False, **sizes)
    config._attn_implementation = "sdpa"
    return LlamaForCausalLM(config)


def phase7():
    """Phase 7's recipe of 1.51 billion parameters."""
    import torch

    from newllm_lib.models import build_model
    from newllm_lib.recipe import load_recipe

    small = dict(num_layers=2, hidden_size=256, context_dim=256, mlp_size=512, num_heads=2, htt_rank=16)
    keys = small if os.environ.get("TRAIN_1P5B_LAYERS") else {}
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


def measure(row: str, name: str, steps: int, limit: float | None, profiled: bool, together: str | None) -> dict:
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if limit and device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(limit * 2**30 / torch.cuda.get_device_properties(0).total_memory)
    torch.manual_seed(0)
    began = time.monotonic()
    build = {"llama": llama, "phase7": phase7}[name]
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
    parser.add_argument("--rows", default="lowest,speed,bnb,torchao", help=", ".join([*OURS, *PEERS]))
    parser.add_argument("--model", default="llama", choices=("llama", "phase7"), help="of our rows; the peers have Llama")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--limit", type=float, help="GiB of GPU memory that the process may use at most")
    parser.add_argument("--profile", action="store_true", help="also print where one step's time goes")
    parser.add_argument("--together", metavar="FOLDER:N", help="N of these side by side: only the timed steps take turns")
    parser.add_argument("--one", help="internal: measure this row in this process")
    arguments = parser.parse_args()
    if arguments.one:
        how = arguments.model, arguments.steps, arguments.limit, arguments.profile, arguments.together
        print(json.dumps(measure(arguments.one, *how)))
        return
    environment = {**os.environ, "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    for row in arguments.rows.split(","):
        words = ["--one", row, "--model", arguments.model, "--steps", str(arguments.steps)]
        words += ["--limit", str(arguments.limit)] if arguments.limit else []
        words += ["--profile"] if arguments.profile else []
        done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, env=environment)
        print(done.stdout.strip() if not done.returncode else f"{row} failed: {done.stderr[-1500:]}", flush=True)


if __name__ == "__main__":
    main()
