"""The next command, as it can be typed where the user is."""

from __future__ import annotations

import sys
import sysconfig

import pytest

from newllm_lib.cli import _from_the_users_folder
from newllm_lib.cli.hints import command, word_for
from newllm_lib.runs import Run, write_status


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """An environment in tmp_path/.venv with `newllm` in it; we stand in tmp_path."""
    scripts = tmp_path / ".venv" / "bin"
    scripts.mkdir(parents=True)
    (scripts / "newllm").write_text("#!/bin/sh\n")
    (scripts / "newllm").chmod(0o755)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(scripts))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.chdir(tmp_path)
    return scripts


def test_the_path_is_shown_where_newllm_alone_is_not_found(installed, tmp_path, monkeypatch):
    assert command("chat", "my run") == ".venv/bin/newllm chat 'my run'"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert command("chat") == f"{installed}/newllm chat"


def test_newllm_alone_where_it_is_found(installed, monkeypatch):
    monkeypatch.setenv("PATH", str(installed))
    assert command("demo") == "newllm demo"


def test_python_where_nothing_is_installed(installed):
    (installed / "newllm").unlink()
    assert command("demo") == f"{sys.executable} -m newllm_lib demo"


def test_a_cd_where_the_bootstrap_was_started_elsewhere(installed, tmp_path, monkeypatch):
    monkeypatch.setenv("NEWLLM_STARTED_IN", str(tmp_path))
    assert command("demo") == ".venv/bin/newllm demo"
    monkeypatch.setenv("NEWLLM_STARTED_IN", "/")
    assert command("demo") == f"cd {tmp_path} && .venv/bin/newllm demo"


def test_a_run_is_called_by_its_name_if_that_is_enough(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("checkpoints/one", "elsewhere/two"):
        write_status(Run(folder), state="done")
    assert word_for(Run("checkpoints/one")) == "one"
    assert word_for(Run("elsewhere/two")) == "elsewhere/two"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--data", "pairs.jsonl"], ["--data", "{here}/pairs.jsonl"]),
        (["--data", "wikitext"], ["--data", "wikitext"]),
        (["--data=pairs.jsonl"], ["--data={here}/pairs.jsonl"]),
        (["--tokenizer", "./x"], ["--tokenizer", "{here}/./x"]),
        (["--tokenizer", "words"], ["--tokenizer", "words"]),
        (["--base", "x/y"], ["--base", "{here}/x/y"]),
        (["--base", "gpt2/medium"], ["--base", "gpt2/medium"]),
        (["--from", "x/y", "--teacher=x/y"], ["--from", "{here}/x/y", "--teacher={here}/x/y"]),
        (["--resume", "checkpoint-3"], ["--resume", "checkpoint-3"]),
        (["--data-dir", "new", "--output_dir=new"], ["--data-dir", "{here}/new", "--output_dir={here}/new"]),
        (["mine.yaml", "--mirror_dir", "/abs"], ["{here}/mine.yaml", "--mirror_dir", "/abs"]),
    ],
)
def test_paths_are_those_of_the_folder_of_the_bootstraps_start(tmp_path, monkeypatch, words, expected):
    (tmp_path / "x" / "y").mkdir(parents=True)
    (tmp_path / "words").mkdir()
    (tmp_path / "pairs.jsonl").write_text("{}")
    monkeypatch.setenv("NEWLLM_STARTED_IN", str(tmp_path))
    assert _from_the_users_folder(words) == [word.format(here=tmp_path) for word in expected]
