"""ORPO and KTO end to end on tiny models: they learn, resume exactly, and say what is wrong in one line."""

from __future__ import annotations

import json
import math

import pytest

from newllm_lib.cli import main
from newllm_lib.data.preferences import generate
from newllm_lib.errors import NewLLMError
from newllm_lib.runs import read_status
from newllm_lib.training import train
from tests.helpers.chat_bases import chat_base
from tests.helpers.killed_trl import check_a_kill
from tests.helpers.preference_bases import make_base, recipe, stopped_after
from tests.helpers.texts import write_jsonl

METHODS = ("orpo", "kto")
RARELY = pytest.param("orpo", marks=pytest.mark.slow)
# each method on our models and on another's; the rest takes its time
WITH_BASES = (
    ("orpo", "new_llm"),
    ("orpo", "qwen2"),
    ("kto", "new_llm"),
    ("kto", "tiny_gpt2"),
    pytest.param("orpo", "tiny_gpt2", marks=pytest.mark.slow),
    pytest.param("kto", "qwen2", marks=pytest.mark.slow),
)
START = {"orpo": None, "kto": 0.5}  # the first loss, where it is the same for all bases
MOVED = {"orpo": {"beta": 2.0, "epochs": 3}, "kto": {}}  # ORPO weighs the odds little: it learns the answers


@pytest.fixture(scope="module", autouse=True)
def _few_answers():
    from newllm_lib.training.preferences import preference_task

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preference_task, "_WATCHED", 3)
        patch.setattr(preference_task, "collapsed", lambda now, before: None)  # random weights babble
        yield


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    made = {model: make_base(folder / model, model) for model in ("new_llm", "tiny_gpt2")}
    return made | {"qwen2": chat_base(folder / "qwen2", "qwen2")}


def chosen(folder, base, method, name="run", **changes):
    """A dozen steps, so that a margin moves and no more."""
    small = {"epochs": 1, "eval_pairs": 12, "max_samples": 48, "lora_dropout": 0.0, "max_seq_length": 96}
    length = {"max_seq_length": 256} if "qwen2" in str(base) else {}  # its bytes are many tokens
    return recipe(folder, base, name, method=method, **(small | length | changes))


def rows(run, what):
    return [row for row in run.metrics() if what in row]


@pytest.mark.parametrize(("method", "base"), WITH_BASES)
def test_it_moves_the_margin_and_keeps_what_a_run_keeps(method, base, bases, tmp_path, capsys):
    run = train(chosen(tmp_path, bases[base], method, **MOVED[method]))
    first, *_, last = rows(run, "eval_loss")
    assert last["eval_reward_margin"] > first["eval_reward_margin"] == 0.0
    assert last["eval_loss"] < first["eval_loss"]
    if START[method]:
        assert first["eval_loss"] == pytest.approx(START[method])
        assert rows(run, "loss")[0]["loss"] == pytest.approx(START[method], abs=1e-3)
    assert {"rewards/chosen", "rewards/margins", "logps/rejected"} <= rows(run, "loss")[-1].keys()
    assert (method == "kto") == ("kl" in rows(run, "loss")[-1])
    card = (run.path / "card.md").read_text(encoding="utf-8")
    assert f"| {method.upper()} loss |" in card and f"- {method.upper()}: " in card
    assert read_status(run)["state"] == "done" and run.curves.stat().st_size > 10_000
    capsys.readouterr()
    assert main(["evaluate", str(run.path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    after = json.loads((run.path / "preferences.json").read_text(encoding="utf-8"))["after"]["figures"]
    assert found["margin"] == pytest.approx(after["margin"], abs=1e-3)


@pytest.mark.parametrize("method", [RARELY, "kto"])
def test_all_weights_learn_too(method, bases, tmp_path):
    run = train(chosen(tmp_path, bases["new_llm"], method, lora_rank=0, learning_rate=1e-3, max_steps=6))
    first, *_, last = rows(run, "eval_loss")
    assert last["eval_loss"] < first["eval_loss"] and (run.best / "config.json").is_file()


@pytest.mark.parametrize("method", METHODS)
def test_a_stopped_run_goes_on_to_the_same_curve(method, bases, tmp_path):
    changes = {"lora_dropout": 0.1, "max_steps": 6, "logging_steps": 1}

    def curve(run):
        timed = ("time", "pairs_per_second", "answers_per_second")
        return [{k: v for k, v in row.items() if k not in timed} for row in run.metrics()]

    whole = train(chosen(tmp_path, bases["tiny_gpt2"], method, "whole", save_steps=3, **changes))
    parts = chosen(tmp_path, bases["tiny_gpt2"], method, "parts", save_steps=3, **changes)
    with stopped_after(2, method):
        train(parts)
    assert curve(train(parts)) == curve(whole)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_kill_gives_the_same_curve_again(method, bases, tmp_path):
    changes = {"lora_dropout": 0.1, "max_steps": 6, "logging_steps": 1, "save_steps": 2}
    check_a_kill(method, lambda name: chosen(tmp_path, bases["tiny_gpt2"], method, name, **changes), 4)


def test_the_held_out_loss_of_orpo_is_its_papers(bases, tmp_path):
    """-log p of the better answer, and beta times -log sigmoid of the log odds ratio, by hand."""
    import torch

    from newllm_lib.evaluation.preferences import orpo_losses

    pair = {"prompt_ids": [1], "chosen_ids": [2, 3], "rejected_ids": [4]}
    p = {"chosen": math.exp(-0.5), "rejected": math.exp(-2.0)}
    odds = {side: value / (1 - value) for side, value in p.items()}
    wanted = 0.5 - 0.1 * math.log(1 / (1 + odds["rejected"] / odds["chosen"]))
    assert orpo_losses(
        torch.tensor([[-1.0, -2.0]], dtype=torch.float64), [pair], 0.1
    ).item() == pytest.approx(wanted)


# --- single answers


def single_answers(folder, good=40, bad=24):
    """Answers to prompts of their own, so that there are no pairs among them."""
    pairs = [pair for pair in generate(400) if pair.split == "train"]
    found = [{"prompt": p.question(), "completion": p.chosen, "label": True} for p in pairs[:good]]
    found += [
        {"prompt": p.question(), "completion": p.rejected, "label": False} for p in pairs[good : good + bad]
    ]
    return str(write_jsonl(folder / "answers.jsonl", found))


def test_kto_learns_single_answers_and_holds_out_some_of_both_kinds(bases, tmp_path, capsys):
    data = single_answers(tmp_path, good=80, bad=64)
    run = train(chosen(tmp_path, bases["new_llm"], "kto", data=data, max_samples="none", epochs=2))
    first, *_, last = rows(run, "eval_loss")
    assert first["eval_accuracy"] == 0.5 and first["eval_margin"] == 0.0  # measured beside the base
    assert last["eval_margin"] > 0 and last["eval_loss"] < 0.5
    log = run.log.read_text(encoding="utf-8")
    assert "a single answer" not in log  # none is left out
    assert "Right on as many pairs" not in (run.path / "card.md").read_text(encoding="utf-8")


def test_dpo_still_pairs_them_and_says_what_is_left_out(bases, tmp_path):
    with pytest.raises(NewLLMError, match="64 of 64 rows are no preference pairs"):
        train(chosen(tmp_path, bases["new_llm"], "dpo", data=single_answers(tmp_path), max_samples="none"))


# --- what goes wrong


@pytest.mark.parametrize(
    ("method", "changes", "words"),
    [
        ("kto", {"batch_size": 7, "micro_batch_size": 7}, "give an even number"),
        ("kto", {"micro_batch_size": 1}, "at least two answers at a time"),
        ("kto", {"beta": 0}, "--beta 0: KTO would learn nothing"),
        ("orpo", {"beta": 0}, "--beta 0: ORPO would learn nothing"),
        ("orpo", {"max_seq_length": 5}, "No pair fits into 5 tokens"),
        (
            "kto",
            {"batch_size": 194, "micro_batch_size": 2},
            "96 answers to train on are fewer than one batch",
        ),
    ],
)
def test_bad_input_is_one_line(method, changes, words, bases, tmp_path):
    with pytest.raises(NewLLMError) as error:
        train(chosen(tmp_path, bases["tiny_gpt2"], method, **changes))
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_version_of_trl_without_a_trainer_is_one_line(monkeypatch):
    from newllm_lib.training.trl import trainers

    monkeypatch.setattr(trainers, "kto_is_stable", lambda: False)
    monkeypatch.setattr(trainers, "import_module", lambda place: (_ for _ in ()).throw(ImportError("gone")))
    with pytest.raises(NewLLMError, match="has no KTOTrainer in trl.experimental.kto"):
        trainers.trainer_classes("KTO")


def test_keys_that_do_nothing_are_refused(capsys):
    for method, words in (("orpo", "--sft_warm_start"), ("kto", "--loss_type"), ("orpo", "--loss_type")):
        assert main(["train", method, words, "1" if "warm" in words else "ipo"]) == 2
        assert f"{words} is for task" in capsys.readouterr().err


def test_short_of_memory_kto_never_goes_below_two(monkeypatch):
    import torch

    from newllm_lib.training.memory.peak import with_smaller_micro_batches

    tried = []

    def attempt(micro, first):
        tried.append(micro)
        raise torch.OutOfMemoryError("no")

    with pytest.raises(NewLLMError, match="even for 2 answers at a time: lower it"):
        with_smaller_micro_batches(8, 8, "answers", "lower it", attempt, least=2)
    assert tried == [8, 4, 2]
