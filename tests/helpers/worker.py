"""One process that answers `newllm` commands and notebook cells; see tests/cli/newllm_worker.py."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

TOKEN = "hf_of_a_test"
WORKER = Path(__file__).parents[1] / "cli" / "newllm_worker.py"


@contextlib.contextmanager
def worker(folder: Path, hub_url: str, overrides: dict) -> Iterator[Callable[..., dict]]:
    """Yields `ask(argv=[…])`, which returns exit code and output; `ask.folder` is where the process is.

    Args:
        hub_url: the hub that it knows.
        overrides: recipe keys that the notebooks' forms are trained with.
    """
    blocking = ("HF_", "TRANSFORMERS_OFFLINE", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(blocking)}
    environment |= {
        "HF_ENDPOINT": hub_url,
        "HF_TOKEN": TOKEN,
        "HF_HOME": str(folder / "hf"),
        "NEWLLM_CACHE": str(folder / "cache"),
        "NEWLLM_DEVICE": "cpu",
        "NEWLLM_NOTEBOOK_OVERRIDES": json.dumps(overrides),
    }
    with open(folder / "errors", "w") as errors:
        process = subprocess.Popen(
            [sys.executable, str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=folder,
            env=environment,
        )

    def ask(**asked) -> dict:
        process.stdin.write(json.dumps(asked) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
        assert line, (folder / "errors").read_text()
        return json.loads(line)

    ask.folder = folder
    yield ask
    process.stdin.close()
    process.wait(20)
