"""What several GPUs give: the same training by one and by all of them, at the same batch, in one run: tokens/s and losses.

    python -m newllm_lib.benchmarks.scale [--gpus 2] [--models phase7_100m_replayed phase7_1.5b new_llm] [--out FILE]

Each process trains one model after the other, as `newllm train` does but with no evaluation and no save. First each GPU measures
some of the models alone, side by side; then all train each of them together.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from newllm_lib.console import say

_DATA = {
    "data": "demo", "vocab_size": 4096, "max_steps": 12, "logging_steps": 4, "epochs": 1000, "sample_tokens": 0, "dropout": 0.0,
}  # fmt: skip
_ADAMW = {"optimizer": "adamw", "weights_dtype": "fp32", "step_in_backward": False, "learning_rate": 1e-3, "warmup_steps": 4}
_25M = {"hidden_size": 512, "context_dim": 512, "num_layers": 8, "mlp_size": 1792, "max_seq_length": 256}
_100M = {"batch_size": 128, "micro_batch_size": 32, "loss_on": "everything", "distribution": "ddp"}
_FAST = {"gradient_checkpointing": "off", "max_steps": 24, "logging_steps": 6}
MODELS = {  # recipe, keys
    "phase7_100m": ("phase7_100m", _DATA | _ADAMW | _100M | {"compile": "off"}),
    "phase7_100m_replayed": ("phase7_100m", _DATA | _ADAMW | _100M | _FAST | {"compile": "replay"}),
    "phase7_100m_compiled": ("phase7_100m", _DATA | _ADAMW | _100M | _FAST | {"compile": "on"}),
    "phase7_1.5b": ("phase7_1.5b", _DATA | _ADAMW | {
        "batch_size": 64, "micro_batch_size": 32, "loss_on": "everything", "distribution": "fsdp2", "compile": "off",
        "gradient_checkpointing": "on", "max_steps": 5, "logging_steps": 2,
    }),
    "new_llm": ("demo", _DATA | _ADAMW | _25M | {
        "batch_size": 2048, "micro_batch_size": 256, "carry_state": False, "distribution": "ddp", "compile": "on",
        "max_steps": 36, "logging_steps": 6,
    }),
}  # fmt: skip
_TINY = {  # instead, for a trial on any machine
    "hidden_size": 32, "context_dim": 32, "mlp_size": 32, "num_layers": 2, "num_heads": 2, "max_seq_length": 32, "batch_size": 16,
    "micro_batch_size": 4, "vocab_size": 300, "max_samples": 50, "htt_rank": 4, "ssm_ranks": 4, "attention_window": 8,
    "max_steps": 12, "compile": "off",
}  # fmt: skip


PROGRAM = ["-m", "newllm_lib.benchmarks.scale"]  # what each process runs


@dataclass
class Found:
    """Of one training: parameters, tokens a second, the losses of its logged intervals, peak memory in GiB."""

    model: str
    processes: int
    parameters: int
    tokens_per_second: float
    losses: list[float]
    memory_gib: float


def run(gpus: int, models: list[str], tiny: bool = False, seconds: float = 3600.0) -> tuple[list[Found], int]:
    """Measure; what was found, and how many of the processes failed or took longer than `seconds`."""
    with tempfile.TemporaryDirectory(prefix="newllm-scale-") as folder:
        shares = [models[gpu::gpus] for gpu in range(gpus)]
        alone = [_start(folder, tiny, share, gpu=gpu) for gpu, share in enumerate(shares) if share]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        together = [_start(folder, tiny, models, rank=rank, of=gpus, port=port) for rank in range(gpus)]  # they wait for the go
        end = time.monotonic() + seconds
        try:
            failed = _wait(alone, end)
            Path(folder, "go").touch()
            failed += _wait(together, end)
        finally:
            for process in alone + together:
                process.kill()
                process.wait()
        lines = [line for path in sorted(Path(folder).glob("*.found")) for line in path.read_text().splitlines()]
    return [Found(**json.loads(line)) for line in lines], failed


def compare(rows, model: str, found: list[Found], gpus: int) -> None:
    """Say, and add to the rows of the CSV, what one GPU and all gave for a model."""
    one, all_ = (next((f for f in found if f.model == model and f.processes == n), None) for n in (1, gpus))
    for result, where in ((one, "1 GPU"), (all_, f"{gpus} GPUs")):
        if result is not None:
            rows.add(model, f"training, {where}", result.tokens_per_second, "tokens/s", f"losses {result.losses}")
            rows.add(model, f"peak memory, {where}", result.memory_gib, "GiB")
    if one is None or all_ is None:
        return
    ratio = all_.tokens_per_second / one.tokens_per_second
    apart = max(abs(a - b) for a, b in zip(one.losses, all_.losses, strict=True))
    rows.add(model, f"{gpus} GPUs against 1", ratio, "times", f"losses differ by at most {apart:.4f}")
    say(f"{model} ({one.parameters:,} parameters): {ratio:.3f} times one GPU's tokens/s; losses differ by at most {apart:.4f}")


def _start(folder, tiny: bool, models: list[str], gpu: int = 0, rank: int = 0, of: int = 1, port: int = 0) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "NEWLLM_SCALE": json.dumps([folder, tiny, models])}
    if of > 1:
        environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(of), "LOCAL_WORLD_SIZE": str(of)}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    else:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        environment["CUDA_VISIBLE_DEVICES"] = visible.split(",")[gpu] if visible else str(gpu)
    return subprocess.Popen([sys.executable, *PROGRAM], env=environment)


def _wait(processes: list[subprocess.Popen], end: float) -> int:
    """Wait until all have ended, or `end`; how many have failed, or still run."""
    while time.monotonic() < end and any(process.poll() is None for process in processes):
        time.sleep(0.1)
    return sum(process.poll() != 0 for process in processes)


# --- one process ------------------------------------------------------------------------------------------------------


def measure() -> None:
    """Train the models that the environment names, one after the other, and note what was found."""
    folder, tiny, models = json.loads(os.environ["NEWLLM_SCALE"])
    from newllm_lib import console
    from newllm_lib.data import prepare
    from newllm_lib.device import probe
    from newllm_lib.recipe import load_recipe
    from newllm_lib.training import loop, ranks

    console.quiet_libraries()
    console.mute()
    device = probe()
    recipes = {name: load_recipe(MODELS[name][0], MODELS[name][1] | (_TINY if tiny else {})) for name in models}
    prepared = {}
    for recipe in recipes.values():
        key = recipe.vocab_size, recipe.max_samples
        prepared[key] = prepared.get(key) or prepare(recipe)
    if ranks.several():
        ranks.join(device.torch_device)
        while not Path(folder, "go").exists():
            time.sleep(0.05)
    real, loop.Timetable = loop.Timetable, _only_logs(loop.Timetable)
    for name, recipe in recipes.items():
        found = _train(recipe, name, prepared[recipe.vocab_size, recipe.max_samples], device, Path(folder))
        if ranks.is_first():
            with open(Path(folder, f"{ranks.world()}-{os.getpid()}.found"), "a") as file:
                file.write(json.dumps(found.__dict__) + "\n")
            print(found, flush=True)
    loop.Timetable = real


def _only_logs(timetable):
    class OnlyLogs(timetable):
        """No evaluation and no save: they would be measured, and a large model's take minutes."""

        def after(self, step: int):
            decision = super().after(step)
            decision.evaluate = decision.save = False
            return decision

        def is_due(self) -> bool:
            return False

    return OnlyLogs


def _train(recipe, name: str, data, device, folder: Path) -> Found:
    import torch

    from newllm_lib.ops.common.dispatch import kernels
    from newllm_lib.runs import Run
    from newllm_lib.training import ranks
    from newllm_lib.training.context import RunContext
    from newllm_lib.training.estimate import micro_batch_size
    from newllm_lib.training.loop import TrainingLoop
    from newllm_lib.training.model_config import count_parameters, model_config
    from newllm_lib.training.progress import Progress
    from newllm_lib.training.run import steps

    run = Run(folder / f"{name}-{ranks.world()}")
    run.path.mkdir(exist_ok=True)
    cuda = device.torch_device == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    micro = micro_batch_size(recipe, device, ranks.world())
    with kernels(recipe.kernels != "off"):
        TrainingLoop(RunContext(recipe, run, device, data, None, None, Progress(), *steps(recipe, data), micro)).run()
    ranks.wait_for_all()
    logged = [row for row in run.metrics() if "loss" in row]
    # The first step, and the first interval after it, compile and warm up.
    speed = statistics.median(row["tokens_per_second"] for row in logged[2:])
    memory = torch.cuda.max_memory_allocated() / 2**30 if cuda else 0.0
    gc.collect()
    if cuda:
        torch._dynamo.reset()
        torch.cuda.empty_cache()
    losses = [round(row["loss"], 4) for row in logged]
    return Found(name, ranks.world(), count_parameters(model_config(recipe, len(data.tokenizer))), speed, losses, memory)


def main() -> None:
    """Training by one GPU and by several, at the same batch."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--seconds", type=float, default=3600.0)
    arguments = parser.parse_args()
    found, failed = run(arguments.gpus, arguments.models, arguments.tiny, arguments.seconds)
    from newllm_lib.benchmarks.rows import Rows  # loads torch, which the processes do meanwhile

    rows = Rows("scale", "python -m newllm_lib.benchmarks.scale " + " ".join(sys.argv[1:]))
    for model in arguments.models:
        compare(rows, model, found, arguments.gpus)
    if arguments.out and rows.rows:
        rows.append_to(arguments.out)
    if failed:
        sys.exit(f"{failed} of the measuring processes failed or took longer than {arguments.seconds:.0f} s, as said above.")


if __name__ == "__main__":
    measure() if "NEWLLM_SCALE" in os.environ else main()
