"""`newllm bench speed`: processes that prepare together and are timed in turn; models of equal size."""

import pytest

from benchmarks import speed, speed_ways
from benchmarks.common import Rows

SMALL = {"batch": 2, "length": 8, "vocabulary": 512, "steps": 2}


def test_ways_prepare_together_and_one_that_fails_is_said(capsys):
    rows = Rows("speed", "x")
    speed.run(rows, ["lstm:eager", "lstm:sideways"], jobs=2, **SMALL)
    (row,) = rows.rows  # no first step: it was not alone
    assert row["model"] == "LSTM (cuDNN), eager" and float(row["value"]) > 0
    assert "lstm:sideways: failed: KeyError: 'sideways'" in capsys.readouterr().out


def test_alone_the_first_step_is_a_row():
    rows = Rows("speed", "x")
    speed.run(rows, ["lstm:eager"], **SMALL)
    assert [row["metric"] for row in rows.rows] == ["training step", "first training step after the start"]


@pytest.mark.parametrize("name", ["seed_equal", "new_llm"])
def test_the_sequential_recurrence_of_equal_size(name):
    count = sum(p.numel() for p in speed_ways._model(name, 2000, 16).parameters())
    assert abs(count / 3_680_000 - 1) < 0.02


@pytest.mark.gpu
def test_a_captured_step_learns(monkeypatch):
    import torch

    torch.manual_seed(0)
    model = speed_ways._model("new_llm", 512, 32).cuda()
    step = speed_ways._captured(model, 8, 32)
    inputs = torch.randint(1, 512, (8, 32), device="cuda")
    before = model.step(inputs, inputs, model.initial_state(8))[0].item()
    for _ in range(30):
        step(inputs, inputs)
    assert model.step(inputs, inputs, model.initial_state(8))[0].item() < before - 1
