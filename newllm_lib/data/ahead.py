"""Data prepared by another process while a command imports torch, into the cache where `prepare` looks.

Reading, training a tokenizer and packing need no torch, and take about as long as its imports. Only data on
this machine: what is fetched may ask and say things on the way.
"""

from __future__ import annotations

import json
import os
import subprocess

from newllm_lib import console
from newllm_lib.runs.processes import command_of, environment_of

_process: subprocess.Popen[str] | None = None


def start(name: str, keys: dict[str, object]) -> None:
    """Begin to prepare what training that recipe with these keys needs; of several processes none does."""
    global _process
    if "WORLD_SIZE" in os.environ:
        return
    _process = subprocess.Popen(
        command_of("newllm_lib.data.prepare_ahead", name, json.dumps(keys)),
        env=environment_of(TRANSFORMERS_NO_ADVISORY_WARNINGS="1", PYTHONUNBUFFERED="1"),
        stdin=subprocess.PIPE,  # which is closed when this process ends, however it does
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def wait() -> None:
    """Wait for what was begun, and say what it said; what it could not do, the caller does, and reports."""
    global _process
    process, _process = _process, None
    if process is None:
        return
    with process:
        if process.poll():
            return
        for line in process.stdout or ():
            console.say(line.rstrip("\n"))
