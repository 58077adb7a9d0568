"""The training loop's parts: what a step is made of, which strategy runs it, what is reported where."""

import itertools
import json
from types import SimpleNamespace

import pytest
import torch

from newllm_lib.data import prepare
from newllm_lib.device import probe
from newllm_lib.runs import Run
from newllm_lib.training import build_model, loop, strategies, train
from newllm_lib.training.batches import Batches, count_labels
from newllm_lib.training.build_model import BuiltModel
from newllm_lib.training.context import RunContext
from newllm_lib.training.loop import TrainingLoop
from newllm_lib.training.progress import Progress
from newllm_lib.training.run import steps
from tests.helpers.loss_scaling import scale_losses
from tests.helpers.small_runs import curve, losses, recipe, rows, stopped_after


def context(folder, micro=8, **changes) -> RunContext:
    chosen = recipe(folder, **changes)
    data = prepare(chosen)
    run = Run(folder / "run")
    run.path.mkdir()
    return RunContext(chosen, run, probe(), data, None, None, Progress(), *steps(chosen, data), micro)


@pytest.mark.parametrize("micro", [8, 2])
def test_a_step_has_the_batch_in_micro_batches_and_counts_its_labels(folder, micro):
    made = context(folder, micro)
    assert made.sequences_at_once * made.accumulation_steps == made.recipe.batch_size
    whole = list(Batches(made).from_step(0))
    assert len(whole) == made.steps_per_epoch and all(len(step) == 8 // micro for step in whole)
    assert [batch["input_ids"].shape for batch in whole[0]] == [(micro, 16)] * (8 // micro)
    count = count_labels(whole[0])
    assert count.dtype == torch.float32 and count == sum(
        int((batch["labels"] >= 0).sum()) for batch in whole[0]
    )
    later = list(Batches(made).from_step(made.steps_per_epoch - 2))  # as a continued run reads them
    assert len(later) == 2
    for ours, theirs in zip(later, whole[-2:], strict=True):
        assert all(torch.equal(a[key], b[key]) for a, b in zip(ours, theirs, strict=True) for key in a)


@pytest.mark.parametrize("changes", [{}, {"carry_state": True}, {"loss_on": "answers"}], ids=str)
def test_labels_are_counted_once_where_every_step_has_as_many(folder, changes):
    batches = Batches(context(folder, **changes))
    found = [(batches.count_labels(step), count_labels(step)) for step in batches.from_step(0)]
    assert all(torch.equal(ours, each) for ours, each in found)
    assert (found[0][0] is found[1][0]) == batches.all_count == ("loss_on" not in changes)


def test_epochs_are_counted_as_steps_are(folder):
    made = context(folder)
    per = made.steps_per_epoch
    assert [made.epoch_at(step) for step in (0, 1, per, per + 1, 2 * per)] == [
        0.0,
        1 / per,
        1.0,
        1 + 1 / per,
        2.0,
    ]


@pytest.mark.parametrize(
    ("changes", "how", "scaler", "expected"),
    [
        ({}, "off", None, strategies.Autograd),
        ({}, "on", None, strategies.Autograd),
        ({}, "replay", None, strategies.Replayed),
        ({}, "off", object(), strategies.LossScaled),
        ({}, "replay", object(), strategies.Replayed),
        ({"optimizer_in_backward": True, "optimizer": "adafactor"}, "off", None, strategies.InBackward),
    ],
)
def test_each_way_of_running_a_step_is_one_object(folder, changes, how, scaler, expected):
    made = SimpleNamespace(recipe=recipe(folder, **changes))
    built = BuiltModel(torch.nn.Linear(2, 2), None, how)
    assert strategies.strategy_for(made, built, SimpleNamespace(scaler=scaler)) is expected


def test_a_step_that_overflows_is_left_out_and_the_schedule_waits(folder, monkeypatch):
    scale_losses(monkeypatch)
    step, rates, weights = TrainingLoop.train_step, [], []

    def overflowing(self, batches):
        if self.step == 2:
            backward = type(self.strategy)._backward
            self.strategy._backward = lambda loss: backward(self.strategy, loss * float("inf"))
        norm = step(self, batches)
        self.strategy.__dict__.pop("_backward", None)
        rates.append(self.strategy.learning_rate)
        weights.append(next(self.model.parameters()).detach().clone())
        return norm

    monkeypatch.setattr(TrainingLoop, "train_step", overflowing)
    keys = {
        "max_steps": 5,
        "save_steps": 4,
        "keep_checkpoints": 9,
        "warmup_steps": 4,
        "schedule": "constant",
        "fused_optimizer": False,
    }
    run = train(recipe(folder, **keys))
    assert torch.equal(weights[1], weights[2]) and not torch.equal(weights[2], weights[3])
    assert rates[0] < rates[1] < rates[2] == rates[3] < rates[4]
    assert (
        torch.load(run.checkpoint(4) / "scaler.pt", weights_only=True)["scale"] == 2.0**9
    )  # halved by the overflow


def test_scaled_losses_train_as_unscaled_ones(folder, monkeypatch):
    plain = losses(train(recipe(folder, max_steps=4, logging_steps=1, output_dir=str(folder / "plain"))))
    scale_losses(monkeypatch)
    assert losses(train(recipe(folder, max_steps=4, logging_steps=1))) == pytest.approx(plain, rel=1e-5)


@pytest.mark.parametrize(
    "keys",
    [
        {"optimizer": "muon", "carry_state": True},
        {"optimizer": "adamw", "micro_batch_size": 4},
        {"optimizer": "muon", "micro_batch_size": 4, "carry_state": True, "dropout": 0.1},
        {"optimizer": "muon", "model": "tiny_gpt2"},
        {"optimizer": "adafactor"},
    ],
    ids=str,
)
def test_a_replayed_step_scales_leaves_out_and_goes_on_as_the_scaler_does(folder, monkeypatch, keys):
    """Rates, losses and scale of steps that the device decides are those of steps that the CPU decides, an
    overflow and a growth among them, and of a run that was stopped between the two.
    """
    scale_losses(monkeypatch, growth_interval=3)
    train_step = TrainingLoop.train_step

    def overflowing(self, batches):
        clip = type(self.strategy).clip

        def with_overflow():
            if self.step in (2, 4):
                self.strategy.parameters[1].grad[0] = float("inf" if self.step == 2 else "nan")
            return clip(self.strategy)

        self.strategy.clip = with_overflow
        return train_step(self, batches)

    monkeypatch.setattr(TrainingLoop, "train_step", overflowing)
    common = {"max_steps": 10, "save_steps": 5, "keep_checkpoints": 9, "warmup_steps": 4, "logging_steps": 2}
    plain = train(recipe(folder, **common, **keys, output_dir=str(folder / "plain")))
    monkeypatch.setattr(build_model, "compilation", lambda *_: "replay")
    again = train(recipe(folder, **common, **keys))
    with stopped_after(4):
        train(recipe(folder, **common, **keys, output_dir=str(folder / "stopped")))
    stopped = train(recipe(folder, **common, **keys, output_dir=str(folder / "stopped")))
    assert curve(stopped) == curve(again)
    for ours, theirs in zip(curve(again), curve(plain), strict=True):
        for key in ("step", "learning_rate", "skipped"):
            assert ours.get(key) == theirs.get(key)
        # gradients lie elsewhere in memory, and their squares are added up in another order
        numbers = [{k: v for k, v in row.items() if isinstance(v, float)} for row in (ours, theirs)]
        assert numbers[0] == pytest.approx(numbers[1], rel=1e-5)
    for run, step, file in itertools.product((again, stopped), (5, 10), ("scaler.pt", "scheduler.pt")):
        ours, theirs = (torch.load(r.checkpoint(step) / file, weights_only=True) for r in (run, plain))
        assert all(ours[key] == theirs[key] for key in theirs if key not in ("_step_count", "lr_lambdas"))
    assert ours["last_epoch"] == 8
    assert {row["step"]: row["skipped"] for row in rows(again) if row.get("skipped")} == {4: 0.5, 6: 0.5}


def test_what_is_reported_has_the_names_that_transformers_gives(folder):
    reported = []
    made = context(folder, max_steps=3, logging_steps=1, sample_tokens=0)
    training = TrainingLoop(made)
    training.log.track = lambda figures, step: reported.append((step, figures))
    training.run()
    assert [step for step, _ in reported] == [1, 2, 3, 3]
    assert {"train/loss", "train/learning_rate", "train/grad_norm", "train/epoch"} <= reported[0][1].keys()
    assert {"eval/loss", "eval/bits_per_byte"} <= reported[-1][1].keys()
    assert reported[0][1]["train/loss"] == rows(made.run)[0]["loss"]


def test_a_tracker_that_fails_is_left_out_and_the_run_goes_on(folder, capsys):
    def fail(*words):
        raise RuntimeError("no network")

    made = context(folder, max_steps=3, logging_steps=1, sample_tokens=0)
    training = TrainingLoop(made)
    training.log.track = fail
    training.accelerator.trackers.append(SimpleNamespace(finish=fail))
    training.run()
    assert capsys.readouterr().out.count("no network") == 2 and made.run.latest_checkpoint() is not None


def test_a_row_that_waits_for_the_gpu_is_written_before_all_that_follows_it(folder, monkeypatch):
    """On a GPU a row is read while the next step runs; here its arrival is put off in the same way."""
    taken = loop.TrainingLog.take
    arrived = SimpleNamespace(synchronize=lambda: None)

    def later(self, step, *figures):
        flush, self.flush = self.flush, lambda: None
        loop.TrainingLog.flush(self)
        taken(self, step, *figures)
        self.flush = flush
        self._waiting.arrived = arrived

    plain = train(recipe(folder, logging_steps=2, save_steps=3, output_dir=str(folder / "plain")))
    monkeypatch.setattr(loop.TrainingLog, "take", later)
    run = train(recipe(folder, logging_steps=2, save_steps=3))
    assert curve(run) == curve(plain)


def test_a_finished_run_that_is_asked_to_go_on_from_its_end_takes_no_further_step(folder):
    keys = {"max_steps": 5, "logging_steps": 1}
    run = train(recipe(folder, **keys))
    before = curve(run)
    train(recipe(folder, **keys, resume="last"))
    assert curve(run) == before and run.latest_checkpoint().name == "checkpoint-5"


def test_weights_that_lack_something_are_refused(folder, monkeypatch):
    from safetensors.torch import load_file, save_file

    from newllm_lib.errors import NewLLMError

    run = train(recipe(folder, max_steps=4, save_steps=2, keep_checkpoints=9))
    file = run.checkpoint(2) / "model.safetensors"
    held = load_file(file)
    gone = sorted(held)[0]
    save_file({name: tensor for name, tensor in held.items() if name != gone}, file, {"format": "pt"})
    whole = json.loads((file.parent / "MANIFEST.json").read_text())
    whole["files"][file.name] = file.stat().st_size
    (file.parent / "MANIFEST.json").write_text(json.dumps(whole))
    with pytest.raises(NewLLMError, match=f"holds no {gone}: copy it again"):
        train(recipe(folder, max_steps=4, save_steps=2, keep_checkpoints=9, resume="checkpoint-2"))
