"""Reward models: our sequence classifiers, and `newllm train reward` on tiny bases."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

import newllm_lib.models.sequence_classification  # noqa: F401  makes our models known
from newllm_lib.checkpoints import load_model, load_reward_model
from newllm_lib.cli import main
from newllm_lib.errors import NewLLMError
from newllm_lib.export.folder import export
from newllm_lib.training import train
from tests.helpers.chat_bases import chat_base
from tests.helpers.killed_trl import check_a_kill
from tests.helpers.preference_bases import make_base, recipe, stopped_after
from tests.helpers.texts import write_jsonl

BASES = ("new_llm", pytest.param("tiny_gpt2", marks=pytest.mark.slow), "qwen2")


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    made = {model: make_base(folder / model, model) for model in ("new_llm", "tiny_gpt2", "phase7")}
    return made | {"qwen2": chat_base(folder / "qwen2", "qwen2")}


def chosen(folder, base, name="run", **changes):
    small = {"epochs": 2, "eval_pairs": 16, "lora_dropout": 0.0, "evals_per_epoch": 1}
    length = {"max_seq_length": 256, "max_samples": 48} if "qwen2" in str(base) else {}
    return recipe(folder, base, name, method="reward", **(small | length | changes))


def easy_pairs(folder):
    """Pairs that an ordinary word tells apart."""
    rows = [{"prompt": f"問い{n}", "chosen": f"はい{n}", "rejected": f"いいえ{n}"} for n in range(120)]
    return str(write_jsonl(folder / "pairs.jsonl", rows))


def evaluations(run):
    return [row for row in run.metrics() if "eval_loss" in row]


@pytest.mark.parametrize("model", ["new_llm", "tiny_gpt2", "phase7"])
@torch.no_grad()
def test_ours_score_the_last_token_that_is_no_padding(model, bases, tmp_path):
    made = AutoModelForSequenceClassification.from_pretrained(bases[model], num_labels=1).eval()
    pad = made.config.pad_token_id
    text, longer = [40, 41, 42], [43, 44, 45, 46, 47]
    alone = [made(input_ids=torch.tensor([ids])).logits for ids in (text, longer)]
    ids = torch.tensor([text + [pad, pad], longer])
    mask = (ids != pad).long()
    for how in ({"attention_mask": mask}, {}):
        batch = made(input_ids=ids, **how).logits
        assert batch.shape == (2, 1)
        assert torch.allclose(batch, torch.cat(alone), atol=1e-5)
    made.save_pretrained(tmp_path / "saved")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved").eval()
    assert torch.equal(again(input_ids=torch.tensor([text])).logits, alone[0])
    labels = torch.tensor([[0.0], [1.0]])
    assert made(input_ids=ids, attention_mask=mask, labels=labels).loss.shape == ()


@pytest.mark.parametrize("base", BASES)
def test_it_learns_which_answer_is_better(base, bases, tmp_path, capsys):
    run = train(chosen(tmp_path, bases[base], data=easy_pairs(tmp_path), max_seq_length=96))
    first, *_, last = evaluations(run)
    assert last["eval_loss"] < first["eval_loss"] and last["eval_margin"] > first["eval_margin"]
    assert last["eval_accuracy"] > 0.9
    assert {"eval_accuracy_low", "eval_accuracy_high"} <= last.keys() and "eval_kl" not in last
    rows = [row for row in run.metrics() if "loss" in row]
    assert {"accuracy", "margin", "mean_reward", "pairs_per_second"} <= rows[-1].keys()
    card = (run.path / "card.md").read_text(encoding="utf-8")
    assert "gives the higher reward" in card and "AutoModelForSequenceClassification" in card
    capsys.readouterr()
    assert main(["evaluate", str(run.path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    after = json.loads((run.path / "preferences.json").read_text(encoding="utf-8"))["after"]["figures"]
    for name in ("accuracy", "accuracy_low", "accuracy_high", "margin"):
        assert found[name] == pytest.approx(after[name], abs=1e-4)


def test_the_cards_snippet_gives_the_same_rewards(bases, tmp_path, monkeypatch):
    run = train(chosen(tmp_path, bases["new_llm"], max_steps=4))
    monkeypatch.chdir(run.path)
    snippet = (run.path / "card.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    names: dict = {}
    exec(snippet, names)
    ids = names["tokenizer"]("機械学習とは", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        ours = load_reward_model(str(run.path)).model(input_ids=ids).logits
        assert torch.allclose(names["model"].eval()(input_ids=ids).logits, ours, atol=1e-5)


def test_all_weights_learn_and_load_with_transformers_alone(bases, tmp_path):
    data = easy_pairs(tmp_path)
    run = train(chosen(tmp_path, bases["tiny_gpt2"], data=data, lora_rank=0, learning_rate=1e-3, max_steps=8))
    first, *_, last = evaluations(run)
    assert last["eval_loss"] < first["eval_loss"]
    made = AutoModelForSequenceClassification.from_pretrained(run.best).eval()
    ids = torch.tensor([[40, 41, 42]])
    with torch.no_grad():
        assert torch.allclose(
            made(input_ids=ids).logits, load_reward_model(str(run.path)).model(input_ids=ids).logits
        )


def test_a_stopped_run_goes_on_to_the_same_curve(bases, tmp_path):
    changes = {"lora_dropout": 0.1, "max_steps": 6, "logging_steps": 1, "save_steps": 3}

    def curve(run):
        timed = ("time", "pairs_per_second")
        return [{k: v for k, v in row.items() if k not in timed} for row in run.metrics()]

    whole = train(chosen(tmp_path, bases["new_llm"], "whole", **changes))
    parts = chosen(tmp_path, bases["new_llm"], "parts", **changes)
    with stopped_after(2, "reward"):
        train(parts)
    assert curve(train(parts)) == curve(whole)


@pytest.mark.slow
def test_a_kill_gives_the_same_curve_again(bases, tmp_path):
    changes = {"lora_dropout": 0.1, "max_steps": 6, "logging_steps": 1, "save_steps": 2}
    check_a_kill("reward", lambda name: chosen(tmp_path, bases["new_llm"], name, **changes), 4)


def test_what_a_reward_model_cannot_is_one_line(bases, tmp_path, capsys):
    run = train(chosen(tmp_path, bases["new_llm"], max_steps=1))
    with pytest.raises(NewLLMError, match="is a reward model") as error:
        load_model(str(run.path))
    assert "\n" not in str(error.value)
    with pytest.raises(NewLLMError, match="is no reward model: name a run of `newllm train reward`"):
        load_reward_model(str(bases["new_llm"]))
    for words in (["--load_in", "4bit"], ["--beta", "0.2"], ["--sft_warm_start", "1"]):
        assert main(["train", "reward", *words]) == 2
        assert f"{words[0]} is for task" in capsys.readouterr().err


@pytest.mark.parametrize(("model", "rank"), [("new_llm", 4), ("tiny_gpt2", 0), ("qwen2", 4)])
def test_an_export_scores_the_same_without_newllm_lib(model, rank, bases, tmp_path, capsys):
    run = train(chosen(tmp_path, bases[model], max_steps=2, lora_rank=rank, max_samples=24))
    folder = export(str(run.path), tmp_path / "judge")
    script = Path(__file__).with_name("score_alone.py")
    alone = os.environ | {"PYTHONPATH": "", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    done = subprocess.run(
        [sys.executable, str(script), str(folder)], capture_output=True, text=True, cwd=tmp_path, env=alone
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    made = load_reward_model(str(run.path)).model
    with torch.no_grad():
        ours = made(input_ids=torch.tensor([found["ids"]])).logits.item()
    assert found["score"] == pytest.approx(ours, abs=1e-4)
    again = load_reward_model(str(folder))  # as `newllm train grpo --reward FOLDER` does
    with torch.no_grad():
        scored = again.model(input_ids=torch.tensor([found["ids"]])).logits.item()
    assert scored == pytest.approx(ours, abs=1e-4)
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "pipeline_tag: text-classification" in text and "newllm chat" not in text
    with pytest.raises(NewLLMError, match="is a reward model|no causal language model"):
        load_model(folder)
    assert main(["export", str(run.path), "--output_dir", str(tmp_path / "other"), "--gguf"]) == 2
    assert "GGUF is for models that write" in capsys.readouterr().err


def test_a_base_that_has_no_such_head_is_one_line(bases):
    from newllm_lib.checkpoints import as_reward_model

    loaded = load_model(str(bases["new_llm"]))
    loaded.model.config.__class__ = type("OtherConfig", (type(loaded.model.config),), {"model_type": "other"})
    with pytest.raises(NewLLMError, match="transformers has no sequence classification for"):
        as_reward_model(loaded.model, 1)
