"""The install cell: nothing to do inside an installed clone; elsewhere it clones, sets up, and says what went
wrong.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CELL = ROOT / "notebooks" / "src" / "cells" / "install.py"
# A repository with what the cell needs of ours: a bootstrap that leaves a mark, a package that says it is
# ready.
BOOTSTRAP = 'echo "setup $*" >> "$MARK"; exit ${SETUP_CODE:-0}'
PACKAGE = "def ready(clone=None):\n    print('ready in', clone)\n"


@pytest.fixture
def repository(tmp_path) -> Path:
    """A git repository that looks like ours."""
    here = tmp_path / "repository"
    (here / "newllm_lib" / "colab").mkdir(parents=True)
    (here / "colab_bootstrap.sh").write_text(BOOTSTRAP)
    for package in ("newllm_lib", "newllm_lib/colab"):
        (here / package / "__init__.py").touch()
    (here / "newllm_lib" / "colab" / "environment.py").write_text(PACKAGE)
    author = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", "init", "-q", str(here)], check=True)
    subprocess.run(["git", "-C", str(here), "add", "."], check=True)
    subprocess.run(["git", "-C", str(here), *author, "commit", "-q", "-m", "all"], check=True)
    return here


def run_cell(folder: Path, **environment) -> subprocess.CompletedProcess:
    """The cell in a fresh Python without our packages, in `folder`."""
    folder.mkdir(exist_ok=True)
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHONPATH", "NEWLLM", "COLAB"))}
    # -S: no site-packages, so that nothing of ours is installed here.
    return subprocess.run(
        [sys.executable, "-S", str(CELL)],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**clean, "MARK": str(folder / "mark"), **{k: str(v) for k, v in environment.items()}},
    )


def test_it_clones_sets_up_and_is_ready(repository, tmp_path):
    ended = run_cell(tmp_path / "work", NEWLLM_REPO_URL=repository)
    clone = tmp_path / "work" / "new-llm"
    assert ended.returncode == 0 and ended.stdout == f"ready in {clone}\n", ended.stderr
    assert (tmp_path / "work" / "mark").read_text() == "setup --setup-only\n"
    (clone / "checkpoints").mkdir()
    assert run_cell(tmp_path / "work", NEWLLM_REPO_URL="gone").returncode == 0  # the clone is used as it is
    assert (clone / "checkpoints").is_dir()


def test_inside_a_clone_that_clone_is_used(repository):
    inside = repository / "notebooks"
    ended = run_cell(inside, NEWLLM_REPO_URL="gone")
    assert ended.returncode == 0 and ended.stdout == f"ready in {repository}\n", ended.stderr
    assert not (inside / "new-llm").exists()


def test_a_failed_clone_is_one_line_with_the_remedy(tmp_path):
    ended = run_cell(tmp_path / "work", NEWLLM_REPO_URL=tmp_path / "nowhere")
    assert ended.returncode == 1 and "NEWLLM_REPO_URL" in ended.stderr and "Traceback" not in ended.stderr


def test_a_token_in_the_address_is_said_nowhere(tmp_path):
    address = "https://me:s3cret@odd@127.0.0.1:9/x"
    ended = run_cell(tmp_path / "work", NEWLLM_REPO_URL=address)
    assert ended.returncode == 1 and "https://127.0.0.1:9/x could not be cloned" in ended.stderr
    assert "s3cret" not in ended.stderr + ended.stdout and "odd" not in ended.stderr


def test_a_failed_set_up_stops_the_cell(repository, tmp_path):
    ended = run_cell(tmp_path / "work", NEWLLM_REPO_URL=repository, SETUP_CODE=1)
    assert ended.returncode == 1 and "installation failed" in ended.stderr and "ready" not in ended.stdout


def test_where_all_is_installed_nothing_is_done(tmp_path):
    ended = subprocess.run(
        [sys.executable, str(CELL)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "NEWLLM_REPO_URL": "gone", "PYTHONPATH": str(ROOT)},
    )
    assert ended.returncode == 0 and ended.stdout.count("\n") == 1 and "ready" in ended.stdout, ended.stderr
    assert not any(tmp_path.iterdir())
