"""A process that prepares data from the tests' hub."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path


@contextlib.contextmanager
def hub_worker(hub, tmp_path_factory):
    """A process that knows `hub`: gives a function that prepares data there, see `hub_worker.py`."""
    blocking = ("HF_", "TRANSFORMERS_OFFLINE", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(blocking)}
    environment |= {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path_factory.mktemp("hf")),
        "HF_HUB_DOWNLOAD_TIMEOUT": "1",
    }
    errors = tmp_path_factory.mktemp("worker") / "stderr"
    with open(errors, "w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.hub_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=environment,
            cwd=Path(__file__).parents[2],
        )

    def ask(cache, **fields):
        recipe = {
            "data_dir": None,
            "max_samples": None,
            "tokenizer": "bpe",
            "vocab_size": 300,
            "max_seq_length": 16,
            "loss_on": "everything",
            "streaming": "auto",
            "template": "chat",
            "carry_state": False,
            "seed": 0,
        }
        process.stdin.write(json.dumps({**recipe, **fields, "cache": str(cache)}) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
        assert line, errors.read_text()
        return json.loads(line)

    yield ask
    process.stdin.close()
    process.wait(20)
