"""A small real training, end to end: files, log, keys of the recipe, and what happens when something goes
wrong.
"""

import json
import os

import pytest
import torch

from newllm_lib.errors import Interrupted, NewLLMError, UsageError
from newllm_lib.evaluation import metrics
from newllm_lib.recipe import load_recipe
from newllm_lib.runs import Run, read_status
from newllm_lib.training import loop, losses, resume, train
from newllm_lib.training.progress import Progress
from tests.helpers.loading import load_run
from tests.helpers.small_runs import losses as learned, recipe, rows, stopped_after, write_text


def evaluations(run):
    return [row for row in rows(run) if "eval_loss" in row]


@pytest.mark.parametrize("model", ["new_llm", "tiny_gpt2"])
def test_a_run_folder_holds_all_that_is_needed_elsewhere(folder, capsys, model):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = train(recipe(folder, model=model))
    assert read_status(run)["state"] == "done"
    assert {p.name for p in run.path.iterdir()} >= {
        "recipe.yaml",
        "best",
        "last",
        "metrics.jsonl",
        "curves.png",
        "train.log",
        "status.json",
    }
    for place in (run.best, run.last, run.latest_checkpoint()):
        tokenizer, loaded = AutoTokenizer.from_pretrained(place), AutoModelForCausalLM.from_pretrained(place)
        assert (
            len(tokenizer) == loaded.config.vocab_size
            and loaded.config.eos_token_id == tokenizer.eos_token_id
        )
        assert not [
            p for p in place.iterdir() if p.suffix in (".bin", ".pkl")
        ]  # nothing pickled but torch's own tensors
    steps = [row for row in rows(run) if "loss" in row]
    assert set(steps[0]) == {
        "step",
        "epoch",
        "loss",
        "learning_rate",
        "grad_norm",
        "tokens_per_second",
        "time",
    }
    assert steps[-1]["loss"] < steps[0]["loss"]
    log = run.log.read_text()
    for words in (
        "Epoch 1/2",
        "Epoch 2/2",
        "Training...",
        "Val: Loss=",
        "vocab ",
        "bits/byte=",
        "✓",
        "[Checkpoint saved]",
    ):
        assert words in log and words in capsys.readouterr().out + log
    assert (
        log.count("Val: ") == 2 == len(evaluations(run))
    )  # each evaluation once, also where an epoch and the run end together


def test_the_check_mark_the_best_model_and_the_best_row_are_one(folder):
    run = train(
        recipe(folder, epochs=4, learning_rate=0.3, dropout=0.0)
    )  # too fast on purpose: it gets worse again
    scores = [(row["eval_bits_per_byte"], row["step"], row["best"]) for row in evaluations(run)]
    best_so_far = float("inf")
    for score, _, marked in scores:
        assert marked == (score < best_so_far)
        best_so_far = min(best_so_far, score)
    assert run.log.read_text().count("✓") == sum(marked for *_, marked in scores)


def test_patience_stops_a_run_that_no_longer_improves(folder):
    run = train(recipe(folder, epochs=30, learning_rate=0.5, warmup_steps=1, patience=2, dropout=0.0))
    flags = [row["best"] for row in evaluations(run)]
    assert flags[-2:] == [False, False] and len(flags) < 30
    assert "stopping early" in run.log.read_text()


def test_max_steps_and_keep_checkpoints_and_evals_per_epoch(folder):
    run = train(recipe(folder, max_steps=12, keep_checkpoints=2, evals_per_epoch=3, save_minutes=0))
    assert rows(run)[-1]["step"] == 12
    assert [p.name for p in run.checkpoints()] == ["checkpoint-11", "checkpoint-12"]
    assert (
        len(evaluations(train(recipe(folder, evals_per_epoch=3, epochs=1, output_dir=str(folder / "three")))))
        == 3
    )


def test_the_seed_changes_the_run_and_nothing_else_does(folder):
    curves = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run = train(recipe(folder, seed=seed, max_steps=6, logging_steps=1, output_dir=str(folder / name)))
        curves[name] = [row["loss"] for row in rows(run) if "loss" in row]
    assert curves["a"] == curves["b"] != curves["c"]


def test_micro_batches_change_nothing_but_rounding(folder):
    losses = []
    for micro in (8, 4, 1):
        run = train(
            recipe(
                folder,
                micro_batch_size=micro,
                max_steps=8,
                logging_steps=1,
                dropout=0.0,
                output_dir=f"m{micro}",
            )
        )
        losses.append(torch.tensor([row["loss"] for row in rows(run) if "loss" in row]))
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(losses[2], losses[0], rtol=1e-4, atol=1e-5)


def test_the_state_is_carried_from_block_to_block_of_the_same_text(folder, monkeypatch):
    """With a learning rate of 0 the losses of an epoch read in order are those of reading each row in one
    piece.
    """
    seen = []
    loss = losses.NextTokenLoss.__call__

    def spy(self, model, batch, tokens):
        seen.append(torch.stack([batch["input_ids"], batch["labels"]]))
        return loss(self, model, batch, tokens)

    monkeypatch.setattr(losses.NextTokenLoss, "__call__", spy)
    still = {
        "learning_rate": 0.0,
        "carry_state": True,
        "dropout": 0.0,
        "logging_steps": 1,
        "epochs": 1,
        "micro_batch_size": 4,
    }
    run = train(recipe(folder, **still))
    found = torch.tensor([row["loss"] for row in rows(run) if "loss" in row])
    steps = [torch.cat(seen[i : i + 2], 1) for i in range(0, len(seen), 2)]  # two micro-batches each
    ids, labels = torch.cat(steps, 2)  # (batch, the whole epoch)
    nll = torch.nn.functional.cross_entropy(
        load_run(run)[0](ids).logits.transpose(1, 2), labels, reduction="none"
    )
    torch.testing.assert_close(found, nll.unflatten(1, (-1, 16)).mean((0, 2)), rtol=1e-4, atol=1e-4)
    with pytest.raises(UsageError, match="carry_state"):
        train(recipe(folder, model="tiny_gpt2", carry_state=True, output_dir=str(folder / "gpt2")))


def test_too_little_memory_halves_the_micro_batch_and_gives_the_same_curve(folder, monkeypatch):
    whole = train(recipe(folder, dropout=0.0, logging_steps=1, output_dir=str(folder / "whole")))
    step = loop.TrainingLoop.train_step

    def small_gpu(self, batches):
        if len(batches[0]["input_ids"]) > 2 and self.step >= 9:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return step(self, batches)

    monkeypatch.setattr(loop.TrainingLoop, "train_step", small_gpu)
    run = train(recipe(folder, dropout=0.0, logging_steps=1, save_minutes=0))
    assert run.log.read_text().count("Out of GPU memory") == 2  # 8, 4, 2 sequences at a time
    found, expected = ([r["loss"] for r in rows(x) if "loss" in r] for x in (run, whole))
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-4, atol=1e-5)

    def no_gpu(self, *args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(loop.TrainingLoop, "train_step", no_gpu)
    with pytest.raises(NewLLMError, match="too small even for one sequence"):
        train(recipe(folder, output_dir=str(folder / "never")))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_checkpoint(folder, monkeypatch, value):
    step = loop.TrainingLoop.train_step

    def broken(self, batches):
        norm = step(self, batches)
        if self.step == 7:
            self.log.interval_loss += value
        return norm

    monkeypatch.setattr(loop.TrainingLoop, "train_step", broken)
    with pytest.raises(NewLLMError, match="loss became (nan|inf).*checkpoint-7.*--learning_rate") as error:
        train(recipe(folder, logging_steps=5, save_minutes=0))
    run = Run(folder / "run")
    assert "\n" not in str(error.value) and run.latest_checkpoint().name == "checkpoint-7"
    assert read_status(run)["state"] == "failed"


def test_a_signal_saves_and_the_same_command_continues(folder, monkeypatch):

    whole = train(recipe(folder, logging_steps=3, output_dir=str(folder / "whole")))
    with stopped_after(4):
        train(recipe(folder, logging_steps=3))
    run = Run(folder / "run")
    assert run.latest_checkpoint().name == "checkpoint-5" and read_status(run)["state"] == "interrupted"
    train(recipe(folder, logging_steps=3))
    strip = [
        [{k: v for k, v in r.items() if k not in ("time", "tokens_per_second")} for r in rows(x)]
        for x in (run, whole)
    ]
    assert strip[0] == strip[1]


def test_a_finished_run_says_so_and_trains_no_more(folder, capsys):
    run = train(recipe(folder))
    before = run.metrics_path.read_bytes()
    train(recipe(folder))
    assert "finished already" in capsys.readouterr().out and run.metrics_path.read_bytes() == before


def test_another_recipe_in_the_same_folder_is_refused_with_the_keys_and_a_name(folder):
    train(recipe(folder, max_steps=2))
    with pytest.raises(UsageError, match="learning_rate: 0.001.*--output_dir .*run_2"):
        train(recipe(folder, max_steps=2, learning_rate=0.001))
    with pytest.raises(UsageError, match="resume is never"):
        train(recipe(folder, max_steps=2, resume="never"))


def test_a_run_started_on_another_machine_keeps_its_preset(folder, monkeypatch):
    choices = {
        "data_dir": str(folder / "text"),
        "vocab_size": 300,
        "output_dir": str(folder / "run"),
        "max_steps": 2,
    }
    started = load_recipe("demo", {**choices, "sized_for": "cpu"})
    (folder / "run").mkdir()
    (folder / "run" / "recipe.yaml").write_text(started.to_yaml())
    settled = resume.match_recorded_recipe(
        load_recipe("demo", choices, device_kind="h100"), Run(folder / "run")
    )
    assert settled.sized_for == "cpu" and not settled.differences(started)


def test_other_data_under_the_same_name_is_not_mixed_in(folder):
    run = train(recipe(folder, max_steps=4))
    text = folder / "text" / "train.txt"
    text.write_text(text.read_text().replace("cat", "dog"))
    run.status_path.unlink()
    with pytest.raises(UsageError, match="training data is not what"):
        train(recipe(folder, max_steps=4))


def test_a_torn_checkpoint_is_not_loaded_the_one_before_is(folder):
    run = train(recipe(folder, save_minutes=0, max_steps=9))
    newest = run.latest_checkpoint()
    weights = newest / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    run.status_path.unlink()
    assert run.latest_checkpoint().name == "checkpoint-8"
    with pytest.raises(NewLLMError, match="checkpoint-9 is not whole"):
        train(recipe(folder, save_minutes=0, max_steps=9, resume="checkpoint-9"))
    train(recipe(folder, save_minutes=0, max_steps=9))
    assert run.latest_checkpoint().name == "checkpoint-9" and rows(run)[-1]["step"] == 9


def test_a_gpu_that_is_asked_for_and_not_there_is_one_line(folder, monkeypatch):
    monkeypatch.setenv("NEWLLM_DEVICE", "t4")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="needs a GPU"):
        train(recipe(folder))


def test_the_sequential_recurrence_and_the_seed_protocol_train_too(folder):
    run = train(recipe(folder, recurrence="sequential", protocol="seed", max_steps=6))
    row = evaluations(run)[-1]
    assert row["eval_lower_cased"] == "True" or row["eval_lower_cased"] is True


def test_a_batch_that_processes_cannot_share_is_refused_before_anything_is_made(folder):
    with pytest.raises(UsageError, match="cannot be shared by 3 processes"):
        train(recipe(folder, num_gpus=3))
    assert not (folder / "run").exists()


def test_a_run_that_patience_ended_stays_ended_and_a_refused_command_changes_nothing(folder, capsys):
    choices = {"epochs": 30, "learning_rate": 0.5, "warmup_steps": 1, "patience": 1, "dropout": 0.0}
    run = train(recipe(folder, **choices))
    before = run.metrics_path.read_bytes()
    train(recipe(folder, **choices))
    assert "finished already" in capsys.readouterr().out and run.metrics_path.read_bytes() == before
    for wrong in ("best", "checkpoint-1", f"other/{run.latest_checkpoint().name}"):
        with pytest.raises(UsageError, match="name a checkpoint of"):
            train(recipe(folder, **choices, resume=wrong))
        assert read_status(run)["state"] == "done"


def test_a_validation_that_is_no_number_is_never_the_best(folder, monkeypatch):
    monkeypatch.setattr(
        metrics,
        "measure",
        lambda *a, **k: ({"loss": float("nan"), "bits_per_byte": float("nan"), "tokens": 1}, dict),
    )
    with pytest.raises(NewLLMError, match="loss became nan"):
        train(recipe(folder))
    run = Run(folder / "run")
    assert not run.best.exists() and not run.checkpoints() and "NaN" not in run.metrics_path.read_text()


def test_a_second_sigterm_does_not_lose_the_save(folder, monkeypatch):
    import signal

    step = loop.TrainingLoop.train_step

    def twice(self, batches):
        if self.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batches)

    monkeypatch.setattr(loop.TrainingLoop, "train_step", twice)
    with pytest.raises(Interrupted):
        train(recipe(folder))
    assert Run(folder / "run").latest_checkpoint().name == "checkpoint-5"


def test_resuming_an_older_checkpoint_sets_the_newer_ones_aside(folder):
    choices = {"save_minutes": 0, "max_steps": 9, "keep_checkpoints": 3}
    run = train(recipe(folder, **choices))
    rows_before = run.metrics_path.read_text()
    train(recipe(folder, **choices, resume="checkpoint-7"))
    assert (run.path / "superseded-checkpoint-9").is_dir()
    assert [p.name for p in run.checkpoints()][-2:] == ["checkpoint-8", "checkpoint-9"]
    steps = [
        [json.loads(line)["step"] for line in text.splitlines()]
        for text in (rows_before, run.metrics_path.read_text())
    ]
    assert steps[0] == steps[1]


def test_a_part_of_the_validation_text_is_measured_and_all_of_it_at_the_end(tmp_path, monkeypatch, capsys):
    """The part is the same each time; the best by it is measured whole, and that is what is said."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path
    write_text(folder, documents=400)
    choices = {"epochs": 1, "evals_per_epoch": 4, "max_steps": 30, "sample_tokens": 0, "dropout": 0.0}
    judge = Progress.judge  # as if the first evaluation stayed the best
    monkeypatch.setattr(Progress, "judge", lambda self, bits, step: judge(self, bits + (step > 25), step))
    whole = train(recipe(folder, **choices, output_dir=str(folder / "whole")))
    part = train(recipe(folder, **choices, eval_tokens=256))
    assert learned(part) == learned(whole)  # how much is measured changes nothing that is learned
    *measured, final = evaluations(part)
    assert {row["eval_tokens"] for row in measured} == {256} and not any("final" in row for row in measured)
    assert final["final"] and final["eval_tokens"] > 256
    best = measured[0]
    assert final["step"] == best["step"] < measured[-1]["step"]  # not the last model
    same = [row for row in evaluations(whole) if row["step"] == best["step"]]
    assert same[0]["eval_loss"] == pytest.approx(final["eval_loss"], rel=1e-6)
    assert f"Best validation: {final['eval_bits_per_byte']:.4f}" in capsys.readouterr().out
    assert part.best_evaluation() == final
    assert json.loads((part.path / "report.json").read_text())["bits_per_byte"] == final["eval_bits_per_byte"]
