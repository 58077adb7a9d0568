"""Commands in one process of their own, which knows a local hub."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.helpers.hub_server import HubServer

WORKER = Path(__file__).parents[1] / "cli" / "newllm_worker.py"


@contextlib.contextmanager
def newllm_process(hub: HubServer, place: Path, cache: Path) -> Iterator[Callable[..., dict]]:
    """`newllm(*words, said="")` in `place`; gives code, out, err; `.hub`: the server.

    Args:
        cache: for what is fetched from the hub.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(cache), "NEWLLM_DEVICE": "cpu"}
    process = subprocess.Popen(
        [sys.executable, str(WORKER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=place,
        env=environment | {"HF_HUB_DISABLE_PROGRESS_BARS": "1"},
    )

    def ask(*words: str, said: str = "") -> dict:
        process.stdin.write(json.dumps({"argv": words, "said": said}) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    ask.hub = hub
    yield ask
    process.stdin.close()
    process.wait()
