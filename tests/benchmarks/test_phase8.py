"""Phase 8 beside Phase 7: equal sizes, a crossover that is computed right, and the whole comparison at a tiny
size.
"""

import json

import pytest

from benchmarks import phase8
from benchmarks.common import Rows, read
from newllm_lib.cli import main
from newllm_lib.training.model_config import count_parameters, model_config
from tests.helpers.small_runs import write_text

TINY = {
    "sized_for": "cpu",
    "num_layers": 1,
    "hidden_size": 16,
    "num_heads": 2,
    "context_dim": 16,
    "mlp_size": 16,
    "htt_rank": 2,
    "vocab_size": 300,
    "max_seq_length": 16,
    "batch_size": 4,
    "micro_batch_size": 4,
    "max_steps": 2,
}


@pytest.mark.parametrize("kind", ["h100", "cpu"])
def test_all_ways_have_equal_parameters(kind):
    recipes = [phase8.recipe_of(way, 4096, {"sized_for": kind}) for way in phase8.WAYS]
    sizes = [count_parameters(model_config(recipe, recipe.vocab_size)) for recipe in recipes]
    assert max(sizes) < 1.01 * min(sizes)
    same = (
        "num_layers",
        "hidden_size",
        "batch_size",
        "max_seq_length",
        "epochs",
        "learning_rate",
        "data",
        "optimizer",
    )
    assert len({tuple(getattr(recipe, key) for key in same) for recipe in recipes}) == 1
    assert [recipe.attention for recipe in recipes] == ["linear", "hyperbolic", "hyperbolic"]
    assert recipes[1].attention_window == 4096 > recipes[2].attention_window
    blocks = phase8.recipe_of("Phase 7, full attention", changes={"sized_for": kind})
    assert blocks.attention_window == recipes[1].max_seq_length


def test_the_crossover_lies_where_the_lines_meet():
    other = {n: 1e9 / n for n in (512, 1024, 2048, 4096)}  # falls with the length
    assert phase8.crossover(dict.fromkeys(other, 1e9 / 1500), other) == pytest.approx(1500)
    assert phase8.crossover(dict.fromkeys(other, 1e9), other) is None  # faster from the first on
    assert phase8.crossover(dict.fromkeys(other, 1.0), other) is None  # never
    assert phase8.crossover({}, other) is None


def test_speed_is_measured_and_drawn(tmp_path, monkeypatch):
    monkeypatch.setenv("NEWLLM_DEVICE", "cpu")
    rows = Rows("phase8", "newllm bench phase8")
    phase8.speed(rows, lengths=[16, 64], steps=1, changes=TINY)
    rows.append_to(tmp_path / "results.csv")
    found = read(tmp_path / "results.csv")
    for way in phase8.WAYS:
        assert set(phase8.speeds(found, way)) == {16, 64}
        memory = phase8.speeds(found, way, "memory for a token, texts of ")
        assert set(memory) == {16, 64} and all(value > 0 for value in memory.values())
    phase8.draw(found, tmp_path / "docs" / "phase8.png")
    assert (tmp_path / "docs" / "phase8.png").stat().st_size > 10_000


def test_what_there_is_no_time_for_is_said(capsys):
    rows = Rows("phase8", "newllm bench phase8")
    phase8.speed(rows, lengths=[16], steps=1, changes=TINY, seconds=-1)
    assert not rows.rows and capsys.readouterr().out.count("left out, the time is up") == len(phase8.WAYS)


def test_the_command_trains_evaluates_and_records(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path)
    changes = [f"{key}={value}" for key, value in {**TINY, "data_dir": "text"}.items()]
    words = ["bench", "phase8", "--parts", "quality", "--ways", "Phase 8", "--set", *changes, "--json"]
    assert main(words) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert row["model"] == "Phase 8" and 0 < float(row["value"]) < 20 and "parameters" in row["note"]
    assert len(read(tmp_path / "benchmarks" / "results.csv")) == 1
    assert main(words) == 0  # the run is there: only evaluated
    assert json.loads(capsys.readouterr().out)["rows"][0]["value"] == row["value"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ways", "Phase 9"], "Phase 8"),
        (["--parts", "beauty"], "quality"),
        (["--set", "epochs"], "KEY=VALUE"),
        (["--set", "epoch=2"], "epochs"),
    ],
)
def test_what_is_not_there_is_one_line(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "phase8", *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
