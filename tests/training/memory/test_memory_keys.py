"""The recipe's memory keys, through a whole training: what they change, what they refuse, and that a run goes
on exactly.
"""

import json
import os
import re
import sys

import pytest
import torch
from safetensors import safe_open

from newllm_lib.device import probe
from newllm_lib.errors import Interrupted, UsageError
from newllm_lib.training import context, run as run_module, strategies, train
from newllm_lib.training.loop import TrainingLoop
from newllm_lib.training.memory.plan import refuse
from tests.helpers.loading import load_run
from tests.helpers.loss_scaling import scale_losses
from tests.helpers.memory_recipes import LIGHT, recipe
from tests.helpers.small_runs import curve, stopped_after


def losses(run):
    return torch.tensor([row["loss"] for row in curve(run) if "loss" in row])


def test_checkpointing_changes_nothing_but_memory(folder):
    plain, again = (train(recipe(folder, how, gradient_checkpointing=how)) for how in ("off", "on"))
    assert curve(plain) == curve(again)


@pytest.mark.parametrize("optimizer", ["adafactor", "muon"])
def test_light_training_follows_the_heavy_one_and_saves_half_the_bytes(folder, optimizer):
    heavy = train(
        recipe(folder, "heavy", dropout=0.0, optimizer="adamw" if optimizer == "adafactor" else optimizer)
    )
    light = train(recipe(folder, "light", dropout=0.0, **{**LIGHT, "optimizer": optimizer}))
    torch.testing.assert_close(losses(light), losses(heavy), rtol=0.05, atol=0.0)
    norms = [
        torch.tensor([row["grad_norm"] for row in curve(run) if "loss" in row]) for run in (heavy, light)
    ]
    assert (norms[1][0] / norms[0][0]) == pytest.approx(1.0, rel=0.02)
    with safe_open(light.latest_checkpoint() / "model.safetensors", "pt") as weights:
        kinds = {
            (len(weights.get_slice(k).get_shape()) > 1, weights.get_slice(k).get_dtype())
            for k in weights.keys()
        }  # noqa: SIM118
    assert kinds == {(True, "BF16"), (False, "F32")}
    assert next(load_run(light)[0].parameters()).isfinite().all()


@pytest.mark.parametrize("optimizer", ["adafactor", "muon"])
def test_a_stopped_light_run_goes_on_bit_by_bit(folder, monkeypatch, optimizer):
    """Rounding, quantised states, dropout and the norms that clip the next step: all as if nothing had
    happened.
    """
    keys = {**LIGHT, "optimizer": optimizer, "max_grad_norm": 0.5}
    if optimizer == "muon":
        monkeypatch.setattr(strategies, "SHARD", "100KB")  # a large model's weights are in several files
    whole = train(recipe(folder, "whole", **keys))
    step = TrainingLoop.train_step

    def stop(self, batches):
        if self.step == 5:
            os.kill(os.getpid(), 15)
        return step(self, batches)

    monkeypatch.setattr(TrainingLoop, "train_step", stop)
    with pytest.raises(Interrupted):
        train(recipe(folder, **keys))
    monkeypatch.setattr(TrainingLoop, "train_step", step)
    run = train(recipe(folder, **keys))
    assert curve(run) == curve(whole)
    assert (len(list(run.latest_checkpoint().glob("model*.safetensors"))) > 1) == (optimizer == "muon")
    assert load_run(run)[0].num_parameters() > 0


def test_weights_in_fp16_go_on_bit_by_bit_and_the_log_says_what_was_left_out(folder, monkeypatch):
    """As on a T4, but for matrix products in bf16, which a processor has: an overflow, and a stop between two
    rows of the log."""
    monkeypatch.setattr(run_module, "refuse", lambda *_: None)
    monkeypatch.setattr(context, "dtype_of", lambda *_: "bf16")
    scale_losses(monkeypatch)
    step = TrainingLoop.train_step

    def overflowing(self, batches):
        largest = max(self.strategy.parameters, key=torch.numel)
        factor = float("inf") if self.step == 4 else 1.0
        hook = largest.register_hook(lambda g: g * factor)
        norm = step(self, batches)
        hook.remove()
        return norm

    monkeypatch.setattr(TrainingLoop, "train_step", overflowing)
    keys = {**LIGHT, "weights_dtype": "fp16", "max_grad_norm": 0.5, "logging_steps": 2, "save_steps": 5}
    whole = train(recipe(folder, "whole", **keys))
    skipped = {row["step"]: row["skipped"] for row in curve(whole) if row.get("skipped")}
    assert list(skipped) == [6] and 0.1 < skipped[6] < 0.5
    with safe_open(whole.latest_checkpoint() / "model.safetensors", "pt") as weights:
        kinds = {weights.get_slice(k).get_dtype() for k in weights.keys()}  # noqa: SIM118
    assert kinds == {"F16", "F32"} and losses(whole)[-1] < losses(whole)[0]
    with stopped_after(4):
        train(recipe(folder, **keys))
    assert torch.load(folder / "run" / "checkpoint-5" / "scaler.pt", weights_only=True)["scale"] == 2.0**9
    assert curve(train(recipe(folder, **keys))) == curve(whole)


def test_what_does_not_go_together_is_refused_in_one_line(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.optim", None)
    for changes, words in (
        ({"weights_dtype": "bf16"}, "loses small steps with adamw"),
        ({**LIGHT, "weights_dtype": "fp16"}, "is for GPUs"),
        ({"optimizer_in_backward": True, "micro_batch_size": 2}, "gradient_checkpointing on or offload"),
        ({**LIGHT, "optimizer": "muon", "momentum_bits": 0}, "Muon is its momentum"),
        ({"optimizer": "adamw8bit"}, "torchao"),
    ):
        with pytest.raises(UsageError, match=words) as error:
            train(recipe(folder, **changes))
        assert "\n" not in str(error.value)
    monkeypatch.setenv("NEWLLM_DEVICE", "t4")
    for changes, words in (
        (LIGHT, "has no bf16. Use fp16"),
        ({"optimizer_in_backward": True}, "loss scaling"),
        ({"weights_dtype": "fp16", "optimizer": "adafactor"}, "goes with optimizer_in_backward"),
        ({**LIGHT, "weights_dtype": "fp16", "optimizer": "adamw8bit"}, "adafactor, muon"),
    ):
        with pytest.raises(UsageError, match=words):
            refuse(recipe(folder, **changes), probe())
    refuse(
        recipe(folder, optimizer="adafactor", gradient_checkpointing="offload"), probe()
    )  # what a T4 can have
    refuse(recipe(folder, **{**LIGHT, "weights_dtype": "fp16"}), probe())


@pytest.mark.slow  # torchao compiles its step: minutes on two cores
@pytest.mark.parametrize("optimizer", ["adamw8bit", "adamw4bit"])
def test_torchaos_optimizers_train(folder, optimizer):
    pytest.importorskip("torchao")
    run = train(recipe(folder, **{**LIGHT, "optimizer": optimizer}))
    assert losses(run)[-1] < losses(run)[0]


def test_the_guides_log_line_and_file_in_every_mode(folder, capsys):
    """The norm is the true one, before clipping, also where gradients never stood side by side."""
    line = re.compile(
        r"Step {1,6}\d+ \| Loss: \d+\.\d{4} \| PPL: \d+\.\d\d \| LR: \d\.\d\de-\d\d \| Grad: \d+\.\d{3} \| "
        r"Time: \d+\.\d\ds"
    )
    for name, keys in (("heavy", {}), ("light", LIGHT)):
        run = train(recipe(folder, name, log_style="steps", max_steps=4, max_grad_norm=0.01, **keys))
        found = [text for text in run.log.read_text().splitlines() if text.startswith("Step ")]
        assert len(found) == 4 and all(line.fullmatch(text) for text in found)
        rows = json.loads((run.path / "training_log.json").read_text())
        assert rows == [json.loads(text) for text in run.metrics_path.read_text().splitlines()]
        assert all(row["grad_norm"] > 0.1 for row in rows if "loss" in row)
