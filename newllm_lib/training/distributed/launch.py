"""`--num_gpus`: starts processes by torch's elastic launcher, passes signals on, reports why they ended.

This process holds the run (lock, status, mirror) while they train; each is
`newllm_lib.training.distributed.worker`. What torchrun and `accelerate launch` start by themselves, on one
host or many, needs none of this.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path

import psutil
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from newllm_lib.device import Device
from newllm_lib.errors import Interrupted, NewLLMError, UsageError
from newllm_lib.recipe import Recipe
from newllm_lib.runs.processes import command_of, environment_of
from newllm_lib.training.distributed.process_group import LAUNCHED, LostPeer
from newllm_lib.training.signals import NUMBERS

_PROGRAM = "newllm_lib.training.distributed.worker"
_GRACE = "20"  # seconds that the others get to end by themselves when one has failed


def launch(recipe: Recipe, device: Device, count: int, was_finished: bool) -> None:
    """Train in `count` processes on this host until they are done.

    Raises:
        Interrupted: stopped by a signal, after saving.
        NewLLMError: what the first process that failed said, or how it was ended.
    """
    with tempfile.TemporaryDirectory(prefix="newllm-launch-") as folder, _environment(device, count):
        record = Path(folder) / "recipe.yaml"
        record.write_text(recipe.to_yaml(), encoding="utf-8")
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            run_id=Path(folder).name,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            monitor_interval=0.1,
            logs_specs=DefaultLogsSpecs(log_dir=folder),
        )
        _, *words = command_of(_PROGRAM, str(record), "finished" if was_finished else "new")
        failed: list[BaseException] = []

        def agent():
            try:
                elastic_launch(config, sys.executable)(*words)
            except BaseException as error:
                failed.append(error)

        # In a thread: in the main one the launcher would end the processes at a signal, 30 s later by force,
        # saved or not.
        thread = threading.Thread(target=agent, daemon=True)
        with _signals_passed_on():
            thread.start()
            while thread.is_alive():
                thread.join(0.2)
    if failed:
        raise _cause(failed[0], count) from failed[0]


@contextmanager
def _environment(device: Device, count: int):
    """What the processes find in theirs."""
    changes = {
        LAUNCHED: str(os.getpid()),
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": _GRACE,
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(max(1, device.cores // count)),
        "PYTHONPATH": environment_of()["PYTHONPATH"],
    }
    before = {name: os.environ.get(name) for name in changes}
    loggers = [
        logging.getLogger(name) for name in ("torch.distributed.elastic", "torch.distributed.launcher")
    ]
    levels = [logger.level for logger in loggers]
    os.environ.update(changes)
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)  # errors are reported once, by us
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _signals_passed_on():
    """What ends a run goes to the processes, which save and stop; before there are any, it ends this."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def receive(number, frame):
        children = _children()
        if not children:
            raise KeyboardInterrupt
        for child in children:
            try:
                child.send_signal(number)
            except psutil.NoSuchProcess:
                continue

    before = {number: signal.signal(number, receive) for number in NUMBERS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _children() -> list[psutil.Process]:
    found = []
    for child in psutil.Process().children():
        try:
            if any(_PROGRAM in word for word in child.cmdline()):
                found.append(child)
        except psutil.Error:  # ended this instant
            continue
    return found


def _cause(error: BaseException, count: int) -> BaseException:
    """Of all that ended with an error, the one that the others did not end because of."""
    if not isinstance(error, ChildFailedError):
        return NewLLMError(f"The processes could not be started: {' '.join(str(error).split())[:300]}")
    failures = sorted(error.failures.items(), key=lambda item: item[1].timestamp)
    lost = f"{LostPeer.__name__}: "
    number, first = next((pair for pair in failures if not _said(pair[1]).startswith(lost)), failures[0])
    kind, _, text = _said(first).partition(": ")
    if first.exitcode < 0:
        return NewLLMError(
            f"Process {number} of {count} was ended by {first.signal_name()} (SIGKILL: by somebody, or for "
            "want of the host's memory): the run cannot go on without it. The same command continues from "
            "the last save."
        )
    if not kind:
        return NewLLMError(
            f"Process {number} of {count} ended with exit code {first.exitcode}; what it said stands above."
        )
    known = {e.__name__: e for e in (Interrupted, UsageError, NewLLMError, LostPeer)}
    if kind == KeyboardInterrupt.__name__:
        return KeyboardInterrupt()
    if kind in known:
        return known[kind](text)
    return NewLLMError(
        f"Process {number} of {count}: {kind}: {' '.join(text.split())[:300]} (what led to it stands above)"
    )


def _said(failure: ProcessFailure) -> str:
    """A process's message to the launcher, as `Kind: text`; empty if it could not."""
    told = failure.error_file_data["message"]
    return told["message"] if isinstance(told, dict) else ""
