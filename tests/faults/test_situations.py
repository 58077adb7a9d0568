"""Random situations of a user's machine, through the commands' entry function in one process: each command
ends with one line and its exit code, and none of them asks to report a defect.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import random
import shutil
import sys
from pathlib import Path

import pytest

from newllm_lib.cli import main
from newllm_lib.cli.plain_errors import in_plain_words
from newllm_lib.errors import NewLLMError, UsageError, without_secrets
from newllm_lib.runs import Mirror, Run
from tests.helpers.bad_input import ODD, TINY
from tests.helpers.small_runs import write_text

SEED = int(os.environ.get("NEWLLM_SITUATIONS_SEED", "20261130"))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run, its copy, an export and a text to train on."""
    folder = tmp_path_factory.mktemp("made")
    write_text(folder)
    output = str(folder / "checkpoints" / "run")
    words = ["--data_dir", str(folder / "text"), "--output_dir", output, *TINY, "--max_steps", "3"]
    assert main(["train", "demo", *words]) == 0
    assert main(["export", output, "--output_dir", str(folder / "exported")]) == 0
    (folder / "copies").mkdir()
    Mirror(Run(output), folder / "copies").copy()
    return folder


class Denied:
    """Folders and files that may not be read or written, as for a user who is not root."""

    def __init__(self, monkeypatch):
        self.coming: list[str] = []  # when all else is changed
        self.places: list[str] = []
        of_os = ("listdir", "scandir", "stat", "mkdir", "open", "rename", "replace", "unlink")
        for module, name in ((builtins, "open"), (io, "open"), *((os, name) for name in of_os)):
            self.patch(monkeypatch, module, name)

    def patch(self, monkeypatch, module, name: str) -> None:
        real = getattr(module, name)

        def checked(path=".", *words, **more):
            if isinstance(path, (str, Path)) and self.denies(os.path.abspath(path), name):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return real(path, *words, **more)

        monkeypatch.setattr(module, name, checked)

    def denies(self, path: str, name: str) -> bool:
        inside = any(path.startswith(f"{place}/") for place in self.places)
        return inside or (path in self.places and name != "stat")


def some(chance: random.Random, folder: Path) -> Path:
    """A file or folder below `folder`."""
    return chance.choice(sorted(folder.rglob("*")) or [folder])


def change(chance: random.Random, folder: Path, denied: Denied, monkeypatch) -> str:
    """One thing that is not as it should be; what it is, in words."""
    place = some(
        chance, folder / chance.choice(["checkpoints", "checkpoints/run", "copies", "exported", "text"])
    )
    what = chance.choice(
        [
            "gone",
            "denied",
            "a folder",
            "a file",
            "a link to nothing",
            "a link to itself",
            "cut",
            "noise",
            "odd",
        ]
        + ["an odd name", "a denied cache", "no home", "a long name", "a foreign file", "a pipe"]
    )
    if what == "denied":
        denied.coming.append(os.path.abspath(place))
    elif what in ("a denied cache", "no home"):
        monkeypatch.setenv("NEWLLM_CACHE", str(folder / "text" / "train.txt"))
        if what == "no home":
            monkeypatch.delenv("NEWLLM_CACHE")
            monkeypatch.delenv("HOME", raising=False)
            monkeypatch.setattr(Path, "home", staticmethod(no_home))
    elif what == "an odd name":
        name = chance.choice(["-run", "a\nb", "\x1b[2J", "ほ", " ", "x" * 200])
        (folder / "checkpoints" / name).mkdir(exist_ok=True)
    elif what == "a foreign file":
        (folder / "exported" / "mine.txt").write_text("mine")
    elif what in ("cut", "noise", "odd") and place.is_file():
        data = place.read_bytes()
        odd = chance.choice(ODD).encode(errors="surrogateescape")
        place.write_bytes({"cut": data[: len(data) // 2], "noise": chance.randbytes(100), "odd": odd}[what])
    elif what not in ("cut", "noise", "odd"):
        shutil.rmtree(place) if place.is_dir() and not place.is_symlink() else place.unlink(missing_ok=True)
        if what == "a folder":
            place.mkdir()
        elif what == "a file":
            place.write_text("x")
        elif what == "a pipe":
            os.mkfifo(place)
        elif what.startswith("a link"):
            place.symlink_to(place if what.endswith("itself") else "/nowhere")
    return f"{place.relative_to(folder)}: {what}"


def no_home() -> Path:
    raise RuntimeError("Could not determine home directory.")


def a_command(chance: random.Random, folder: Path) -> list[str]:
    run = "checkpoints/run"
    place = chance.choice(["exported", "out", ".", "text", run, "text/train.txt", "x" * 300, "a/b/c"])
    data = chance.choice(["text", place])
    known, short = chance.choice(["run", run, "exported", "no_such_run", f"{run}/best", "/etc", "."]), [*TINY]
    short += ["--max_steps", "3"]
    return chance.choice(
        [
            ["runs"],
            ["runs", "status", known],
            ["runs", "logs", known],
            ["runs", "stop", known],
            ["runs", "restore", "run", "--from", "copies", "--into", chance.choice(["new", place])],
            ["runs", "restore", "--from", place],
            ["recipes", "show", chance.choice(["demo", place, "checkpoints/run"])],
            ["evaluate", known],
            ["chat", known],
            ["compare", known, "run", "--output_dir", place],
            ["export", known, "--output_dir", place],
            ["export", known, "--push", "me/model"],
            ["expand", known, "--context_dim", "32", "--output_dir", place],
            ["train", "demo", "--data_dir", data, "--output_dir", run, *short],
            ["train", chance.choice(["checkpoints/run", place]), "--max_steps", "3"],
            ["train", "demo", "--data_dir", "text", "--output_dir", place, *TINY, "--max_steps", "0"],
            ["data", "mix", "demo=1", "--output", place],
        ]
    )  # fmt: skip


def try_one(number: int, made: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    chance = random.Random(SEED + number)
    folder = tmp_path / "here"
    shutil.copytree(made, folder, symlinks=True)
    for record in folder.rglob("recipe.yaml"):  # its folder is this one
        record.write_text(record.read_text().replace(str(made), str(folder)))
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_TOKEN", "a token of nobody")
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n/quit\n"))
    denied = Denied(monkeypatch)
    changes = [change(chance, folder, denied, monkeypatch) for _ in range(chance.choice((0, 1, 1, 2, 3)))]
    denied.places, words = denied.coming, a_command(chance, folder)
    situation = f"NEWLLM_SITUATIONS_SEED={SEED} number {number}: newllm {' '.join(words)} with {changes}"
    capsys.readouterr()
    try:
        code = main(words)
    except BaseException as error:
        raise AssertionError(f"{situation}: {type(error).__name__}: {error}") from error
    finally:
        denied.places = []
    err = capsys.readouterr().err
    assert "report it" not in err and "Traceback" not in err, f"{situation}: {err}"
    assert code in (0, 1, 2), f"{situation}: {code}"
    assert code == 0 or err.splitlines()[-1].startswith("newllm: "), f"{situation}: {err}"


@pytest.mark.parametrize("number", range(50))
def test_a_situation(number, made, tmp_path, monkeypatch, capsys):
    try_one(number, made, tmp_path, monkeypatch, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(50, 550))
def test_many_situations(number, made, tmp_path, monkeypatch, capsys):
    try_one(number, made, tmp_path, monkeypatch, capsys)


def test_what_is_in_no_table_is_a_defect_and_the_rest_is_not():
    import json
    import zipfile

    import httpx

    for error in (
        OSError(errno.EIO, "Input/output error", "/disk/x"),
        FileNotFoundError(errno.ENOENT, "No such file or directory", b"/disk/x"),
        PermissionError(13, "Permission denied"),
        OSError("no number"),
        type("RequestException", (Exception,), {})("no route"),
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("slow"),
        MemoryError(),
        ModuleNotFoundError("No module named 'torch'"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
        json.JSONDecodeError("Expecting value", "", 0),
        ValueError("embedded null byte"),
        RecursionError("maximum recursion depth exceeded while decoding a JSON array"),
        RuntimeError("Symlink loop from '/disk/x'"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
        zipfile.BadZipFile("bad"),
    ):
        line = in_plain_words(error)
        assert line and "\n" not in line and line.endswith((".", "`.")), error
    for error in (KeyError("x"), TypeError("x"), AssertionError(), IndexError(), AttributeError("x")):
        assert in_plain_words(error) is None


SECRET = "https://user:s3cret-token@example.com/x.git?token=abc123"
TOKEN = "hf_" + "a1B2" * 8


@pytest.mark.parametrize(
    "text",
    [
        "https://me:S3CRET@host/x",
        "https://me:p@S3CRET@host/x",
        "git+https://S3CRET@host/x.git is gone",
        "(http://me:S3CRET@proxy:3128)",
        "https://cdn.host/x?Expires=1&X-Amz-Signature=S3CRET&Key-Pair-Id=S3CRET",
        "https://host/x?access_token=S3CRET",
        "https://host/x?api_key=S3CRET&a=b",
        "hf_S3CRETS3CRETS3CRET",
        "github_pat_S3CRETS3CRETS3CRET",
    ],
)
def test_a_secret_is_left_out_of_a_text(text):
    assert "S3CRET" not in without_secrets(text)
    assert without_secrets("hf-internal-testing/tiny-random-gpt2 http://host/x?a=b@c") == (
        "hf-internal-testing/tiny-random-gpt2 http://host/x?a=b@c"
    )


@pytest.mark.parametrize("kind", [NewLLMError, UsageError])
def test_secrets_are_in_no_error(kind, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "my own secret")
    said = str(kind(f"{SECRET} and {TOKEN} and my own secret failed"))
    assert "s3cret" not in said and TOKEN not in said and "my own secret" not in said and "abc123" not in said
    assert "https://example.com/x.git" in said
    assert without_secrets("me@example.com said a://b and c@d") == "me@example.com said a://b and c@d"


def test_secrets_are_in_nothing_that_a_run_says_or_leaves(made, tmp_path, monkeypatch, capfd):
    """An address of the hub with a user and a token, in every place that one can come from."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_ENDPOINT", SECRET)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    from newllm_lib import console
    from newllm_lib.runs import write_status

    commands = [
        ["train", "demo", "--data_dir", str(made / "text"), "--output_dir", "run", *TINY, "--max_steps", "2"],
        ["train", "demo", "--base", SECRET, "--output_dir", "other"],
        ["train", "demo", "--data", SECRET, "--output_dir", "other", *TINY],
        ["train", "dpo", "--base", SECRET, "--output_dir", "other"],
        ["train", SECRET],
        ["evaluate", SECRET],
        ["chat", SECRET, "--debug"],
        ["export", "run", "--push", SECRET],
        ["runs", "restore", SECRET, "--from", "."],
        ["export", "run", "--output_dir", "exported"],
    ]
    for words in commands:
        assert main(words) in (0, 1, 2)
    run = Run("run")
    write_status(run, message=f"{SECRET} failed")
    console.also_to(run.log)
    console.say(f"{SECRET} {TOKEN}")
    console.also_to(None)
    said = "".join(capfd.readouterr())
    kinds = ("json", "jsonl", "yaml", "md", "log")
    left = [path for kind in kinds for path in tmp_path.rglob(f"*.{kind}") if path.is_file()]
    assert len(left) > 8 and "example.com" in said
    for text in (said, *(p.read_text() for p in left)):
        assert "s3cret" not in text and TOKEN not in text
