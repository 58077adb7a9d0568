"""`newllm bench speed`: processes that prepare together and are timed in turn; models of equal size."""

import argparse

import pytest

from benchmarks import speed, speed_ways
from benchmarks.common import Rows
from newllm_lib.errors import UsageError

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


NANOGPT = """
from dataclasses import dataclass
from torch import nn

@dataclass
class GPTConfig:
    n_layer: int
    n_head: int
    n_embd: int
    vocab_size: int
    block_size: int
    dropout: float
    bias: bool

class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.table = nn.Embedding(config.vocab_size, config.n_embd)

    def forward(self, ids, targets):
        logits = self.table(ids) @ self.table.weight.T
        return logits, nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
"""


def test_nanogpt_by_its_own_model_of_another_size(tmp_path):
    (tmp_path / "model.py").write_text(NANOGPT)
    found = speed_ways.measure("nanogpt", "eager", lambda: None, **SMALL, size="10M", clone=str(tmp_path))
    assert found["parameters"] == 512 * 384 and found["tokens_per_second"] > 0  # 512: a multiple of 64


@pytest.mark.parametrize(
    "words, said",
    [
        (["--size", "10M"], "--size is not for seed:eager"),
        (["--ways", "nanogpt:compiled"], "needs --nanogpt DIR"),
        (["--ways", "nanogpt:compiled", "--nanogpt", "nowhere"], "there is no train.py"),
    ],
)
def test_what_cannot_be_measured_is_refused(words, said):
    parser = argparse.ArgumentParser()
    speed.add_arguments(parser)
    arguments = parser.parse_args(words)
    with pytest.raises(UsageError, match=said):
        speed._check(arguments.ways or speed.WAYS, arguments)


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
