"""Every command that writes where the user says: what is not ours stays, to the last byte, and the refusal is
one line.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from newllm_lib.cli import main
from newllm_lib.cli.bench import open_benchmark
from newllm_lib.cli.parser import benchmark_parser, build, parse
from newllm_lib.errors import UsageError
from newllm_lib.runs import mark_folder
from newllm_lib.runs.ownership import MARK, read_mark
from tests.helpers.old_folders import FIXTURES, HALF_DONE, put

TARGETS = ("clone", "home", "file", "link", "run", "export", "dot")
SIZES = ["1" if word == "12" else word for word in HALF_DONE[2:]]  # one step is enough
NAME = "new_llm_demo_text_layers1_hidden8_context8_mlp16_len32_vocab300"
TARGET = "@"  # where the user's word goes


@dataclass
class Case:
    """A flag that names a place to write to.

    words: the command. inside: where below the place it writes ("" there itself). done: the targets that it
    may write to, because nothing of another's is in its way or it made them; all others are refused.
    left_out: done too, but slow.
    """

    words: list[str]
    inside: str = ""
    done: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


CASES = {
    "train --output_dir": Case(["train", "demo", *SIZES, "--output_dir", TARGET], done=("clone",)),
    "train --mirror_dir": Case(
        ["train", "demo", *SIZES, "--output_dir", "trained", "--mirror_dir", TARGET], "trained", ("clone",)
    ),
    "demo --output_dir": Case(["demo", *SIZES, "--output_dir", TARGET], done=("clone",)),
    "demo --mirror_dir": Case(
        ["demo", *SIZES, "--output_dir", "trained", "--mirror_dir", TARGET], NAME, (), ("clone",)
    ),
    "compare --output_dir": Case(
        ["compare", "phase7", "sequential", "--output_dir", TARGET],
        done=("clone",),
        left_out=("run", "export"),
    ),
    "export --output_dir": Case(["export", "phase7", "--output_dir", TARGET], done=("export",)),
    "expand --output_dir": Case(["expand", "sequential", "--context_dim", "24", "--output_dir", TARGET]),
    "data preferences --output": Case(["data", "preferences", "--count", "20", "--output", TARGET]),
    "data get --output": Case(["data", "get", "text", "--output", TARGET]),
    "data mix --output": Case(
        ["data", "mix", "--weights", "text=1", "--documents", "30", "--output", TARGET]
    ),
    "runs restore --into": Case(
        ["runs", "restore", "half_done", "--from", "mirror", "--into", TARGET], "half_done", ("clone",)
    ),
    "data show --picture": Case(["data", "show", "text", "--picture", TARGET]),
    "bench speed --out": Case(["bench", "speed", "--out", TARGET]),
    "bench speed --picture": Case(["bench", "speed", "--out", "figures.csv", "--picture", TARGET]),
}
READ = {
    "data_dir",
    "tokenizer",
    "from",
    "teacher",
    "base",
    "data",
    "documents",
    "dialogues",
    "reward",
}  # flags that speak of a folder or file and only read it


def leaves(parser: argparse.ArgumentParser, name: str = "") -> dict[str, argparse.ArgumentParser]:
    """Every command by its words."""
    subs = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    found = {} if subs and subs[0].required else {name: parser}
    for word, sub in subs[0].choices.items() if subs else ():
        found |= leaves(sub, f"{name} {word}".strip())
    return found


def open_benchmarks() -> list[str]:
    """The names of all benchmarks."""
    open_benchmark(["speed"])
    return list(sys.modules["benchmarks"].BENCHMARKS)


def flags_that_write() -> set[str]:
    """`command --flag` of all flags whose name or help speaks of a file or folder, but those that only read
    it.
    """
    found = set()
    benchmarks = {f"bench {name}": benchmark_parser(*open_benchmark([name])) for name in open_benchmarks()}
    for name, parser in (leaves(build()[0]) | benchmarks).items():
        for action in parser._actions if name != "doctor" else ():
            says = re.search(
                r"folder|\bfile\b|picture|CSV|output|^into", f"{action.dest} {action.help}", re.IGNORECASE
            )
            takes_a_word = action.option_strings and action.nargs != 0 and not action.choices
            # `data show` and `data check` take a recipe's keys, and train nothing
            nowhere = name in ("data show", "data check") and action.dest != "picture"
            if takes_a_word and says and action.option_strings[0][2:] not in READ and not nowhere:
                found.add(f"{name} {action.option_strings[0]}")
    return found


def test_no_flag_that_writes_is_forgotten():
    """The benchmarks' other flags: the same two for each, files that are appended to, runs, which
    training looks after, and working folders; `note` and `segment_kib` write nothing.
    """
    missing = flags_that_write() - set(CASES)
    assert {flag for flag in missing if not flag.startswith("bench ")} == set()
    assert set(CASES) <= flags_that_write()
    others = {flag.split("--")[1] for flag in missing}
    assert others <= {
        "out",
        "picture",
        "journal",
        "data",
        "text",
        "work",
        "pages",
        "folder",
        "note",
        "segment_kib",
    }


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def make(target: str, place: Path) -> None:
    """Put at `place` what a user may have there."""
    clone = {
        ".git/HEAD": "ref: main",
        ".git/objects/ab/cd": "x",
        "README.md": "# Mine",
        "src/main.py": "1",
        "data/train.csv": "a",
    }
    home = {
        **clone,
        "best/me.jpg": "a picture",
        "last/notes.txt": "mine",
        "checkpoint-1/x": "mine",
        "train.log": "mine",
        "curves.png": "a picture",
        "comparison.md": "mine",
        "status.json": '{"state": "on"}',
        "train.jsonl": "{}",
        "mix.json": "{}",
    }
    place.parent.mkdir(parents=True, exist_ok=True)
    if target == "file":
        place.write_text("mine\n")
    elif target == "link":
        write(place.with_name("elsewhere"), home)
        place.symlink_to(place.with_name("elsewhere"))
    elif target in ("run", "export"):
        shutil.copytree(FIXTURES / {"run": "sequential", "export": "exported"}[target], place)
    else:
        write(place, clone if target == "clone" else home)
        (place / "a link").symlink_to("README.md")


def listing(folder: Path) -> dict[str, str | bytes | None]:
    """Everything below: the bytes of files, where links lead."""
    found: dict[str, str | bytes | None] = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        found[name] = (
            str(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        )
    return found


def words_of(case: Case, folder: Path, place: str) -> list[str]:
    """The command, with the fixtures' absolute names: it is called from several folders."""
    named = ("text", "phase7", "sequential", "mirror", "trained", "figures.csv")
    words = [str(folder / word) if word in named else word for word in case.words]
    return [place if word == TARGET else word.replace("text=", f"{folder / 'text'}=") for word in words]


@pytest.mark.parametrize(
    ("flag", "target"),
    [(flag, target) for flag in CASES for target in TARGETS if target not in CASES[flag].left_out],
)
def test_what_is_not_ours_is_never_touched(tmp_path, monkeypatch, capsys, flag, target):
    case, place = CASES[flag], tmp_path / "users"
    put(tmp_path, "phase7", "sequential", "mirror")
    make(target, place / case.inside)
    if case.inside:
        place.mkdir(exist_ok=True)
    monkeypatch.chdir(place if target == "dot" else tmp_path)
    users = [place, tmp_path / "elsewhere"]
    before = [listing(p) if p.is_dir() else p.read_bytes() if p.is_file() else None for p in users]
    code = main(words_of(case, tmp_path, "." if target == "dot" else "users"))
    said = capsys.readouterr().err
    after = [listing(p) if p.is_dir() else p.read_bytes() if p.is_file() else None for p in users]
    if target not in case.done:
        assert code == 2 and said.startswith("newllm: ") and said.count("\n") == 1, said
        assert after == before
    elif flag.startswith("export"):
        assert code == 0 and read_mark(place)["run"] == "phase7"
    else:
        assert code == 0, said
        assert {name: content for name, content in after[0].items() if name in before[0]} == before[0]


@pytest.mark.parametrize(
    "flag", ["export --output_dir", "data get --output", "data mix --output", "data preferences --output"]
)
def test_what_a_command_made_it_replaces(tmp_path, monkeypatch, flag):
    put(tmp_path, "phase7")
    monkeypatch.chdir(tmp_path)
    words = words_of(CASES[flag], tmp_path, "made/here")
    assert main(words) == 0
    made = tmp_path / "made" / "here"
    if made.is_dir():
        assert (made / MARK).is_file()
        (made / ".DS_Store").touch()
    assert main(words) == 0
    assert [p.name for p in made.parent.iterdir()] == ["here"]


def test_a_mixture_of_version_0_1_0_is_replaced(tmp_path, monkeypatch):
    put(tmp_path, "mixture")
    monkeypatch.chdir(tmp_path)
    assert main(words_of(CASES["data mix --output"], tmp_path, "mixture")) == 0
    assert read_mark(tmp_path / "mixture")["what"] == "mixture"


@pytest.mark.parametrize("name", ["../../elsewhere", "", "a/b", "-run"])
def test_a_name_of_a_run_is_a_name(tmp_path, monkeypatch, capsys, name):
    put(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["train", "demo", *SIZES, f"--run_name={name}"]) == 2
    said = capsys.readouterr().err
    assert "is no name" in said and said.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["text"]


@pytest.mark.parametrize("target", ["clone", "home", "file"])
def test_a_benchmarks_folder_is_never_somebody_elses(target, tmp_path):
    make(target, tmp_path / "mine")
    before = listing(tmp_path)
    with pytest.raises(UsageError, match="--folder, e.g. .*mine_2"):
        parse(["bench", "dpo", "--folder", str(tmp_path / "mine")])
    assert listing(tmp_path) == before


def test_a_benchmarks_own_folder_is_gone_on_with(tmp_path):
    folder = tmp_path / "work"
    parse(["bench", "dpo", "--folder", str(folder)])
    assert not folder.exists()  # it is made when the benchmark begins
    folder.mkdir()
    mark_folder(folder, "benchmark", "dpo")
    (folder / "results.json").touch()
    parse(["bench", "dpo", "--folder", str(folder)])
