"""Preference training end to end on tiny models: TinyGPT2 and New-LLM, with adapters and without; results,
faults, resuming.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from newllm_lib.data.preferences import encode_pairs, generate
from newllm_lib.errors import NewLLMError
from newllm_lib.evaluation.answers import collapsed
from newllm_lib.export.folder import export
from newllm_lib.runs import MARK, Run, ask_to_save, is_complete, is_finished, read_status
from newllm_lib.training import train
from tests.helpers.killed_trl import curve, killed_while_saving
from tests.helpers.loading import load_run
from tests.helpers.preference_bases import at_step, make_base, recipe, stopped_after
from tests.helpers.texts import write_jsonl

MODELS = ("tiny_gpt2", "new_llm")


@pytest.fixture(scope="module", autouse=True)
def _few_answers():
    """Random bases may babble; and three watched prompts instead of a dozen: answering takes most of these
    tests' time.
    """
    from newllm_lib.training.preferences import preference_task

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preference_task, "_WATCHED", 3)
        patch.setattr(
            preference_task, "collapsed", lambda now, before: None
        )  # what random weights say is hardly ever sound
        yield


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    return {model: make_base(folder / model, model) for model in MODELS}


@pytest.fixture(scope="module")
def runs(bases, tmp_path_factory):
    """A finished run of each model with adapters."""
    folder = tmp_path_factory.mktemp("runs")
    return {model: train(recipe(folder, bases[model], model)) for model in MODELS}


def training_rows(run):
    return [row for row in run.metrics() if "loss" in row]


def evaluations(run):
    return [row for row in run.metrics() if "eval_loss" in row]


@pytest.mark.parametrize("model", MODELS)
def test_it_starts_at_log_two_and_learns(model, runs):
    """0.693 with accumulation too: neither dropout nor the number of accumulated batches is in the loss."""
    rows = training_rows(runs[model])
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-4) and rows[0]["step"] == 1
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.02 and rows[-1]["rewards/margins"] > 0
    first, *_, last = evaluations(runs[model])
    assert first["step"] == 0 and first["eval_loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert last["eval_loss"] < first["eval_loss"] and last["eval_margin"] > first["eval_margin"]
    assert first["eval_kl"] == pytest.approx(0, abs=1e-4) and any(
        abs(r["eval_kl"]) > 0.01 for r in evaluations(runs[model])
    )


@pytest.mark.parametrize("model", MODELS)
def test_a_run_holds_all_that_is_needed(model, runs):
    run = runs[model]
    assert read_status(run)["state"] == "done"
    assert all(is_complete(run.path / part) for part in ("best", "last", "base"))
    assert run.curves.stat().st_size > 10_000
    row = training_rows(run)[-1]
    assert {
        "rewards/chosen",
        "rewards/rejected",
        "rewards/margins",
        "rewards/accuracies",
        "logps/chosen",
        "logps/rejected",
        "learning_rate",
        "grad_norm",
        "pairs_per_second",
    } <= row.keys()
    assert {
        "eval_accuracy_low",
        "eval_margin_high",
        "eval_kl",
        "eval_empty",
        "eval_repeating",
        "eval_accuracy_vague",
    } <= (evaluations(run)[-1].keys())
    result = json.loads((run.path / "preferences.json").read_text(encoding="utf-8"))
    assert result["before"]["figures"]["pairs"] == result["after"]["figures"]["pairs"] == 30
    assert (
        len(result["questions"]) == len(result["before"]["answers"]) == len(result["after"]["answers"]) == 3
    )
    card = (run.path / "card.md").read_text(encoding="utf-8")
    for words in (
        "30 held-out pairs",
        "| accuracy |",
        "| vague |",
        "length of the model's answers",
        "PeftModel.from_pretrained",
        "bag of words",
    ):
        assert words in card
    assert "Val: Loss=" in run.log.read_text(encoding="utf-8") and "Before:" in run.log.read_text(
        encoding="utf-8"
    )


@pytest.mark.parametrize("model", MODELS)
def test_the_adapter_loads_with_transformers_and_peft_alone_and_merged_gives_the_same(model, runs, tmp_path):
    """In a process of its own, which knows our models and nothing else of ours."""
    run, merged, logits = runs[model], export(runs[model], tmp_path / "merged"), tmp_path / "logits.pt"
    script = [
        sys.executable,
        str(Path(__file__).with_name("load_alone.py")),
        str(run.path),
        str(merged),
        str(logits),
        "ours",
    ]
    done = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    known = set(json.loads(done.stdout.splitlines()[-1]))
    assert "newllm_lib.models" in known and not known & {
        "trl",
        "datasets",
        "newllm_lib.training",
        "newllm_lib.evaluation",
    }
    found = torch.load(logits)
    assert (found["adapted"] - found["base"]).abs().max() > 1e-3  # the adapters do something
    ours, _, kept = load_run(run)
    with torch.no_grad():
        wanted = ours(input_ids=found["ids"]).logits
    for name in ("adapted", "merged"):
        assert (found[name] - wanted).abs().max() < 1e-4
    assert kept.task == "dpo" and list(merged.glob("*.safetensors"))
    card = (merged / "README.md").read_text(encoding="utf-8")
    assert "held-out pairs" in card and str(run.path.parent) not in card  # no folder of this machine


def test_the_cards_snippet_runs(runs, monkeypatch):
    run = runs["new_llm"]
    monkeypatch.chdir(run.path)
    snippet = (run.path / "card.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    names: dict = {}
    exec(snippet, names)
    ids = names["tokenizer"]("機械学習とは", return_tensors="pt")["input_ids"]
    assert names["model"].generate(input_ids=ids, max_new_tokens=4).shape[1] > ids.shape[1]


def test_evaluating_the_run_measures_its_held_out_pairs_again(runs, capsys):
    from newllm_lib.cli import main

    run = runs["tiny_gpt2"]
    assert main(["evaluate", str(run.path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    after = json.loads((run.path / "preferences.json").read_text(encoding="utf-8"))["after"]["figures"]
    for name in ("pairs", "accuracy", "accuracy_low", "margin", "margin_high"):
        assert found[name] == pytest.approx(after[name], abs=1e-3)
    assert found["kinds"].keys() == after["kinds"].keys() and 0 < found["shortcuts"]["bag_of_words"] <= 1


def test_chat_talks_with_the_result(runs):
    from newllm_lib.generation.chat import ChatSession

    model, tokenizer, _ = load_run(runs["new_llm"])
    session = ChatSession(model, tokenizer, dialogue=True)
    session.settings = session.settings.changed("max_new_tokens", "5")
    assert isinstance("".join(session.reply("機械学習とは何ですか。")), str)


def test_a_run_whose_machine_and_base_went_away_goes_on_from_its_copy_with_the_same_rows(bases, tmp_path):
    base, drive = shutil.copytree(bases["new_llm"], tmp_path / "base"), tmp_path / "drive"
    drive.mkdir()
    whole = train(recipe(tmp_path, base, "whole", epochs=1))
    stopped = recipe(tmp_path, base, "stopped", epochs=1, mirror_dir=str(drive))
    with stopped_after(4):
        train(stopped)
    for gone in (stopped.run_path(), base):
        shutil.rmtree(gone)
    again = train(stopped)

    def figures(run):  # a row more at the save, so the one after it averages fewer steps
        changing = ("time", "pairs_per_second")
        return [
            {k: v for k, v in row.items() if k not in changing}
            for row in run.metrics()
            if row["step"] not in (5, 6)
        ]

    assert [r["step"] for r in training_rows(again)] == [1, 3, 5, 6, 9, 12]
    assert figures(again) == figures(whole) == figures(Run(drive / "stopped"))
    assert (
        all(is_complete(drive / "stopped" / part) for part in ("best", "base"))
        and (drive / "stopped" / "card.md").is_file()
    )
    train(stopped)
    assert "finished already" in again.log.read_text(encoding="utf-8")


def test_killed_while_it_saves_it_leaves_no_checkpoint_and_gives_the_same_rows_again(bases, tmp_path):
    """SIGKILL when the trainer has written the second checkpoint and it is not sealed yet."""
    whole = train(recipe(tmp_path, bases["tiny_gpt2"], "whole", save_steps=5))
    killed = recipe(tmp_path, bases["tiny_gpt2"], "killed", save_steps=5)
    run = killed_while_saving("dpo", killed, 10)
    assert [p.name for p in run.checkpoints()] == ["checkpoint-5"]
    again = train(killed)
    assert [p.name for p in again.path.iterdir() if p.name.startswith(".")] == [MARK]
    assert curve(again) == curve(whole)


def test_a_save_is_made_when_it_is_asked_for_and_training_goes_on(bases, tmp_path):
    run = Run(tmp_path / "run")

    def ask():
        assert ask_to_save(run)

    with at_step(1, ask):
        train(recipe(tmp_path, bases["new_llm"], max_steps=4))
    assert run.checkpoint(2).is_dir() and is_finished(run)


@pytest.mark.parametrize("model", ["new_llm", pytest.param("tiny_gpt2", marks=pytest.mark.slow)])
def test_without_adapters(model, bases, tmp_path):
    run = train(recipe(tmp_path, bases[model], lora_rank=0, learning_rate=1e-3, epochs=1))
    rows = training_rows(run)
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-4) and rows[-1]["loss"] < rows[0]["loss"]
    assert (run.best / "config.json").is_file() and "eval_kl" not in evaluations(run)[-1]
    assert "PeftModel" not in (run.path / "card.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("rank", [4, 0])
def test_the_loss_is_measured_against_the_reference_that_was_computed_before(
    rank, bases, tmp_path, monkeypatch
):
    """Not against one that TRL computes: a reference moved by 5 nats moves the first loss."""
    from newllm_lib.training.preferences import preference_task

    def prepared(*args, original=preference_task.prepare_pairs):
        data = original(*args)
        for row in data.train_rows:
            row["ref_rejected_logps"] += 5.0
        return data

    monkeypatch.setattr("newllm_lib.training.preferences.run.prepare_pairs", prepared)
    run = train(recipe(tmp_path, bases["tiny_gpt2"], max_steps=1, beta=0.2, lora_rank=rank))
    assert training_rows(run)[0]["loss"] == pytest.approx(math.log1p(math.exp(-1.0)), abs=1e-4)


def test_a_warm_start_teaches_the_preferred_answers_and_becomes_the_base(bases, tmp_path):
    plain = train(recipe(tmp_path, bases["new_llm"], "plain", max_steps=1))
    warm = train(
        recipe(tmp_path, bases["new_llm"], "warm", max_steps=1, sft_warm_start=3, sft_learning_rate=3e-3)
    )
    cold, start = evaluations(plain)[0], evaluations(warm)[0]
    assert start["eval_chosen"] > cold["eval_chosen"] + 20
    assert training_rows(warm)[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    taught, _, _ = load_run(warm.path / "base")
    before, _, _ = load_run(bases["new_llm"])
    assert any(
        (a - b).abs().max() > 1e-3 for a, b in zip(taught.parameters(), before.parameters(), strict=True)
    )


# --- what goes wrong
# --------------------------------------------------------------------------------------------------


def pairs_file(folder, rows):
    return str(write_jsonl(folder / "pairs.jsonl", rows))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"base": "./nowhere"}, "No run './nowhere'"),
        ({"base": "no such model!"}, "No run 'no such model!'"),
        ({"base": "owner/model"}, "Model owner/model cannot be read from the Hugging Face hub"),
        ({"max_seq_length": 97}, "reads at most 96 tokens"),
        ({"max_seq_length": 5}, "No pair fits into 5 tokens"),
        ({"batch_size": 97, "micro_batch_size": 1}, "fewer than one batch of 97"),
        ({"loss_type": "nonsense"}, "loss_type nonsense"),
    ],
)
def test_bad_input_is_one_line(changes, words, bases, tmp_path, monkeypatch):
    from newllm_lib import hub

    monkeypatch.setattr(hub, "DELAYS", (0.01,))
    with pytest.raises(NewLLMError) as error:
        train(recipe(tmp_path, changes.pop("base", bases["tiny_gpt2"]), **changes))
    assert words in str(error.value) and "\n" not in str(error.value)
    assert not any(
        (tmp_path / "run" / name).exists() for name in ("best", "recipe.yaml")
    )  # the folder is free for another try


def test_pairs_that_are_none_are_left_out_and_said(bases, tmp_path):
    good = [{"prompt": f"問い{i}", "chosen": f"正しい答え{i}", "rejected": f"だめ{i}"} for i in range(60)]
    bad = [
        {"prompt": "問い", "chosen": "同じ", "rejected": "同じ"},
        {"prompt": "問い", "chosen": "", "rejected": "あ"},
        {"prompt": "長い" * 200, "chosen": "あ", "rejected": "い"},
    ]
    run = train(
        recipe(
            tmp_path, bases["new_llm"], data=pairs_file(tmp_path, good + bad), max_samples="none", max_steps=2
        )
    )
    log = run.log.read_text(encoding="utf-8")
    assert (
        "1 × two equal answers" in log
        and "1 × an empty answer" in log
        and "1 pairs left out for a prompt" in log
    )


def test_the_sequential_recurrence_learns_from_pairs_by_adapters(tmp_path):
    base = make_base(tmp_path / "base", "new_llm", recurrence="sequential")
    run = train(recipe(tmp_path, base, max_samples=24, eval_pairs=8, max_steps=2))
    assert read_status(run)["state"] == "done"


def test_a_loss_that_is_no_number_stops_the_run(bases, tmp_path):
    with pytest.raises(NewLLMError, match="became nan|became inf"):
        train(
            recipe(
                tmp_path, bases["tiny_gpt2"], learning_rate=1e18, max_grad_norm=0, lora_rank=0, warmup_steps=0
            )
        )
    assert read_status(Run(tmp_path / "run"))["state"] == "failed"


def test_a_loss_of_nothing_stops_the_run(bases, tmp_path, monkeypatch):
    monkeypatch.setattr("newllm_lib.training.preferences.dpo_task.NO_LOSS", 1.0)
    with pytest.raises(NewLLMError, match="The loss is 0 at step 1"):
        train(recipe(tmp_path, bases["new_llm"]))


@pytest.mark.parametrize(
    ("said", "word"), [("", "empty"), pytest.param("が" * 16, "repeating", marks=pytest.mark.slow)]
)
def test_answers_that_become_empty_or_repeat_end_the_run_as_no_success(
    said, word, bases, tmp_path, monkeypatch
):
    from newllm_lib.training.preferences import preference_task

    asked: list = []

    def answers(model, tokenizer, pairs, tokens):  # healthy before training, then not
        asked.append(1)
        return [f"答え{i}は、次のとおりです。" if len(asked) < 3 else said for i, _ in enumerate(pairs)]

    monkeypatch.setattr(preference_task, "answers", answers)
    monkeypatch.setattr(preference_task, "collapsed", collapsed)
    with pytest.raises(NewLLMError, match=f"Not a success: .*{word}"):
        train(recipe(tmp_path, bases["new_llm"], evals_per_epoch=4))
    run = Run(tmp_path / "run")
    assert read_status(run)["state"] == "failed" and "Flagged" in run.log.read_text(encoding="utf-8")
    assert max(row["step"] for row in run.metrics()) < 24  # stopped at the second evaluation in a row
    assert "Not a success" in (run.path / "card.md").read_text(encoding="utf-8")


def test_short_of_memory_it_goes_on_with_fewer_pairs_at_a_time(bases, tmp_path, monkeypatch):
    from newllm_lib.training.trl import run

    original, tried = run._fit, []

    def fit(*args):
        tried.append(args[-1])
        if len(tried) < 3:
            raise torch.OutOfMemoryError("no")
        return original(*args)

    monkeypatch.setattr(run, "_fit", fit)
    run = train(recipe(tmp_path, bases["new_llm"], max_steps=3, micro_batch_size=8))
    assert tried == [8, 4, 2] and training_rows(run)[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)


# --- each key has an effect
# -------------------------------------------------------------------------------------------


def test_keys_reach_trl_and_peft(bases):
    from trl import DPOConfig

    from newllm_lib.models.lora import lora_config
    from newllm_lib.training.preferences.dpo_task import dpo_arguments

    def config(**changes):
        values = {"output_dir": "x", "use_cpu": True, "bf16": False, "fp16": False}
        chosen = {"beta": 0.1, "loss_type": "sigmoid", "max_seq_length": 128} | changes
        return DPOConfig(**values, **dpo_arguments(SimpleNamespace(**chosen)))

    assert config(beta=0.3).beta == 0.3 and config(loss_type="sigmoid+ipo").loss_type == ["sigmoid", "ipo"]
    assert config(max_seq_length=64).max_length == 64
    model, _, _ = load_run(bases["tiny_gpt2"])
    adapters = lora_config(model, 8, 16.0, 0.2)
    assert (adapters.r, adapters.lora_alpha, adapters.lora_dropout) == (8, 16.0, 0.2)


def test_the_task_decides_the_name(tmp_path):
    from newllm_lib.recipe import load_recipe

    names = [
        load_recipe("dpo", {"sized_for": "t4", **changes}).run_name
        for changes in (
            {},
            {"beta": 0.3},
            {"learning_rate": 1e-4},
            {"base": "some/new_llm_demo"},
            {"data": "hh_rlhf"},
            {"loss_type": "ipo"},
            {"sft_warm_start": 1},
            {"max_samples": 500},
            {"lora_rank": 8},
        )
    ]
    assert (
        names[0] == "dpo_dialogpt-small" and names[3] == "dpo_new_llm_demo" and len(set(names)) == len(names)
    )


def test_the_shipped_recipe_is_the_guides():
    from newllm_lib.recipe import load_recipe

    dpo = load_recipe("dpo", {"sized_for": "t4"})
    assert (dpo.base, dpo.epochs, dpo.batch_size, dpo.learning_rate, dpo.max_seq_length) == (
        "microsoft/DialoGPT-small",
        1.0,
        4,
        5e-6,
        128,
    )
    assert dpo.lora_rank and dpo.max_samples == 1000 and dpo.max_grad_norm == 1.0


def test_pairs_are_cut_to_the_length_of_the_recipe(bases):
    _, tokenizer, _ = load_run(bases["new_llm"])
    rows = encode_pairs(generate(30), tokenizer, 40).rows
    assert max(len(r["prompt_ids"]) + len(r["chosen_ids"]) for r in rows) <= 40
