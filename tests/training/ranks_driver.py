"""Trains small runs with one or several processes, each a fork of this one (imports cost seconds, and are
done once).

python ranks_driver.py FOLDER SCENARIO...     prints one JSON object: what each scenario of `SCENARIOS` found
"""

import errno
import json
import os
import signal
import socket
import sys
import time
import traceback
from functools import partial
from pathlib import Path

import torch
import torch._dynamo  # noqa: F401  (what a training imports on its way is imported here, once)

from newllm_lib.data import blocks
from newllm_lib.data.streaming import segments, stream
from newllm_lib.errors import NewLLMError
from newllm_lib.recipe import load_recipe
from newllm_lib.runs import Run, is_complete
from newllm_lib.training import build_model, checkpointing, loop, run as running, saving, train
from newllm_lib.training.distributed import fsdp
from newllm_lib.training.progress import Progress

torch.set_num_threads(1)  # a fork must not inherit a thread pool
loop.plot_curves = lambda run: (
    None
)  # pictures and advice take longer than these trainings, and are tested elsewhere
running.report = lambda *_: None
segments.SEGMENT_BYTES, segments.HEAD, stream.FIRST, stream.WINDOW = 2000, 4, 1, 2
TINY = {
    "sized_for": "cpu",
    "vocab_size": 300,
    "max_seq_length": 16,
    "batch_size": 8,
    "hidden_size": 16,
    "context_dim": 16,
    "mlp_size": 16,
    "num_layers": 2,
    "num_heads": 2,
    "dropout": 0.0,
    "epochs": 1,
    "evals_per_epoch": 1,
    "logging_steps": 1,
    "micro_batch_size": 2,
    "save_minutes": 60,
    "sample_tokens": 0,
    "optimizer": "adamw",
    "attention_window": 8,
    "htt_rank": 4,
    "ssm_ranks": 4,
    "keep_checkpoints": 9,
}
FOLDER = Path(sys.argv[1])
UNEVEN: list[int] = []  # processes of each one's host, where hosts have not as many


def fit(name: str, count: int, then=None, **changes) -> dict:
    """Train run `name` with `count` processes to its end.

    Args:
        then: called with the processes' ids while they train.
    Returns:
        exits (of each process), rows, said (errors, by process), seconds.
    """
    data = "streamed" if changes.get("streaming") == "on" else "text"
    recipe = load_recipe(
        "demo", {**TINY, "data_dir": str(FOLDER / data), "output_dir": str(FOLDER / name), **changes}
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    began = time.monotonic()
    processes = [_fork(recipe, name, number, count, port) for number in range(count)]
    if then is not None:
        then(Run(FOLDER / name), processes)
    exits = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in processes]
    run = Run(FOLDER / name)
    rows = [{k: v for k, v in row.items() if k not in ("time", "tokens_per_second")} for row in run.metrics()]
    said = [(FOLDER / f"{name}.{number}.error").read_text() for number in range(count)]
    status = json.loads(run.status_path.read_text())["state"]
    return {"exits": exits, "rows": rows, "said": said, "seconds": time.monotonic() - began, "status": status}


def _fork(recipe, name: str, number: int, count: int, port: str) -> int:
    pid = os.fork()
    if pid:
        return pid
    error = FOLDER / f"{name}.{number}.error"
    error.write_text("")
    for stream_number, suffix in ((1, "out"), (2, "err")):
        os.dup2(
            os.open(FOLDER / f"{name}.{number}.{suffix}", os.O_WRONLY | os.O_CREAT | os.O_APPEND),
            stream_number,
        )
    if count > 1:
        hosts = 2 if count == 4 and recipe.distribution == "fsdp2" else 1
        places = {"RANK": number, "LOCAL_RANK": number % (count // hosts)}
        places |= {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": UNEVEN[number] if UNEVEN else count // hosts}
        os.environ.update({k: str(v) for k, v in places.items()}, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    _note_what_is_read(FOLDER / f"{name}.{number}.read")
    code = 1
    try:
        train(recipe)
        code = 0
    except NewLLMError as found:
        error.write_text(f"{type(found).__name__}: {found}")
        code = found.exit_code
    except BaseException:
        error.write_text(traceback.format_exc())
    finally:
        os._exit(code)


def _note_what_is_read(path: Path) -> None:
    """Append the start of every training block that this process cuts to a file."""
    for kind in (blocks.Blocks, blocks.StreamedBlocks):
        original = kind.__getitems__

        def noting(self, starts, original=original, kind=kind):
            if kind is blocks.StreamedBlocks or not isinstance(self.split, stream.Window):
                with open(path, "a") as file:
                    file.write("".join(json.dumps(start) + "\n" for start in starts))
            return original(self, starts)

        kind.__getitems__ = noting


def read(name: str, count: int) -> list:
    return [
        json.loads(line)
        for n in range(count)
        for line in (FOLDER / f"{name}.{n}.read").read_text().splitlines()
    ]


# --- scenarios
# --------------------------------------------------------------------------------------------------------

PHASE7 = {"model": "phase7", "max_steps": 6}
TWO_HOSTS = {"distribution": "fsdp2", "micro_batch_size": 1}  # a half of the batch's part at a time
LIGHT = {
    "optimizer": "adafactor",
    "optimizer_in_backward": True,
    "gradient_checkpointing": "on",
    "momentum_bits": 32,
}


def same(name: str, counts=(1, 2), **changes) -> dict:
    """The same run with different numbers of processes, and what each of them read."""
    found = {str(count): fit(f"{name}-{count}", count, **changes) for count in counts}
    return found | {"read": {count: read(f"{name}-{count}", int(count)) for count in found}}


def carried() -> dict:
    """New-LLM, the state carried from block to block, the batch accumulated."""
    return same("carried", (1, 4), carry_state=True)


def shuffled() -> dict:
    return same("shuffled")


def streamed() -> dict:
    return same("streamed", streaming="on", max_samples=60)


def tiny_gpt2() -> dict:
    return same("tiny_gpt2", model="tiny_gpt2", optimizer="muon", max_steps=4)


def light() -> dict:
    """Each parameter stepped in the backward pass."""
    return same("light", max_steps=6, **LIGHT)


def replayed() -> dict:
    """Whole steps as graphs record them, which on a processor are the functions themselves."""
    original, build_model.compilation = (
        build_model.compilation,
        lambda *_: "replay",
    )  # which a processor would not choose
    try:
        return same("replayed", (1, 4), compile="replay", max_steps=6)
    finally:
        build_model.compilation = original


def offloaded() -> dict:
    steps = {"gradient_checkpointing": "offload", **PHASE7}
    return same("offloaded", **steps) | {"cut": fit("offloaded-cut", 2, distribution="fsdp2", **steps)}


def adapters() -> dict:
    fit("start", 1, max_steps=4)
    return same("adapters", from_run=str(FOLDER / "start"), lora_rank=2, max_steps=6)


def cut() -> dict:
    """Phase 7 in 2 parts; interrupted, gone on with whole; interrupted again; ended by 4 processes, as if on
    two hosts.
    """
    steps = {
        **PHASE7,
        "gradient_checkpointing": "on",
        "max_steps": 8,
        "carry_state": True,
        "sample_tokens": 4,
    }
    two = fit("cut", 2, partial(_signal, signal.SIGTERM, 0, 1), distribution="fsdp2", **steps)
    one = fit("cut", 1, partial(_signal, signal.SIGTERM, 0, two["rows"][-1]["step"] + 1), **steps)
    return {
        "1": fit("cut-1", 1, **steps),
        "begun": two,
        "whole": one,
        "4": fit("cut", 4, **TWO_HOSTS, **steps),
    }


def uneven() -> dict:
    """Two processes on one host, one on another: they would cut the model into other parts, and wait for each
    other.
    """
    UNEVEN[:] = [2, 2, 1]
    try:
        return {"cut": fit("uneven", 3, distribution="fsdp2", batch_size=9, **PHASE7)}
    finally:
        UNEVEN.clear()


def killed() -> dict:
    """Of two processes one is killed after a save; four go on."""

    def kill(run: Run, processes: list[int]) -> None:
        while not run.checkpoints():
            time.sleep(0.01)
        os.kill(processes[1], signal.SIGKILL)

    saves = {"save_steps": 3, "evals_per_epoch": 1}
    whole, broken = fit("killed-1", 1, **saves), fit("killed", 2, kill, **saves)
    return {"1": whole, "broken": broken, "4": fit("killed", 4, **saves)}


def stopped() -> dict:
    """The second of two processes is asked to stop; then one goes on alone."""
    broken = fit("stopped", 2, partial(_signal, signal.SIGTERM, 1, 1), carry_state=True)
    saved = [path.name for path in Run(FOLDER / "stopped").checkpoints()]
    whole = fit("stopped-1", 1, carry_state=True)
    return {"broken": broken, "saved": saved, "1": whole, "continued": fit("stopped", 1, carry_state=True)}


def full() -> dict:
    """Once in each part of a checkpoint the disk is full: in the first process, in the second, in both."""
    saves = {"save_steps": 3, "max_steps": 4}
    found = {}
    saving.RETRY_AFTER = (0.0,) * 6
    for name, steps in {"ddp": saves, "fsdp2": {**PHASE7, **saves, "distribution": "fsdp2"}}.items():
        undo = [_full_at_first(torch, "save"), _full_at_first(checkpointing, "_save_random_state")]
        undo += [_full_at_first(fsdp, "_local"), _full_at_first(Progress, "save", 0)]
        undo += [_full_at_first(saving, "staged_directory", 0)]
        try:
            found[name] = fit(f"full-{name}", 2, **steps)
        finally:
            for put_back in undo:
                put_back()
        found[name]["saved"] = [p.name for p in Run(FOLDER / f"full-{name}").checkpoints() if is_complete(p)]
        found[name]["out"] = (FOLDER / f"full-{name}.0.out").read_text()
    return found


def _full_at_first(owner, name: str, only: int | None = None):
    """Each process's first call (that of process `only`) finds a full disk; gives what undoes it."""
    original, times = getattr(owner, name), iter((1,))

    def called(*words, **more):
        if only in (None, int(os.environ.get("RANK", 0))) and next(times, None):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(*words, **more)

    setattr(owner, name, called)
    return partial(setattr, owner, name, original)


def _signal(number: int, which: int, step: int, run: Run, processes: list[int]) -> None:
    """Send a signal to one of the processes once a step has been logged."""
    while not any("loss" in row and row["step"] >= step for row in run.metrics()):
        time.sleep(0.01)
    os.kill(processes[which], number)


SCENARIOS = {
    f.__name__: f
    for f in (
        carried,
        shuffled,
        streamed,
        tiny_gpt2,
        light,
        replayed,
        offloaded,
        adapters,
        cut,
        uneven,
        killed,
        stopped,
        full,
    )
}


if __name__ == "__main__":
    print(json.dumps({name: SCENARIOS[name]() for name in sys.argv[2:]}))
