"""Full-parameter training of 1.4 to 1.5 billion parameters, 16 sequences of 1,024 tokens a step: memory,
speed, MFU; our ways and peers' (`phase7_ways`).

    newllm bench phase7 [--ways lowest speed bnb] [--limit 8] [--steps 6] [--largest]
    newllm bench phase7 --one lowest --model phase7 [--profile]     this way, in this process: a line of JSON

Each row is a process of its own: whole steps (forward, backward, optimizer) on random tokens, the median of
the later ones. MFU counts 6 floating-point operations a parameter and token against 800 TFLOP/s, whatever is
computed twice. `--limit` refuses the process more GPU memory than that many GiB. The rows of peers need
bitsandbytes, torchao and liger-kernel.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from benchmarks import common
from benchmarks.common import Rows
from benchmarks.phase7_ways import BATCH, LENGTH, OURS, PEERS, VOCABULARY, llama, ours, peer, phase7
from newllm_lib.console import say
from newllm_lib.errors import NewLLMError

PATIENCE = 20  # seconds that those who are ready wait for the others
PEAK = 800e12  # a matrix product in bfloat16 on an H100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_out(parser)
    parser.add_argument(
        "--ways", nargs="+", metavar="WAY", help="only these (default: lowest, speed, bnb, torchao, default)"
    )
    parser.add_argument(
        "--steps",
        type=common.positive,
        default=6,
        help="steps, of which all but the first two are timed (default: 6)",
    )
    parser.add_argument(
        "--limit",
        type=float,
        metavar="GIB",
        help="refuse our low-memory ways more GPU memory than this",
    )
    parser.add_argument(
        "--side_by_side",
        action="store_true",
        help="start all ways at once; only their timed steps take turns",
    )
    parser.add_argument(
        "--largest", action="store_true", help="also find the largest model that fits this GPU (minutes)"
    )
    parser.add_argument(
        "--one", metavar="WAY", help="measure this way in this process, and print what comes out"
    )
    parser.add_argument(
        "--model",
        default="llama",
        choices=("llama", "phase7"),
        help="--one: of our ways; the peers have Llama",
    )
    parser.add_argument(
        "--num_layers", type=common.positive, help="--one: another depth than the model's own"
    )
    parser.add_argument("--profile", action="store_true", help="--one: also print where one step's time goes")
    parser.add_argument(
        "--together",
        metavar="FOLDER:N",
        help="--one: N of these side by side, whose timed steps take turns",
    )


def main(arguments: argparse.Namespace) -> dict | None:
    from newllm_lib.device import probe

    if arguments.one:
        how = arguments.model, arguments.steps, arguments.limit, arguments.profile, arguments.together
        print(json.dumps(measure(arguments.one, *how, arguments.num_layers)))
        return None
    if probe().torch_device == "cpu":
        raise NewLLMError("This measures training on a GPU, and torch sees none here (`newllm doctor`).")
    chosen = arguments.ways or ["lowest", "speed", "bnb", "torchao", "default"]
    ways = common.choose(chosen, [*OURS, *PEERS], "way")
    say("Training steps of 1.5 billion parameters, each way in a process of its own: " + "; ".join(ways))
    rows = Rows("phase7")
    run(rows, ways, arguments.steps, arguments.limit, arguments.side_by_side)
    if arguments.largest:
        layers, count = largest()
        rows.add(f"Phase 7, {layers} layers", "largest that fits", count, "parameters")
    return common.record(rows, arguments)


def take_turns(folder: Path, row: str, others: int):
    """Wait until all have warmed up or ended (one that compiles for long is not waited for), then for the
    turn: timings are taken one process after the other. Returns the lock."""
    import fcntl

    _arrived(folder, row)
    waited = time.monotonic()
    while len(list(folder.iterdir())) < others and time.monotonic() - waited < PATIENCE:
        time.sleep(0.1)
    lock = open(folder.with_suffix(".lock"), "w")  # held until it is closed
    fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def _arrived(folder: Path, row: str) -> None:
    (folder / row.replace(" ", "_").replace(",", "")).touch()


def measure(
    row: str, name: str, steps: int, limit: float | None, profiled: bool, together: str | None, layers=None
) -> dict:
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if limit and device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(
            limit * 2**30 / torch.cuda.get_device_properties(0).total_memory
        )
    torch.manual_seed(0)
    began = time.monotonic()
    build = partial({"llama": llama, "phase7": phase7}[name], layers)
    model, step = ours(device, build, **OURS[row]) if row in OURS else peer(device, row)
    ids = torch.randint(0, VOCABULARY, (BATCH, LENGTH + 1), device=device)
    times, losses, first = [], [], 0.0
    lock = None
    for number in range(steps):
        if number == 2 and together:
            lock = take_turns(Path(together.split(":")[0]), row, int(together.split(":")[1]))
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
        print(
            profile.key_averages().table(
                sort_by="self_device_time_total", row_limit=28, max_name_column_width=60
            )
        )
        print(
            profile.key_averages().table(
                sort_by="self_cpu_time_total", row_limit=12, max_name_column_width=60
            )
        )
    seconds = statistics.median(times[min(2, steps - 1) :])
    count = sum(p.numel() for p in model.parameters())
    found = {
        "row": row,
        "model": name if row in OURS else "llama",
        "parameters": count,
        "step_s": round(seconds, 4),
        "tokens_per_second": round(BATCH * LENGTH / seconds),
        "mfu": round(6 * count * BATCH * LENGTH / seconds / PEAK, 3),
        "first_step_s": round(first, 1),
        "losses": losses,
        "times": [round(t, 3) for t in times],
    }
    if device.type == "cuda":
        found["peak_allocated_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 3)
        found["held_gib"] = round(torch.cuda.memory_allocated() / 2**30, 3)  # between two steps
        found["peak_reserved_gib"] = round(torch.cuda.max_memory_reserved() / 2**30, 3)
        found["graphs_gib"] = round(reserved_by_graphs() / 2**30, 3)
        found["gpu"] = torch.cuda.get_device_name()
    return found


def reserved_by_graphs() -> int:
    """Bytes for CUDA graphs alone: always reserved, allocated only while recording."""
    import torch

    return sum(
        segment["total_size"]
        for segment in torch.cuda.memory_snapshot()
        if segment["segment_pool_id"] != (0, 0)
    )


def in_a_process(
    row: str,
    model: str,
    steps: int,
    limit: float | None = None,
    layers: int | None = None,
    together: str | None = None,
) -> dict:
    """`measure` where nothing was allocated before.

    Raises:
        NewLLMError: it failed; says with what (out of memory, a package that is not there).
    """
    words = ["--one", row, "--model", model, "--steps", str(steps)]
    words += ["--limit", str(limit)] if limit else []
    words += ["--num_layers", str(layers)] if layers else []
    words += ["--together", together] if together else []
    try:
        return common.result_of(
            common.command("phase7", *words), row, {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
        )
    finally:
        if together:
            _arrived(Path(together.split(":")[0]), row)


def run(
    rows: Rows, ways: list[str], steps: int = 6, limit: float | None = None, side_by_side: bool = False
) -> None:
    """Measure each way and add its figures to `rows`. What fails is said, and the others go on.

    Args:
        limit: GiB of GPU memory that each of our processes may use, but for those that keep all activations.
        side_by_side: start all at once, only the timed steps take turns: minutes less, if the GPU's memory
            holds them all.
    """
    with (
        tempfile.TemporaryDirectory() as folder,
        ThreadPoolExecutor(len(ways) if side_by_side else 1) as pool,
    ):
        rendezvous = Path(folder) / "rendezvous"
        rendezvous.mkdir()
        together = f"{rendezvous}:{len(ways)}" if side_by_side else None

        def found(way: str):
            own = limit_of(way, limit)
            return in_a_process(way, "llama" if way in PEERS else "phase7", steps, own, together=together)

        waiting = [(way, pool.submit(found, way)) for way in ways]
        for way, future in waiting:
            try:
                _add(rows, way, future.result(), steps, limit_of(way, limit))
            except NewLLMError as error:
                say(f"  {error}")


def limit_of(way: str, limit: float | None) -> float | None:
    return None if "micro" in OURS.get(way, {"micro": 1}) else limit


def _add(rows: Rows, way: str, found: dict, steps: int, limit: float | None) -> None:
    name = f"{PEERS.get(way, 'Phase 7, ' + way)} ({found['parameters'] / 1e9:.2f}B)"
    note = f"whole steps of {BATCH} x {LENGTH} tokens, median of {steps - 2}" + (
        f", at most {limit:g} GiB" if limit else ""
    )
    memory, speed = f"{found['peak_reserved_gib']:.2f} GiB", f"{found['tokens_per_second']:,} tokens/s"
    say(f"  {name}: {memory}, {speed}, MFU {found['mfu']:.3f}")
    say(f"    steps of {', '.join(map(str, found['times']))} s, losses {found['losses']}")
    rows.add(name, "peak memory reserved", found["peak_reserved_gib"], "GiB", note)
    rows.add(name, "peak memory allocated", found["peak_allocated_gib"], "GiB", note)
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
        raise NewLLMError(
            "Not even a few layers fit this GPU: is another process using its memory (`nvidia-smi`)?"
        )
    return found, counts[found]


def deepest(fits: Callable[[int], bool], start: int = 12, precision: int = 4) -> int:
    """The largest number (within `precision`) that `fits`, assuming a threshold; 0: none does."""
    low, high = 0, start
    while fits(high):
        low, high = high, 2 * high
    while high - low > precision:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
