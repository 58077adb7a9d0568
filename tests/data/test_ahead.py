"""Data prepared by another process while a command imports: the same data, said once, nothing left behind."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from newllm_lib.data import ahead, prepare, prepare_ahead
from newllm_lib.errors import NewLLMError
from newllm_lib.recipe import load_recipe


def keys(folder, **changes):
    return {
        "data_dir": str(folder),
        "sized_for": "cpu",
        "vocab_size": "300",
        "max_seq_length": "8",
        "streaming": "off",
        **changes,
    }


@pytest.fixture
def talks(tmp_path, monkeypatch):
    monkeypatch.setenv("NEWLLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    folder = tmp_path / "talks"
    folder.mkdir()
    (folder / "train.txt").write_text("\n\n".join(f"Story {i} of a cat and a dog." for i in range(300)))
    return folder


def test_it_makes_what_prepare_makes_and_says_it_once(talks, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("NEWLLM_CACHE", str(tmp_path / "by itself"))
    alone = prepare(load_recipe("wikitext", keys(talks)))
    said = capsys.readouterr().out
    monkeypatch.setenv("NEWLLM_CACHE", str(tmp_path / "cache"))
    ahead.start("wikitext", keys(talks))
    found = prepare(load_recipe("wikitext", keys(talks)))
    assert found.fingerprint == alone.fingerprint and found.train.ids.tolist() == alone.train.ids.tolist()
    assert capsys.readouterr().out == said and "Packing" in said


def test_it_needs_no_torch(talks):
    code = "import sys; from newllm_lib.data import prepare_ahead; code = prepare_ahead.main(*sys.argv[1:])\n"
    code += "print(code, sys.modules['torch'], 'transformers' in sys.modules)"
    words = [sys.executable, "-c", code, "wikitext", json.dumps(keys(talks))]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.read().splitlines()[-1] == "0 None True"
    process.communicate()


def test_what_fails_there_is_reported_here(talks, capsys):
    (talks / "train.txt").write_bytes(b"\xff\xfe\x00bad \xff" * 100)
    ahead.start("wikitext", keys(talks))
    process = ahead._process
    process.wait()
    with pytest.raises(NewLLMError):
        prepare(load_recipe("wikitext", keys(talks)))
    assert process.returncode and ahead._process is None


def test_it_ends_with_its_command(talks):
    code = (
        "import sys, time; from newllm_lib.data import ahead; ahead.start(*sys.argv[1:2], {'data': 'demo'})\n"
    )
    code += "print(ahead._process.pid, flush=True); time.sleep(60)"
    command = subprocess.Popen([sys.executable, "-c", code, "demo"], stdout=subprocess.PIPE, text=True)
    pid = int(command.stdout.readline())
    os.kill(pid, signal.SIGSTOP)  # it is in the midst of its work
    command.kill()
    command.wait()
    os.kill(pid, signal.SIGCONT)
    for _ in range(100):
        if not os.path.exists(f"/proc/{pid}") or "\tZ" in open(f"/proc/{pid}/status").read():
            break
        time.sleep(0.1)
    else:
        os.kill(pid, signal.SIGKILL)
        pytest.fail("it went on")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"tokenizer": "gpt2"}, False),
        ({"data": "wikitext"}, False),
        ({"data": "owner/name"}, False),
        ({"base": "owner/name"}, False),
    ],
    ids=str,
)
def test_only_what_needs_no_network(changes, expected):
    recipe = load_recipe("demo", {"sized_for": "cpu", **changes})
    assert prepare_ahead.needs_no_network(recipe) is expected


def test_one_of_several_processes_does_not_begin(talks, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    ahead.start("wikitext", keys(talks))
    assert ahead._process is None
