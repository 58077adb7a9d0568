"""`compile: replay` through a whole training: the same curve as without, and refused where it cannot be."""

import pytest

from newllm_lib.device import probe
from newllm_lib.errors import UsageError
from newllm_lib.training import build_model, train
from newllm_lib.training.compile import compilation
from newllm_lib.training.memory.plan import refuse
from tests.helpers.memory_recipes import LIGHT, recipe
from tests.helpers.small_runs import curve, stopped_after

MANIFEST = {"optimizer": "adafactor", "weights_dtype": "bf16", "micro_batch_size": 2}


@pytest.mark.parametrize("keys", [LIGHT, MANIFEST], ids=["block by block", "whole step"])
def test_a_replayed_run_is_the_run(folder, monkeypatch, keys):
    keys = {**keys, "dropout": 0.0, "max_steps": 6, "max_grad_norm": 0.5}
    plain = train(recipe(folder, "plain", **keys))
    monkeypatch.setattr(build_model, "compilation", lambda *_: "replay")  # which a processor would not choose
    again = train(recipe(folder, "again", **keys, compile="replay"))
    rows, others = ([row for row in curve(run) if "loss" in row] for run in (plain, again))
    for a, b in zip(rows, others, strict=True):
        assert a["learning_rate"] == b["learning_rate"]
        assert a["loss"] == pytest.approx(b["loss"], rel=0.02)  # its rounding draws other random bits
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=0.1)
    assert rows[0]["loss"] == pytest.approx(others[0]["loss"], rel=1e-3)


@pytest.mark.parametrize(
    "keys", [{}, {"carry_state": True, "dropout": 0.1}, {"micro_batch_size": 2, "dropout": 0.1}], ids=str
)
def test_a_replayed_new_llm_is_the_run_to_the_last_digit(folder, monkeypatch, keys):
    """Dropout and a carried state too: nothing is drawn for a recording, and a run goes on as if it had not
    been stopped.
    """
    keys = {"optimizer": "adamw", "max_steps": 6, "save_steps": 3, "keep_checkpoints": 9, **keys}
    plain = train(recipe(folder, "plain", **keys))
    monkeypatch.setattr(build_model, "compilation", lambda *_: "replay")
    again = train(recipe(folder, "again", **keys))
    assert [row["loss"] for row in curve(again) if "loss" in row] == [
        row["loss"] for row in curve(plain) if "loss" in row
    ]
    with stopped_after(2):
        train(recipe(folder, "stopped", **keys))
    stopped = train(recipe(folder, "stopped", **keys))
    assert [row["loss"] for row in curve(stopped) if "loss" in row] == [
        row["loss"] for row in curve(plain) if "loss" in row
    ]


def test_what_cannot_be_replayed_is_refused(folder, monkeypatch):
    for changes, words in (
        ({**LIGHT, "dropout": 0.1}, "without dropout or carried"),
        ({**LIGHT, "dropout": 0.0, "carry_state": True}, "carried state"),
        (
            {**LIGHT, "dropout": 0.0, "gradient_checkpointing": "off", "micro_batch_size": 4},
            "goes with gradient_checkpointing",
        ),
        ({**MANIFEST, "dropout": 0.0, "gradient_checkpointing": "on"}, "goes with gradient_checkpointing"),
        ({"compile": "replay", "model": "new_llm", "lora_rank": 2}, "without adapters"),
    ):
        with pytest.raises(UsageError, match=words):
            refuse(recipe(folder, **{"compile": "replay", **changes}), probe())
    assert compilation(recipe(folder, compile="replay"), probe()) == "off"  # no GPU here
    monkeypatch.setenv("NEWLLM_DEVICE", "h100")
    assert compilation(recipe(folder, compile="replay"), probe()) == "replay"
    monkeypatch.setenv("NEWLLM_DEVICE", "t4")
    assert compilation(recipe(folder, compile="replay"), probe()) == "replay"  # loss scaling in the recording
