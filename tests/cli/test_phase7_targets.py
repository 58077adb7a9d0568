"""The Phase 7 guide's make targets: each one line that works, and a clear line and an exit code where
something is missing.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from benchmarks.phase7 import deepest
from newllm_lib import runs
from newllm_lib.cli import main
from newllm_lib.cli.parser import parse
from newllm_lib.recipe import load_recipe
from newllm_lib.runs import Run, resolve_path
from newllm_lib.training import train
from tests.helpers.small_runs import write_text

ROOT = Path(__file__).parents[2]
TARGETS = (
    "check-phase7-env",
    "triton-attn",
    "recipe",
    "data-lite",
    "train-phase7-1.5b",
    "train-phase7-1.5b-test",
    "train-phase7-1.5b-resume",
    "train-phase7-small",
    "chat-phase7-1.5b",
    "bench-phase7-1.5b",
    "train-phase8",
    "bench-phase8-vs-phase7",
)


def words_of(target: str, *variables: str) -> list[str]:
    """What `make target` would call `newllm` with."""
    done = subprocess.run(
        ["make", "-n", target, *variables], cwd=ROOT, capture_output=True, text=True, check=True
    )
    line = next(line for line in done.stdout.splitlines() if "-m newllm_lib " in line)
    return shlex.split(line.split("-m newllm_lib ")[1])


def call(capsys, words) -> tuple[int, str, str]:
    code = main(list(words))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path)
    return tmp_path


@pytest.mark.parametrize("target", TARGETS)
def test_each_is_one_command_that_parses(target):
    assert parse(words_of(target)) is not None


def test_verify_names_tests_that_are_there():
    line = re.search(r"^verify-phase7:.*\n\t(.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    assert all((ROOT / word).is_file() for word in line.split() if word.startswith("tests/"))


@pytest.mark.parametrize("target", ["check-phase7-env", "triton-attn", "bench-phase7-1.5b"])
def test_without_a_gpu_those_that_need_one_say_so_and_fail(folder, capsys, monkeypatch, target):
    monkeypatch.setenv("NEWLLM_DEVICE", "cpu")
    code, _, err = call(capsys, words_of(target))
    assert code == 1 and "GPU" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("target", "variables", "expected"),
    [
        ("train-phase7-1.5b-resume", (), "has no checkpoint yet"),
        (
            "train-phase7-1.5b-resume",
            ("CHECKPOINT=checkpoints/phase7_1.5b_triton/step_2000.pt",),
            "name a checkpoint",
        ),
        ("chat-phase7-1.5b", (), "train it first"),
        (
            "chat-phase7-1.5b",
            ("CHECKPOINT=checkpoints/phase7_1.5b_triton/phase7_best.pt",),
            "phase7_1.5b_triton",
        ),
        ("recipe", (), "--weights"),
        ("recipe", ("ARGS=--weights demo",), "each weight a number"),
        ("recipe", ("ARGS=--weights no_such=1",), "no_such"),
    ],
)
def test_what_is_missing_is_one_line_and_exit_code_2(
    folder, capsys, monkeypatch, target, variables, expected
):
    monkeypatch.setattr(
        "newllm_lib.training.run.check_memory", lambda *_: None
    )  # this machine may have too little
    code, _, err = call(capsys, words_of(target, *variables))
    assert code == 2 and expected in err and err.count("\n") == 1


def test_a_mix_is_what_training_then_uses(folder, capsys):
    (folder / "other").mkdir()
    (folder / "other" / "train.txt").write_text(
        "".join(f"Sentence {i} of another kind.\n\n" for i in range(60))
    )
    code, out, _ = call(capsys, ["data", "mix", "--weights", "text=1,other=3", "--documents", "40", "--json"])
    made = json.loads(out)
    assert code == 0 and made["sources"]["text"]["train"] == 10 and made["sources"]["other"]["train"] == 30
    rows = [json.loads(line) for line in (folder / "data" / "mix" / "train.jsonl").read_text().splitlines()]
    assert len(rows) == 40 and sum("another kind" in row["text"] for row in rows) == 30
    held_out = "".join(
        (folder / "data" / "mix" / f"{split}.jsonl").read_text() for split in ("validation", "test")
    )
    assert held_out and not {row["text"] for row in rows} & {
        json.loads(line)["text"] for line in held_out.splitlines()
    }
    assert "data/mix" in words_of_in(folder)


def words_of_in(folder: Path) -> list[str]:
    command = ["make", "-n", "-f", ROOT / "Makefile", "train-phase7-1.5b"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    return shlex.split(next(line for line in done.stdout.splitlines() if "-m newllm_lib " in line))


def test_the_test_target_trains_saves_and_goes_on(folder, capsys):
    small = [
        "--data_dir",
        "text",
        "--vocab_size",
        "300",
        "--sized_for",
        "cpu",
        "--max_steps",
        "6",
        "--epochs",
        "9",
    ]
    small += ["--output_dir", "checkpoints/it"]
    assert call(capsys, [*words_of("train-phase7-1.5b-test"), *small])[0] == 0
    run = Run("checkpoints/it")
    assert [p.name for p in run.checkpoints()] == ["checkpoint-5", "checkpoint-6"] and run.best.is_dir()
    assert len(re.findall(r"^Step +\d+ \| Loss: ", run.log.read_text(), re.MULTILINE)) == 6
    assert json.loads((run.path / "training_log.json").read_text())[-1]["step"] == 6
    code, out, _ = call(
        capsys, [*words_of("train-phase7-1.5b-test"), *small, "--resume", f"{run.path}/phase7_step_5.pt"]
    )
    assert code == 0 and "Continuing from checkpoint-5" in out


def test_guides_names_and_recipes_lead_to_runs(folder, monkeypatch):
    from newllm_lib.cli.results import run_of

    assert resolve_path("a/b/phase7_step_2000.pt") == resolve_path("a/b/step_2000") == "a/b/checkpoint-2000"
    assert resolve_path("a/phase7_final.pt") == "a/last" and resolve_path("a/b") == "a/b"
    keys = {
        "sized_for": "cpu",
        "data_dir": "text",
        "vocab_size": 300,
        "max_steps": 1,
        "hidden_size": 16,
        "context_dim": 16,
        "mlp_size": 16,
        "num_layers": 1,
        "max_seq_length": 16,
        "batch_size": 4,
    }
    train(load_recipe("demo", {**keys, "output_dir": "checkpoints/mine"}))
    Path("checkpoints/demo").mkdir()
    Path("checkpoints/demo/status.json").write_text("{}")  # as `newllm demo` leaves one, without a model
    here = runs.list_runs
    monkeypatch.setattr(
        runs, "list_runs", lambda: [run for run in here() if run.path.resolve().is_relative_to(folder)]
    )
    assert Path(run_of("demo")).name == "mine" and run_of("mine") == "mine"


def test_the_largest_that_fits_is_found_between_what_fits_and_what_does_not():
    for limit in (0, 3, 12, 30, 100):
        tried = []
        found = deepest(lambda layers, limit=limit, tried=tried: (tried.append(layers), layers <= limit)[1])
        assert found <= limit < found + 5 and len(tried) < 12
