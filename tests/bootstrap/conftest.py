"""colab_bootstrap.sh against a repository in a folder and a Python that installs nothing (see
fake_python.sh).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.helpers.working_tree import ROOT, SCRIPT, git

ADDRESS = "https://github.com/rato-tokyo/new-llm"


@pytest.fixture
def world(tmp_path):
    """A machine: `home` to work in, `repository` behind the owner's address, programs in `bin`."""
    for name in ("home", "repository/newllm_lib", "bin"):
        (tmp_path / name).mkdir(parents=True)
    repository, programs = tmp_path / "repository", tmp_path / "bin"
    package = ("newllm_lib/__init__.py", "newllm_lib/__init__.pyi", "newllm_lib/pip_report.py")
    for name in ("colab_bootstrap.sh", "setup.py", "constraints.txt", *package, ".gitignore"):
        shutil.copy(ROOT / name, repository / name)
    git(repository, "init", "--quiet", "--initial-branch=main")
    git(repository, "add", ".")
    git(repository, "commit", "--quiet", "--message", "first")
    for name in (
        "git",
        "bash",
        "cat",
        "cksum",
        "cp",
        "dirname",
        "grep",
        "ls",
        "mkdir",
        "mv",
        "rmdir",
        "sed",
        "sleep",
        "tail",
    ):
        (programs / name).symlink_to(shutil.which(name))
    shutil.copy(Path(__file__).with_name("fake_python.sh"), programs / "python3")
    environment = {
        "PATH": str(programs),
        "HOME": str(tmp_path / "home"),
        "CALLS": str(tmp_path / "calls"),
        "REAL_PYTHON": sys.executable,
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{repository}.insteadOf",
        "GIT_CONFIG_VALUE_0": ADDRESS,
    }

    def piped(*words: str, script: bytes | None = None, folder: Path | None = None, **more: str):
        """As `curl … | bash -s -- WORDS`."""
        return subprocess.run(
            ["bash", "-s", "--", *words],
            cwd=folder or tmp_path / "home",
            env={**environment, **more},
            timeout=60,
            input=SCRIPT.read_bytes() if script is None else script,
            capture_output=True,
        )

    def calls(kind: str) -> list[str]:
        path = tmp_path / "calls"
        return (
            [line for line in path.read_text().splitlines() if f"-m {kind}" in line] if path.exists() else []
        )

    return SimpleNamespace(
        home=tmp_path / "home",
        repository=repository,
        programs=programs,
        environment=environment,
        piped=piped,
        calls=calls,
        clone=tmp_path / "home" / "new-llm",
    )


@pytest.fixture
def in_clone(world):
    """As `bash colab_bootstrap.sh WORDS` inside a clone, from the folder `start`."""
    git(world.home, "clone", "--quiet", str(world.repository), "new-llm")

    def run(*words: str, start: Path | None = None, **more: str):
        return subprocess.run(
            ["bash", str(world.clone / "colab_bootstrap.sh"), *words],
            cwd=start or world.clone,
            timeout=60,
            env={**os.environ, **world.environment, **more},
            capture_output=True,
            input=b"not for the job",
        )

    return run
