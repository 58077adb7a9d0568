"""What several GPUs give: one training by one and by all of them at one batch: tokens/s and losses.

    newllm bench scaling [--gpus 2] [--models phase7_100m_replayed phase7_1.5b new_llm]

A process trains one model by `newllm train`'s own path, until its log has the lines that are asked for. First
each GPU measures some of the models alone, side by side; then all train each of them together.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace

from benchmarks import common
from benchmarks.common import Rows
from newllm_lib.console import say
from newllm_lib.errors import NewLLMError

_DATA = {
    "data": "demo",
    "vocab_size": 4096,
    "max_steps": 12,
    "logging_steps": 4,
    "epochs": 1000,
    "sample_tokens": 0,
    "force": True,
    "dropout": 0.0,
}
_ADAMW = {
    "optimizer": "adamw",
    "weights_dtype": "fp32",
    "optimizer_in_backward": False,
    "learning_rate": 1e-3,
    "warmup_steps": 4,
}
_25M = {"hidden_size": 512, "context_dim": 512, "num_layers": 8, "mlp_size": 1792, "max_seq_length": 256}
_100M = {"batch_size": 128, "micro_batch_size": 32, "loss_on": "everything", "distribution": "ddp"}
_FAST = {"gradient_checkpointing": "off", "max_steps": 24, "logging_steps": 6}
MODELS = {  # recipe, keys
    "phase7_100m": ("phase7_100m", _DATA | _ADAMW | _100M | {"compile": "off"}),
    "phase7_100m_replayed": ("phase7_100m", _DATA | _ADAMW | _100M | _FAST | {"compile": "replay"}),
    "phase7_100m_compiled": ("phase7_100m", _DATA | _ADAMW | _100M | _FAST | {"compile": "on"}),
    "phase7_1.5b": (
        "phase7_1.5b",
        _DATA
        | _ADAMW
        | {
            "batch_size": 64,
            "micro_batch_size": 32,
            "loss_on": "everything",
            "distribution": "fsdp2",
            "compile": "off",
            "gradient_checkpointing": "on",
            "max_steps": 6,
            "logging_steps": 2,
        },
    ),
    "new_llm": (
        "demo",
        _DATA
        | _ADAMW
        | _25M
        | {
            "batch_size": 2048,
            "micro_batch_size": 256,
            "carry_state": False,
            "distribution": "ddp",
            "compile": "on",
            "max_steps": 36,
            "logging_steps": 6,
        },
    ),
}
_TINY = {  # instead, for a trial on any machine
    "hidden_size": 32,
    "context_dim": 32,
    "mlp_size": 32,
    "num_layers": 2,
    "num_heads": 2,
    "max_seq_length": 32,
    "batch_size": 16,
    "micro_batch_size": 4,
    "vocab_size": 300,
    "max_samples": 50,
    "htt_rank": 4,
    "ssm_ranks": 4,
    "attention_window": 8,
    "max_steps": 12,
    "compile": "off",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_out(parser)
    parser.add_argument(
        "--gpus", type=common.positive, default=2, help="GPUs that train together (default: 2)"
    )
    parser.add_argument("--models", nargs="+", metavar="MODEL", help=f"some of {' '.join(MODELS)}")
    parser.add_argument(
        "--tiny", action="store_true", help="models and data so small that any machine does it"
    )
    parser.add_argument(
        "--seconds", type=float, default=3600.0, help="stop what takes longer, all in all (default: 3600)"
    )
    parser.add_argument("--one", nargs=2, metavar=("MODEL", "FOLDER"), help=argparse.SUPPRESS)


def main(arguments: argparse.Namespace) -> dict | None:
    if arguments.one:
        measure(*arguments.one, arguments.tiny)
        return None
    models = common.choose(arguments.models, list(MODELS), "model")
    found, failed = run(arguments.gpus, models, arguments.tiny, arguments.seconds)
    rows = Rows("scale")
    for model in models:
        compare(rows, model, found, arguments.gpus)
    result = common.record(rows, arguments)
    if failed:
        what = f"{failed} of the measurements failed or took longer than {arguments.seconds:.0f} s"
        raise NewLLMError(f"{what}, as said above.")
    return result


@dataclass
class Found:
    """Of one training: parameters, tokens/s, the losses of its logged intervals, peak memory in GiB."""

    model: str
    processes: int
    parameters: int
    tokens_per_second: float
    losses: list[float]
    memory_gib: float


def run(gpus: int, models: list[str], tiny: bool = False, seconds: float = 3600.0) -> tuple[list[Found], int]:
    """Measure; what was found, and how many of the trainings failed or were not done after `seconds`."""
    end = time.monotonic() + seconds
    started: list[subprocess.Popen] = []
    with tempfile.TemporaryDirectory(prefix="newllm-scaling-") as folder, ThreadPoolExecutor(gpus) as pool:

        def alone(gpu: int) -> list[Found | None]:
            """One model after the other on this GPU."""
            return [
                _trained(model, folder, tiny, end, started, [_one_gpu(gpu)]) for model in models[gpu::gpus]
            ]

        try:
            _prepare(models, tiny)  # once, not by each process
            found = [result for results in pool.map(alone, range(gpus)) for result in results]
            found += [_trained(model, folder, tiny, end, started, _ranks(gpus)) for model in models]
        except BaseException:  # the pool would wait for them
            for process in started:
                process.kill()
            raise
    return [result for result in found if result], sum(result is None for result in found)


def _trained(
    model: str,
    folder: str,
    tiny: bool,
    end: float,
    started: list[subprocess.Popen],
    environments: list[dict[str, str]],
) -> Found | None:
    """What the first of these processes reports; None if one failed, or the time is over.

    Args:
        started: where the processes are noted.
    """
    words = common.command("scaling", "--one", model, f"{folder}/{model}-{len(environments)}")
    words += ["--tiny"] if tiny else []
    pipes = [subprocess.PIPE, *[subprocess.DEVNULL] * (len(environments) - 1)]
    processes = [
        subprocess.Popen(
            words, stdout=out, text=True, env={**os.environ, "OMP_NUM_THREADS": "2", **environment}
        )
        for out, environment in zip(pipes, environments, strict=True)
    ]
    started += processes
    try:
        said, _ = processes[0].communicate(timeout=max(0.0, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        return None
    finally:
        for process in processes:  # the first has what it wanted: the others need not go on
            process.kill()
            process.wait()
    lines = [line for line in said.splitlines() if line.startswith("{")]
    return Found(**json.loads(lines[-1])) if lines else None


def _one_gpu(gpu: int) -> dict[str, str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return {"CUDA_VISIBLE_DEVICES": visible.split(",")[gpu] if visible else str(gpu)}


def _ranks(count: int) -> list[dict[str, str]]:
    """The variables by which torchrun numbers processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common_ones = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    common_ones |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [{"RANK": str(rank), "LOCAL_RANK": str(rank), **common_ones} for rank in range(count)]


def _recipe(model: str, tiny: bool, **keys):
    from newllm_lib.recipe import load_recipe

    name, own = MODELS[model]
    return load_recipe(name, own | (_TINY if tiny else {}) | keys)


def _prepare(models: list[str], tiny: bool) -> None:
    from newllm_lib.data import prepare

    for model in models:  # what two of them share is found in the cache
        prepare(_recipe(model, tiny)).close()


def compare(rows: Rows, model: str, found: list[Found], gpus: int) -> None:
    """Say, and add to the rows of the CSV, what one GPU and all gave for a model."""
    one, all_ = (next((f for f in found if f.model == model and f.processes == n), None) for n in (1, gpus))
    for result, where in ((one, "1 GPU"), (all_, f"{gpus} GPUs")):
        if result is not None:
            rows.add(
                model, f"training, {where}", result.tokens_per_second, "tokens/s", f"losses {result.losses}"
            )
            rows.add(model, f"peak memory, {where}", result.memory_gib, "GiB")
    if one is None or all_ is None:
        return
    ratio = all_.tokens_per_second / one.tokens_per_second
    apart = max(abs(a - b) for a, b in zip(one.losses, all_.losses, strict=True))
    rows.add(model, f"{gpus} GPUs against 1", ratio, "times", f"losses differ by at most {apart:.4f}")
    faster = f"{ratio:.3f} times one GPU's tokens/s"
    say(f"{model} ({one.parameters:,} parameters): {faster}; losses differ by at most {apart:.4f}")


def measure(model: str, folder: str, tiny: bool) -> None:
    """Train in this process, alone or one of several, until the log is full; the first prints the result."""
    import torch

    from newllm_lib.training.model_config import count_parameters, model_config

    recipe = _recipe(model, tiny, output_dir=folder)
    steps, every = recipe.max_steps, recipe.logging_steps
    # one more than is measured, so that what comes after the last step is never waited for
    recipe = replace(recipe, max_steps=steps + every)

    def report(rows: list[dict]) -> None:
        cuda = torch.cuda.is_available()
        result = Found(
            model=model,
            processes=int(os.environ.get("WORLD_SIZE", 1)),
            parameters=count_parameters(model_config(recipe, recipe.vocab_size)),
            # the first step, and the first interval after it, compile and warm up
            tokens_per_second=statistics.median(row["tokens_per_second"] for row in rows[2:]),
            losses=[round(row["loss"], 4) for row in rows],
            memory_gib=torch.cuda.max_memory_allocated() / 2**30 if cuda else 0.0,
        )
        print(json.dumps(asdict(result)), flush=True)

    common.train_until(recipe, 1 + steps // every, report)
