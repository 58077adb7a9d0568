"""Instruction training of other people's bases, end to end on tiny ones of five kinds."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from newllm_lib.checkpoints import load_model
from newllm_lib.data.packing import PackedSplit
from newllm_lib.errors import NewLLMError, UsageError
from newllm_lib.evaluation.evaluate_run import evaluate_run
from newllm_lib.recipe import load_recipe
from newllm_lib.runs import is_complete, read_status
from newllm_lib.training import train
from newllm_lib.training.sft.rows import DialogueRows
from tests.helpers.chat_bases import KINDS, chat_base
from tests.helpers.foreign_models import make_adapter, make_model
from tests.helpers.killed_trl import curve, killed_while_saving
from tests.helpers.preference_bases import make_base, recipe as preferences
from tests.helpers.texts import dialogues, paragraphs, write_jsonl

END = {"qwen2": "<|im_end|>", "llama": "<|eot_id|>", "gemma": "<end_of_turn>"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Bases of all kinds, and dialogues."""
    folder = tmp_path_factory.mktemp("sft")
    (folder / "data").mkdir()
    write_jsonl(folder / "data" / "train.jsonl", [{"messages": m} for m in dialogues(60)])
    for kind in KINDS:
        chat_base(folder / kind, kind)
    return folder


def recipe(place, base, folder, name: str = "run", **changes):
    """Eight steps of four dialogues, with all that a checkpoint must remember."""
    small = {
        "sized_for": "cpu",
        "base": str(base),
        "data_dir": str(place / "data"),
        "output_dir": str(folder / name),
        "max_seq_length": 96,
        "batch_size": 4,
        "micro_batch_size": 2,
        "max_steps": 8,
        "learning_rate": 1e-2,
        "lora_rank": 4,
        "lora_dropout": 0.1,
        "logging_steps": 2,
        "evals_per_epoch": 2,
        "sample_tokens": 4,
    }
    return load_recipe("dolly", small | changes)


def evaluations(run):
    return [row for row in run.metrics() if "eval_loss" in row]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rank", [4, 0])
def test_each_kind_learns_the_answers_and_is_loaded_evaluated_and_described(kind, rank, place, tmp_path):
    run = train(recipe(place, place / kind, tmp_path, lora_rank=rank))
    assert read_status(run)["state"] == "done" and all(
        is_complete(run.path / p) for p in ("best", "last", "base")
    )
    first, *_, last = evaluations(run)
    assert first["step"] == 0 and last["eval_bits_per_byte"] < first["eval_bits_per_byte"] - 0.005
    rows = [row for row in run.metrics() if "loss" in row]
    assert {"mean_token_accuracy", "entropy", "grad_norm", "dialogues_per_second"} <= rows[-1].keys()
    result = json.loads((run.path / "answers.json").read_text())
    # as its user loads it
    assert result["after"]["bits_per_byte"] == pytest.approx(
        min(e["eval_bits_per_byte"] for e in evaluations(run))
    )
    card = (run.path / "card.md").read_text(encoding="utf-8")
    assert "fewer bits than before" in card and ("PeftModel" in card) == bool(rank)
    assert "newllm_lib" not in card.partition("## Use")[2]  # it is none of our models
    loaded = load_model(run)
    assert loaded.tokenizer.chat_template and loaded.recipe.task == "sft"
    assert (run.path / "samples.md").is_file() and run.curves.stat().st_size > 5000
    measured = evaluate_run(str(run.path))
    assert measured["split"] == "test" and 0 < measured["bits_per_byte"] < 30


def test_a_kill_gives_the_same_curve_again(place, tmp_path):
    """SIGKILL when the trainer has written its second checkpoint and it is not sealed yet; with adapters,
    their dropout, noise on the embeddings, and several dialogues in a row."""
    changes = {"save_steps": 2, "packing": True, "neftune_alpha": 5, "epochs": 3}
    whole = train(recipe(place, place / "llama", tmp_path, "whole", **changes))
    killed = recipe(place, place / "llama", tmp_path, "killed", **changes)
    run = killed_while_saving("dolly", killed, 4)
    assert [p.name for p in run.checkpoints()] == ["checkpoint-2"]
    again = train(killed)
    assert curve(again) == curve(whole) and len(curve(whole)) == 8
    train(killed)
    assert "finished already" in again.log.read_text(encoding="utf-8")


def test_preferences_go_on_from_it(place, tmp_path, monkeypatch):
    from newllm_lib.training.preferences import preference_task

    monkeypatch.setattr(preference_task, "_WATCHED", 2)
    monkeypatch.setattr(preference_task, "collapsed", lambda now, before: None)
    taught = train(recipe(place, place / "llama", tmp_path, max_steps=4))
    pairs = [{"prompt": f"river {i}", "chosen": f"green {i}", "rejected": f"old {i}"} for i in range(40)]
    data = str(write_jsonl(tmp_path / "pairs.jsonl", pairs))
    run = train(
        preferences(tmp_path, taught.path, "dpo", data=data, max_samples="none", max_steps=2, eval_pairs=8)
    )
    assert "is adapters: merged into their base" in run.log.read_text(encoding="utf-8")
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():  # what it started from is what was taught
        kept, before = (load_model(m).model(input_ids=ids).logits for m in (run.path / "base", taught))
    assert torch.allclose(kept, before, atol=1e-5)


@pytest.mark.parametrize("model", ["tiny_gpt2", "new_llm"])
def test_models_of_ours_are_bases_too(model, place, tmp_path):
    run = train(recipe(place, make_base(tmp_path / "base", model), tmp_path, max_steps=3, learning_rate=1e-3))
    assert "newllm_lib.models" in (run.path / "card.md").read_text() and len(evaluations(run)) >= 2


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_a_quantized_base_learns_by_adapters(bits, place, tmp_path, monkeypatch):
    pytest.importorskip("bitsandbytes")
    wide = {"hidden_size": 128, "intermediate_size": 128, "num_key_value_heads": 2}  # as its kernels want
    monkeypatch.setitem(KINDS, "llama", (KINDS["llama"][0], KINDS["llama"][1] | wide))
    base = chat_base(tmp_path / "base", "llama")
    run = train(recipe(place, base, tmp_path, load_in=bits, max_steps=4))
    first, *_, last = evaluations(run)
    assert last["eval_bits_per_byte"] < first["eval_bits_per_byte"]
    assert f"a base in {bits}" in run.log.read_text(encoding="utf-8")
    assert load_model(run).model.dtype == torch.float32  # merged into the whole one


def test_bits_that_cannot_be_computed_with_are_one_line():
    from newllm_lib.training.trl.base import _check_quantized

    def broken(**inputs):
        raise AssertionError

    broken.device, broken.modules = "cpu", list
    with pytest.raises(NewLLMError, match="--load_in 4bit: bitsandbytes cannot compute with some/model here"):
        _check_quantized(broken, load_recipe("dolly", {"base": "some/model", "load_in": "4bit"}, "cpu"))


# --- rows


def split(lengths, mask=None) -> PackedSplit:
    """Documents of these lengths, token i being i."""
    starts = np.cumsum([0, *lengths])
    size = int(starts[-1]) + 1
    mask = np.ones(size, np.uint8) if mask is None else np.array([*mask, 0], np.uint8)
    counts = dict(documents=len(lengths), bytes=1, lost_bytes=0, words=1, unk_tokens=0, lower_cased=False)
    return PackedSplit(None, np.arange(size, dtype=np.uint16), starts[:-1], mask, **counts, skipped="")


def test_a_row_is_a_dialogue_cut_at_the_limit_with_labels_on_its_answers():
    rows = DialogueRows(split([4, 6, 3], [0, 0, 1, 1, 0, 1, 1, 1, 1, 1, 0, 0, 0]), 4)
    assert list(rows) == [
        {"input_ids": [0, 1, 2, 3], "labels": [-100, -100, 2, 3]},
        {"input_ids": [4, 5, 6, 7], "labels": [-100, 5, 6, 7]},
    ]
    assert (rows.without_answer, rows.cut) == (1, 1) and "1 dialogues left out" in rows.summary()


def test_packed_rows_hold_every_dialogue_once():
    lengths = np.random.default_rng(0).integers(2, 30, 200).tolist()
    rows = DialogueRows(split(lengths), 32, packed=True)
    assert sorted(i for group in rows.groups for i in group) == list(range(200))
    assert all(len(row["input_ids"]) == sum(row["seq_lengths"]) <= 32 for row in rows)
    assert len(rows) <= 1.05 * sum(lengths) / 32 + 1
    row = rows[0]
    ends = np.cumsum(row["seq_lengths"])
    assert [row["labels"][i] for i in (0, *ends[:-1])] == [-100] * len(ends)


def test_packed_dialogues_do_not_see_each_other(place):
    from newllm_lib.training.sft.sft_task import keeps_documents_apart

    model = load_model(place / "qwen2").model
    assert keeps_documents_apart(model)
    model.config._attn_implementation = "eager"
    assert keeps_documents_apart(model)


# --- what goes wrong


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"base": "./nowhere"}, "No run './nowhere'"),
        ({"base": "t5"}, "is no causal language model"),
        ({"base": "endless"}, "has no end token"),
        ({"base": "lonely"}, "belong to ./gone, which is neither here nor on the hub"),
        ({"base": "raises"}, "dialogues cannot be written: The chat template of"),
        ({"max_seq_length": 512}, "reads at most 256 tokens"),
        ({"max_seq_length": 2}, "No dialogue has an answer within 2 tokens"),
        ({"batch_size": 97, "micro_batch_size": 1}, "fewer than one batch of 97"),
        ({"data_dir": "texts"}, "is plain text, and --base learns from dialogues"),
        ({"load_in": "4bit", "lora_rank": 0}, "give --lora_rank 16"),
        ({"load_in": "4bit"}, "needs bitsandbytes: `pip install bitsandbytes`"),
        ({"gradient_checkpointing": "offload"}, "offload is for task train"),
        ({"base": "ours", "packing": True}, "would see the other dialogues of its row"),
    ],
)
def test_bad_input_is_one_line(changes, words, place, tmp_path, monkeypatch):
    from newllm_lib import hub
    from newllm_lib.training.trl import base as trl_base

    monkeypatch.setattr(hub, "DELAYS", (0.01,))
    monkeypatch.setattr(trl_base, "find_spec", lambda name: None)
    make_model(tmp_path / "t5", "t5")
    make_model(tmp_path / "endless", "llama", eos=None)
    make_adapter(tmp_path / "lonely", place / "qwen2", "./gone")
    chat_base(tmp_path / "raises", "llama", "{{ raise_exception('not today') }}")
    make_base(tmp_path / "ours", "new_llm")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "train.txt").write_text("\n\n".join(paragraphs(40)))
    for key in ("base", "data_dir"):
        if (tmp_path / str(changes.get(key))).exists():
            changes = changes | {key: str(tmp_path / changes[key])}
    with pytest.raises(NewLLMError) as error:
        train(recipe(place, changes.pop("base", place / "llama"), tmp_path, **changes))
    assert words in str(error.value) and "\n" not in str(error.value), str(error.value)
    assert not (tmp_path / "run" / "best").exists()


def test_a_base_too_large_for_the_device_is_refused_before_its_weights_are_read(place, tmp_path, monkeypatch):
    from newllm_lib.training import base_needs
    from newllm_lib.training.trl import base

    monkeypatch.setattr(base_needs, "_base_weights_gib", lambda *_: 1e4)
    monkeypatch.setattr(base, "load_model", lambda *_, **__: pytest.fail("read"))
    with pytest.raises(NewLLMError, match="even with one row at a time; .* --load_in 4bit"):
        train(recipe(place, place / "qwen2", tmp_path))


# --- the recipe


def test_a_base_takes_a_recipes_data_and_all_else_of_recipe_sft():
    dolly, sft = load_recipe("dolly", {"base": "some/Model-1B"}, "t4"), load_recipe("sft", {}, "t4")
    assert (dolly.task, dolly.data, dolly.run_name) == ("sft", "dolly", "dolly_model-1b")
    assert (dolly.batch_size, dolly.epochs, dolly.lora_rank) == (sft.batch_size, 1.0, 16)
    whole = load_recipe("dailydialog", {"base": "some/model", "lora_rank": "0"}, "t4")
    assert (
        whole.learning_rate == 2e-5 and whole.from_run is None and whole.run_name == "dailydialog_model_lora0"
    )
    assert load_recipe("dolly", {}, "t4").task == "train"


def test_a_base_and_a_start_are_refused():
    with pytest.raises(UsageError, match="leave out one of the two"):
        load_recipe("dolly", {"base": "some/model", "from_run": "new_llm_wikitext"}, "cpu")


def test_a_run_from_a_base_is_no_start_of_ours(tmp_path):
    taught = load_recipe("dolly", {"base": "some/model", "output_dir": str(tmp_path / "run")}, "cpu")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text(taught.to_yaml())
    with pytest.raises(UsageError, match="from some/model by task sft: go on from it with --base"):
        load_recipe("dolly", {"from_run": str(tmp_path / "run")}, "cpu")


def test_gradient_checkpointing_auto_is_for_a_base(tmp_path):
    with pytest.raises(UsageError, match="auto is for training with --base"):
        train(
            load_recipe(
                "demo", {"gradient_checkpointing": "auto", "output_dir": str(tmp_path / "run")}, "cpu"
            )
        )


@pytest.mark.parametrize("kind", ["t4", "a100"])
def test_the_estimate_chooses_checkpointing_and_rows_at_once(kind, monkeypatch):
    from newllm_lib.device import probe
    from newllm_lib.training.base_needs import base_needs

    monkeypatch.setenv("NEWLLM_DEVICE", kind)
    from transformers import Qwen2Config

    config = Qwen2Config(hidden_size=1536, num_hidden_layers=28, intermediate_size=8960, vocab_size=151_936)
    settings = {"base": "some/model", "max_seq_length": 512}
    need = {
        name: base_needs(load_recipe("dolly", settings | more, kind), probe(), config, 1_540_000_000)
        for name, more in {
            "half": {},
            "4bit": {"load_in": "4bit"},
            "on": {"gradient_checkpointing": "on"},
            "1,024": {"max_seq_length": 1024},
            "long": {"max_seq_length": 8192},
            "whole": {"lora_rank": 0},
        }.items()
    }
    assert need["4bit"].least_gib < need["half"].least_gib < need["whole"].least_gib
    assert need["on"].checkpointing and need["long"].checkpointing
    assert need["1,024"].checkpointing == (kind == "t4") and not need["half"].checkpointing
    assert 16 % need["half"].at_once == 0


def test_a_disk_that_is_full_for_a_moment_costs_nothing(place, tmp_path, monkeypatch, capsys):
    """The best model, a checkpoint's weights, what is added to it, rows and pictures: each fails once."""
    import errno
    import os

    from transformers import Trainer

    from newllm_lib.runs import atomic
    from newllm_lib.training import log, saving
    from newllm_lib.training.progress import Progress

    def fails_at(owner, name: str, *numbers: int) -> None:
        real, count = getattr(owner, name), iter(range(1000))

        def called(*words, **more):
            if next(count) in numbers:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*words, **more)

        monkeypatch.setattr(owner, name, called)

    monkeypatch.setattr(saving, "RETRY_AFTER", (0.0,) * 6)
    fails_at(Trainer, "save_model", 0, 2)
    fails_at(Trainer, "_save_optimizer_and_scheduler", 0)
    fails_at(Progress, "save", 0, 2)
    fails_at(log, "append_whole", 1, 2)
    fails_at(atomic, "write_manifest", 3)
    run = train(recipe(place, place / "gpt2", tmp_path, save_steps=3))
    said = capsys.readouterr().out
    assert said.count("Trying again in 0 s") >= 4 and said.count("metrics.jsonl is written again") == 1
    assert read_status(run)["state"] == "done" and is_complete(run.best)
    assert len(run.checkpoints()) == 2 and run.latest_checkpoint().name == "checkpoint-8"
    assert all(is_complete(folder) for folder in run.checkpoints())
    steps = [row["step"] for row in run.metrics() if "loss" in row]
    assert steps == sorted(set(steps)) and steps[-1] == 8 and [e["step"] for e in evaluations(run)][0] == 0
    names = {p.name for p in run.latest_checkpoint().iterdir()}
    assert {"optimizer.pt", "scheduler.pt", "trainer_state.json", "progress.json"} <= names
    assert "training_args.bin" not in names and not list(run.path.glob(".trainer*"))


def test_without_sample_answers_the_card_has_none(place, tmp_path):
    run = train(recipe(place, place / "gpt2", tmp_path, sample_tokens=0, max_steps=2))
    assert read_status(run)["state"] == "done"
    assert "## Answers" not in (run.path / "card.md").read_text(encoding="utf-8")
