"""Each kind of base from a hub through all that can be done with one: trained, killed, gone on with,
measured, talked to, exported, loaded by transformers alone, and taken by DPO. Each dialogue recipe with one.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from newllm_lib.checkpoints import load_model
from newllm_lib.recipe import load_recipe
from newllm_lib.runs import Run
from tests.helpers.anywhere import alone, said
from tests.helpers.chat_bases import KINDS, chat_base
from tests.helpers.dialogue_sets import DIALOGUE_SETS, dialogue_hub
from tests.helpers.killed_trl import curve, killed_while_saving
from tests.helpers.newllm_process import newllm_process
from tests.helpers.texts import dialogues, write_jsonl

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
SHORT = {
    "max_seq_length": 96,
    "batch_size": 4,
    "micro_batch_size": 2,
    "max_steps": 6,
    "save_steps": 2,
    "logging_steps": 1,
    "evals_per_epoch": 1,
    "learning_rate": 0.01,
    "sample_tokens": 4,
}
LOADS = Path(__file__).parents[1] / "evaluation" / "loads_anywhere.py"


@pytest.fixture(scope="module")
def newllm(tmp_path_factory):
    """`newllm` in a folder of its own, with a hub that has the bases and the dialogue sets."""
    place, cache = tmp_path_factory.mktemp("place"), tmp_path_factory.mktemp("hf")
    (place / "own").mkdir()
    write_jsonl(place / "own" / "train.jsonl", [{"messages": talk} for talk in dialogues(60)])
    pairs = [{"prompt": f"river {i}", "chosen": f"green {i}", "rejected": f"old {i}"} for i in range(40)]
    write_jsonl(place / "pairs.jsonl", pairs)
    with dialogue_hub(tmp_path_factory.mktemp("hub")) as hub:
        for kind in KINDS:
            chat_base(hub.root / "models" / "some" / kind, kind)
        with newllm_process(hub, place, cache) as ask:
            ask.place, ask.cache = place, cache
            yield ask


def words(choices: dict) -> list[str]:
    return [word for key, value in choices.items() for word in (f"--{key}", str(value))]


def done(newllm, *argv: str, said: str = "") -> str:
    """What a command showed that must end well."""
    found = newllm(*argv, said=said)
    assert found["code"] == 0, (argv, found["err"], found["out"][-1500:])
    return found["out"]


@pytest.mark.parametrize("rank", [4, 0], ids=["adapters", "whole"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_base_goes_all_the_way(kind, rank, newllm, tmp_path, monkeypatch):
    choices = {"base": f"some/{kind}", "data_dir": "own", "lora_rank": rank, **SHORT}
    name = f"{kind}_{rank}"
    done(newllm, "train", "dolly", *words(choices), "--output_dir", f"{name}_whole")
    monkeypatch.chdir(newllm.place)
    killed = load_recipe("dolly", {**choices, "output_dir": f"{name}_killed"}, "cpu")
    hub = {"HF_ENDPOINT": newllm.hub.url, "HF_HOME": str(newllm.cache), "NEWLLM_DEVICE": "cpu"}
    killed_while_saving("dolly", killed, 4, {**hub, "HF_HUB_OFFLINE": "0"})
    shown = done(newllm, "train", "dolly", *words(choices), "--output_dir", f"{name}_killed")
    assert "Continuing from checkpoint-2" in shown
    run = Run(newllm.place / f"{name}_killed")
    assert curve(run) == curve(Run(newllm.place / f"{name}_whole"))

    figures = json.loads(done(newllm, "evaluate", run.path.name, "--no_baselines", "--json"))
    assert 0 < figures["bits_per_byte"] < 30 and figures["loss_on"] == "answers"
    talk = done(newllm, "chat", run.path.name, "--max_new_tokens", "4", said="hello\nthe old house\n/quit\n")
    assert "It answers turn by turn." in talk and talk.count("you> ") == 3

    done(newllm, "export", run.path.name, "--output_dir", f"{name}_export")
    folder = newllm.place / f"{name}_export"
    again = done(newllm, "evaluate", folder.name, "--data_dir", "own", "--no_baselines", "--json")
    assert json.loads(again)["bits_per_byte"] == pytest.approx(figures["bits_per_byte"], rel=1e-4)
    loaded = load_model(folder)
    torch.save(said(loaded.model.float(), loaded.tokenizer, remote=False), folder.with_suffix(".pt"))
    found = json.loads(alone(newllm.place, str(LOADS), str(folder)))[folder.name]
    assert max(found[what] for what in ("logits", "padded", "loss", "reread")) < 1e-4, found
    assert found["greedy"] and found["tokens"] and found["gradients"]

    few = {"max_samples": "none", "eval_pairs": 8, "max_steps": 1, "batch_size": 4, "max_seq_length": 128}
    shown = done(
        newllm, "train", "dpo", "--base", run.path.name, "--data", "pairs.jsonl", *words(few),
        "--lora_rank", "4", "--output_dir", f"{name}_dpo",
    )  # fmt: skip
    assert ("is adapters: merged into their base" in shown) == bool(rank)
    assert [row["step"] for row in Run(newllm.place / f"{name}_dpo").metrics() if "loss" in row] == [1]


@pytest.mark.parametrize("name", [*DIALOGUE_SETS, "own"])
def test_each_dialogue_recipe_takes_a_base(name, newllm):
    recipe, own = ("dolly", ["--data_dir", "own"]) if name == "own" else (name, [])
    few = {**SHORT, "max_steps": 2, "max_seq_length": 256, "output_dir": f"recipe_{name}"}
    shown = done(newllm, "train", recipe, "--base", "some/qwen2", *own, *words(few))
    run = Run(newllm.place / f"recipe_{name}")
    assert "SFT on some/qwen2" in shown and "bits per byte of the answers" in shown
    assert [row["step"] for row in run.metrics() if "loss" in row] == [1, 2]
    assert (run.path / "card.md").is_file()
