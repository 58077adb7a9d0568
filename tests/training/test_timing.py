"""Where a training's time goes: measured by the loop itself, told at the end, kept in timing.json."""

import json

import pytest

from newllm_lib import runs
from newllm_lib.cli import main
from newllm_lib.evaluation import metrics
from newllm_lib.training import checkpointing, samples, train
from newllm_lib.training.loop import TrainingLoop
from newllm_lib.training.timetable import Timing
from tests.helpers.small_runs import recipe, stopped_after


class Clock:
    """Stands still but for what is spent on purpose."""

    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_each_second_belongs_to_one_part():
    clock = Clock()
    timing = Timing(since=90.0, clock=clock)  # ten seconds of imports
    for part, seconds in (("data", 3), ("model", 2), ("kernels", 5)):
        timing.enter(part)
        clock.now += seconds
    timing.first_step_done()
    for _ in range(2):
        clock.now += 4
        timing.tokens["steps"] += 400
        with timing.within("evaluation"):
            clock.now += 1
            timing.tokens["evaluation"] += 1000
            with timing.within("samples"):
                clock.now += 0.5
            clock.now += 1
        with timing.within("saving"):
            clock.now += 0.25
    timing.enter("report")
    clock.now += 1.5
    found = timing.figures()
    assert found["seconds"] == {
        "imports": 10,
        "data": 3,
        "model": 2,
        "kernels": 5,
        "steps": 8,
        "evaluation": 4,
        "samples": 1,
        "saving": 0.5,
        "report": 1.5,
    }
    assert found["total_seconds"] == 35 and found["first_step_seconds"] == 20
    assert found["shares"]["steps"] == pytest.approx(8 / 35, abs=1e-4)
    assert sum(found["shares"].values()) == pytest.approx(1, abs=1e-3)
    assert found["training_tokens_per_second"] == 100 and found["evaluation_tokens_per_second"] == 500
    words = runs.timing_in_words(found)
    assert words.startswith(
        "Time: 35 s | start 20 s 57% (imports 10, data 3, model 2, kernels 5) | steps 8 s 23%"
    )


def test_an_error_inside_a_part_ends_it():
    clock = Clock()
    timing = Timing(clock=clock)
    with pytest.raises(KeyError), timing.within("saving"):
        clock.now += 2
        raise KeyError
    clock.now += 1
    assert timing.figures()["seconds"]["saving"] == 2 and timing.figures()["seconds"]["imports"] == 1


@pytest.fixture
def spent(monkeypatch):
    """Every call that takes time takes it by a fake clock: its seconds by the loop's method."""
    clock = Clock()
    real_init = Timing.__init__

    def begin(self, since=None, clock_=None):
        real_init(self, since and clock.now, clock)

    monkeypatch.setattr(Timing, "__init__", begin)
    step = TrainingLoop.train_step
    monkeypatch.setattr(
        TrainingLoop, "train_step", lambda self, batches: (_spend(clock, 2.0), step(self, batches))[1]
    )
    real_measure, real_take = metrics.measure, samples.Samples.take
    real_save = checkpointing.Checkpoints.save
    monkeypatch.setattr(metrics, "measure", lambda *a, **k: (_spend(clock, 0.5), real_measure(*a, **k))[1])
    monkeypatch.setattr(samples.Samples, "take", lambda *a: (_spend(clock, 0.125), real_take(*a))[1])
    monkeypatch.setattr(checkpointing.Checkpoints, "save", lambda *a: (_spend(clock, 0.25), real_save(*a))[1])


def _spend(clock: Clock, seconds: float) -> None:
    clock.now += seconds


def test_the_loop_tells_its_parts_apart(folder, spent, capsys):
    run = train(recipe(folder, epochs=1, evals_per_epoch=2, max_steps=9))
    seconds = json.loads((run.path / "timing.json").read_text())["seconds"]
    evaluations = sum("eval_loss" in row for row in run.metrics())
    assert seconds["kernels"] == 2 and seconds["steps"] == 16  # the first step has the kernels
    assert seconds["evaluation"] == 0.5 * evaluations and seconds["samples"] == 0.125 * evaluations
    saves = run.log.read_text().count("[Checkpoint saved]")
    assert saves and seconds["saving"] == 0.25 * saves
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Time: ")]
    assert len(told) == 1 and told[0] in run.log.read_text()
    assert told[0] == run.log.read_text().splitlines()[-1]
    assert main(["runs", "status", str(run.path)]) == 0 and told[0] in capsys.readouterr().out


def test_a_stopped_training_tells_its_time_too(folder):
    with stopped_after(3):
        train(recipe(folder))
    run = runs.Run(folder / "run")
    assert runs.read_timing(run)["first_step_seconds"] > 0 and "Time: " in run.log.read_text()


def test_a_command_counts_from_its_beginning(folder):
    from newllm_lib.training.timetable import begin_timing, command_began

    command_began(1.0)
    assert begin_timing().began == 1.0
    assert begin_timing().began > 1.0  # a command's second training begins by itself


def test_a_folder_without_times_says_none(tmp_path):
    run = runs.Run(tmp_path)
    assert runs.read_timing(run) is None
    run.timing_path.write_text("{")
    assert runs.read_timing(run) is None
