"""`newllm bench`: what is asked for is run, appended and drawn; what is not there is one line."""

import json

import pytest

from newllm_lib.benchmarks import decode, quality, speed
from newllm_lib.benchmarks.rows import read
from newllm_lib.cli import main
from newllm_lib.device import probe


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def measured(rows, *args, **options):
    rows.add("New-LLM, captured step", "decoding after 16 tokens, batch 1", 8000.0, "tokens/s")


def test_figures_are_appended_drawn_and_given_as_json(here, monkeypatch, capsys):
    asked = {}
    monkeypatch.setattr(decode, "run", lambda rows, **options: (asked.update(options), measured(rows)))
    words = ["bench", "decode", "--histories", "16", "300", "--batches", "2", "--ways", "new_llm", "--tokens", "8"]
    assert main([*words, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert row["value"] == "8000" and asked == {"histories": [16, 300], "batches": [2], "tokens": 8, "ways": ["new_llm"]}
    assert main(words) == 0
    assert len(read(here / "benchmarks" / "results.csv")) == 2 and (here / "docs" / "decode.png").is_file()


def test_speed_asks_for_the_setting_that_was_given(here, monkeypatch):
    asked = {}
    monkeypatch.setattr(speed, "run", lambda rows, ways, **options: asked.update(ways=ways, **options))
    assert main(["bench", "speed", "--ways", "seed:eager", "--batch", "16", "--steps", "3"]) == 0
    sizes = {"batch": 16, "length": 128, "vocabulary": 4096 if probe().torch_device == "cpu" else 8192}
    assert asked == {"ways": ["seed:eager"], "steps": 3, "jobs": 1, **sizes}
    assert not (here / "benchmarks").exists()  # nothing came out


def test_quality_says_what_is_left(here, monkeypatch, capsys):
    monkeypatch.setattr(quality, "run", lambda *args, **options: None)
    assert main(["bench", "quality", "--models", "lstm", "--minutes", "1"]) == 0
    assert "Not complete yet: chitchat lstm 4M" in capsys.readouterr().out


@pytest.mark.parametrize(("words", "message", "code"), [
    (["bench"], "required", 2), (["bench", "memory"], "invalid choice", 2),
    (["bench", "speed", "--ways", "gpt3"], "gpt2:eager", 2), (["bench", "quality", "--models", "rnn"], "lstm", 2),
    (["bench", "quality", "--sizes", "5M"], "4M", 2), (["bench", "decode", "--tokens", "0"], "from 1 on", 2),
    (["bench", "quality", "--corpora", "wikitext2", "--models", "lstm"], "--text", 2),
    (["bench", "quality", "--corpora", "bible", "--models", "lstm"], "chitchat", 2),
    (["bench", "table"], "results.csv", 1),
])  # fmt: skip
def test_what_is_not_there_is_one_line(words, message, code, here, capsys):
    assert main(words) == code
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
