"""The line of the README as it is: curl from a web server, clone from a git server, train for real, twice at
once.
"""

from __future__ import annotations

import functools
import http.server
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.helpers.working_tree import ROOT, copy_working_tree, git

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
LONG = (
    "--sized_for cpu --max_steps 100000 --epochs 100000 --max_samples 200 --vocab_size 400 --num_layers 1 "
    "--hidden_size 16 --context_dim 16 --mlp_size 16 --batch_size 4 --max_seq_length 32 --output_dir job"
).split()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def web(tmp_path):
    """The address of a server that has the script, and this working tree as a repository that git
    can clone.
    """
    tree, served = tmp_path / "tree", tmp_path / "served"
    copy_working_tree(tree)
    git(tree, "init", "--quiet", "--initial-branch=main")
    git(tree, "add", ".")
    git(tree, "commit", "--quiet", "--message", "all")
    served.mkdir()
    git(tmp_path, "clone", "--quiet", "--bare", str(tree), str(served / "new-llm.git"))
    git(served / "new-llm.git", "update-server-info")
    shutil.copy(ROOT / "colab_bootstrap.sh", served)
    handler = functools.partial(Quiet, directory=str(served))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def line(web, tmp_path):
    """Starts `curl … | bash -s -- WORDS` in an empty home; whatever trains there at the end is stopped."""
    home = tmp_path / "home"
    home.mkdir()
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("NEWLLM_", "PYTHONPATH", "COLAB"))}
    environment = {
        **kept,
        "NEWLLM_CACHE": str(tmp_path / "cache"),
        "NEWLLM_REPO_URL": f"{web}/new-llm.git",
        "NEWLLM_PYTHON": str(Path(__file__).with_name("present_python.sh")),
        "REAL_PYTHON": sys.executable,
        "PIP_CALLS": str(tmp_path / "pip"),
        "HOME": str(home),
    }

    def start(*words: str) -> subprocess.Popen:
        script = f"curl -s {web}/colab_bootstrap.sh | bash -s -- {' '.join(words)}"
        return subprocess.Popen(
            ["bash", "-c", script],
            cwd=home,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def newllm(*words: str) -> str:
        words = ["bash", "-c", '"$0" -m newllm_lib "$@"', environment["NEWLLM_PYTHON"], *words]
        return subprocess.run(
            words, cwd=home / "new-llm", env=environment, capture_output=True, text=True
        ).stdout

    start.clone, start.newllm, start.job = home / "new-llm", newllm, str(home / "job")
    yield start
    newllm("runs", "stop", start.job)


def test_one_line_trains_twice_at_once_one_trains_and_changes_are_kept(line):
    began = time.monotonic()
    both = [line("demo", *LONG), line("demo", *LONG)]
    shown = [process.communicate(timeout=600)[0] for process in both]
    print(f"both had ended after {time.monotonic() - began:.0f} s")
    first, second = sorted(zip(both, shown, strict=True), key=lambda pair: pair[0].returncode)
    assert first[0].returncode == 0 and "First loss" in first[1], shown
    assert second[0].returncode == 1 and "job is already training (pid" in second[1], shown
    assert "job: running" in line.newllm("runs", "status", line.job)
    (line.clone / "newllm_lib" / "__init__.py").open("a").write("# mine\n")
    third = line("demo", *LONG)
    assert "already training" in third.communicate(timeout=300)[0]
    assert (line.clone / "newllm_lib" / "__init__.py").read_text().endswith("# mine\n")
    stopped = line.newllm("runs", "stop", line.job)
    assert "job: interrupted" in stopped, stopped
    assert list(Path(line.job).glob("new_llm_demo*/checkpoint-*"))
