"""The history of a run, read while it grows: torn lines, second lives, time left."""

from __future__ import annotations

import json

import pytest

from newllm_lib.colab.history import History
from newllm_lib.colab.look import evaluations_left
from newllm_lib.recipe import load_recipe
from newllm_lib.runs import Run
from newllm_lib.training.timetable import Timetable
from tests.helpers.fake_run import append, finished, rows


@pytest.fixture
def run(tmp_path) -> Run:
    return Run(tmp_path / "run")


def test_it_reads_only_what_is_new(run):
    history = History(run.metrics_path)
    assert not history.update() and history.step == 0 and history.best is None
    append(run, rows()[:3])
    assert history.update() and history.step == 60 and not history.update()
    append(run, rows()[3:])
    assert history.update() and history.step == 300 and len(history.evaluations) == 3


def test_a_line_that_is_being_written_waits(run):
    append(run, rows()[:1])
    line = json.dumps(rows()[1])
    history = History(run.metrics_path)
    with open(run.metrics_path, "a") as file:
        file.write(line[:15])
    assert history.update() and history.step == 20
    assert not history.update()
    with open(run.metrics_path, "a") as file:
        file.write(line[15:] + "\n")
    assert history.update() and history.step == 40


def test_a_line_that_a_kill_cut_off_is_passed_over(run):
    append(run, rows()[:1])
    with open(run.metrics_path, "a") as file:
        file.write('{"step": 40, "los\nnull\n')
    append(run, rows()[2:3])
    history = History(run.metrics_path)
    history.update()
    assert sorted(history.steps) == [20, 60]


def test_the_later_life_counts(run):
    append(run, rows())  # to step 300, then killed and resumed at 100
    history = History(run.metrics_path)
    history.update()
    append(run, [{"step": 120, "epoch": 1.2, "loss": 9.0}])
    history.update()
    assert history.step == 120 and history.steps[120]["loss"] == 9.0 and list(history.evaluations) == [100]
    append(
        run,
        [
            {"step": 140, "epoch": 1.4, "loss": 8.0},
            {"step": 140, "epoch": 1.4, "eval_loss": 8.0, "best": True},
        ],
    )
    history.update()
    assert history.step == 140 and 140 in history.steps and history.best["step"] == 140


def test_a_file_that_was_written_anew_is_read_anew(run):
    append(run, rows())
    history = History(run.metrics_path)
    history.update()
    run.metrics_path.write_text("".join(json.dumps(row) + "\n" for row in rows()[:2]))
    assert history.update() and history.step == 40


def test_speed_and_time_left(run):
    append(run, rows(pace=0.05))
    history = History(run.metrics_path)
    assert history.seconds_left(1000) is None and history.tokens_per_second() is None
    history.update()
    assert history.seconds_left(1000) == pytest.approx(700 * 0.05)
    assert history.seconds_left(300) == 0 and history.seconds_left(None) is None
    assert history.tokens_per_second() == 40_000


def test_a_pause_between_two_lives_does_not_count_as_slow(run):
    early, late = rows()[:10], [{**row, "time": row["time"] + 86_400} for row in rows()[10:]]
    append(run, early + late)
    history = History(run.metrics_path)
    history.update()
    assert history.seconds_left(400) == pytest.approx(100 * 0.05)


LIVES = {  # recipe, machine, tokens of the validation text, seconds of an evaluation, of a step, steps a row
    "demo": ("cpu", 187_000, 3.0, 0.16, 50),  # a part of the text on the way, all of it at the end
    "wikitext": ("h100", 250_000, 40.0, 0.05, 50),
    "phase7_1.5b": ("h100", 250_000, 30.0, 1.2, 10),  # how often follows from the text
}


@pytest.mark.parametrize("name", LIVES)
def test_time_left_counts_evaluations_and_saves(run, name):
    """From a fifth of the run on it is within 25 % of the truth, before the first evaluation too."""
    machine, validation, cost, pace, every = LIVES[name]
    recipe = load_recipe(name, {"sized_for": machine})
    measured = min(validation, recipe.eval_tokens or validation)
    epoch, total, clock = 1000, 2000, 1e9
    table = Timetable(recipe, epoch, total, measured)
    written, truth = [], {}
    for step in range(1, total + 1):
        clock += pace * (1 + 0.3 * (step % 7 == 0)) + (
            5.0 if step % 400 == 399 else 0.0
        )  # a save by the clock
        if step % every == 0 or step == total:
            written.append({"step": step, "epoch": step / epoch, "loss": 3.0, "time": clock})
            truth[step] = clock
        if table.evaluates_at(step):
            clock += cost
            row = {"step": step, "epoch": step / epoch, "eval_loss": 3.0, "time": clock - 0.3 * cost}
            written.append(row)
    clock += 0.9 * cost * validation / measured if measured < validation else 0.0  # without samples and saves
    for step, at in truth.items():
        if not 0.2 * total <= step < 0.97 * total:
            continue
        run.metrics_path.unlink(missing_ok=True)
        append(run, [row for row in written if row["step"] <= step and row["time"] <= at])
        history = History(run.metrics_path)
        history.update()
        left = history.seconds_left(total, evaluations_left(recipe, history, total, validation), guess=cost)
        assert abs(left - (clock - at)) < 0.25 * (clock - at), (step, left, clock - at)


@pytest.mark.parametrize("per_epoch", [1, 3, "auto"])
def test_evaluations_to_come_are_those_that_come(per_epoch):
    recipe = load_recipe("demo", {"sized_for": "cpu", "evals_per_epoch": per_epoch})
    for per, total, tokens in ((100, 250, 3000), (7, 50, 5000), (1000, 400, 30)):
        table = Timetable(recipe, per, total, tokens)
        for step in (1, 2, per, per + 1, total - 1, total, total + 1):
            coming = [s for s in range(step, total + 1) if table.evaluates_at(s)]
            assert table.evaluations_from(step) == len(coming), (step, per, total)


def test_series_and_best(tmp_path):
    run = finished(tmp_path / "run")
    history = History(run.metrics_path)
    history.update()
    x, y = history.series("eval_bits_per_byte")
    assert x == [100, 200, 300] and y == sorted(y, reverse=True)
    assert history.best["step"] == 300
    assert len(history.series("loss")[0]) == 15 and history.series("nothing") == ([], [])
