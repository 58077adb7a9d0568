"""`newllm bench`: the benchmarks of a clone, each with its flags; what is asked for is run, appended and
drawn; what is not there is one line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import BENCHMARKS, decode, quality, speed
from benchmarks.common import read
from newllm_lib.cli import bench, main
from newllm_lib.device import probe

ROOT = Path(__file__).parents[2]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def measured(rows, *args, **options):
    rows.add("New-LLM, captured step", "decoding after 16 tokens, batch 1", 8000.0, "tokens/s")


def test_each_is_listed_and_shows_its_flags(here, capsys):
    assert main(["bench"]) == 0
    listed = capsys.readouterr().out
    for name in BENCHMARKS:
        assert f"  {name} " in listed
        assert main(["bench", name, "--help"]) == 0
        assert f"usage: newllm bench {name}" in capsys.readouterr().out
    modules = {
        path.stem for path in (ROOT / "benchmarks").glob("*.py") if "def add_arguments" in path.read_text()
    }
    assert modules == set(BENCHMARKS)


def test_it_is_the_clones_folder_whatever_lies_where_one_stands(here):
    (here / "benchmarks").mkdir()
    (here / "benchmarks" / "__init__.py").write_text("raise SystemExit('not this one')")
    code = "import sys; from newllm_lib.cli import main; sys.exit(main(['bench', 'scaling_model']))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=here)
    assert ended.returncode == 0 and "| New-LLM 25M" in ended.stdout, ended.stderr


def test_an_installed_package_says_how_to_get_them(here, monkeypatch, capsys):
    monkeypatch.setattr(bench, "CLONE", here)
    assert main(["bench", "speed"]) == 2
    error = capsys.readouterr().err
    assert "git clone" in error and error.count("\n") == 1


def test_figures_are_appended_drawn_and_given_as_json(here, monkeypatch, capsys):
    asked = {}
    monkeypatch.setattr(decode, "run", lambda rows, **options: (asked.update(options), measured(rows)))
    words = [
        "bench",
        "decode",
        "--histories",
        "16",
        "300",
        "--batches",
        "2",
        "--ways",
        "new_llm",
        "--tokens",
        "8",
    ]
    assert main([*words, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert row["value"] == "8000" and asked == {
        "histories": [16, 300],
        "batches": [2],
        "tokens": 8,
        "ways": ["new_llm"],
    }
    assert main(words) == 0
    assert (
        len(read(here / "benchmarks" / "results.csv")) == 2
        and (here / "docs" / "images" / "decode.png").is_file()
    )


def test_speed_asks_for_the_setting_that_was_given(here, monkeypatch, capsys):
    asked = {}
    monkeypatch.setattr(speed, "run", lambda rows, ways, **options: asked.update(ways=ways, **options))
    assert main(["bench", "speed", "--ways", "seed:eager", "--batch", "16", "--steps", "3"]) == 1
    sizes = {"batch": 16, "length": 128, "vocabulary": 4096 if probe().torch_device == "cpu" else 8192}
    chosen = {"ways": ["seed:eager"], "steps": 3, "jobs": 1, "size": "4M", "clone": None}
    assert asked == {**chosen, **sizes}
    assert "Nothing could be measured" in capsys.readouterr().err
    assert not (here / "benchmarks").exists()  # nothing came out


def test_flags_have_both_spellings(here, monkeypatch):
    asked = {}
    monkeypatch.setattr("benchmarks.phase7.run", lambda *given: asked.update(given=given))
    monkeypatch.setenv("NEWLLM_DEVICE", "h100")
    main(["bench", "phase7", "--side-by-side", "--limit", "8", "--ways", "lowest"])
    assert asked["given"][1:] == (["lowest"], 6, 8.0, True)


def test_quality_says_what_is_left(here, monkeypatch, capsys):
    monkeypatch.setattr(quality, "train_missing", lambda *args, **options: None)
    monkeypatch.setattr(quality, "open_corpus", lambda *args: None)
    assert main(["bench", "quality", "--models", "lstm", "--minutes", "1"]) == 0
    assert "Not complete yet: chitchat lstm 4M" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message", "code"),
    [
        (["bench", "memory"], "speed", 2),
        (["bench", "speed", "--stepz", "3"], "--steps", 2),
        (["bench", "speed", "--ways", "gpt3"], "gpt2:eager", 2),
        (["bench", "quality", "--models", "rnn"], "lstm", 2),
        (["bench", "quality", "--sizes", "5M"], "4M", 2),
        (["bench", "decode", "--tokens", "0"], "from 1 on", 2),
        (["bench", "quality", "--corpora", "wikitext2", "--models", "lstm"], "--text", 2),
        (["bench", "quality", "--corpora", "bible", "--models", "lstm"], "chitchat", 2),
        (["bench", "ops", "no_op"], "gated_scan", 2),
        (["bench", "variants", "phase7", "--only", "x"], "no AR-SSM", 2),
        (["bench", "table"], "results.csv", 1),
    ],
)
def test_what_is_not_there_is_one_line(words, message, code, here, capsys):
    assert main(words) == code
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
