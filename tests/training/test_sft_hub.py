"""Instruction training from a base of the hub, by the command line, from a local server."""

from __future__ import annotations

import json

import pytest

from newllm_lib.runs import Run
from tests.helpers.chat_bases import chat_base
from tests.helpers.hub_server import HubServer
from tests.helpers.newllm_process import newllm_process
from tests.helpers.texts import dialogues, write_jsonl

FEW = "--data_dir data --max_seq_length 96 --batch_size 4 --max_steps 2 --learning_rate 0.01"


@pytest.fixture(scope="module")
def newllm(tmp_path_factory):
    place = tmp_path_factory.mktemp("place")
    (place / "data").mkdir()
    write_jsonl(place / "data" / "train.jsonl", [{"messages": m} for m in dialogues(60)])
    hub = place / "hub" / "models" / "some"
    for name in ("llama", "gated"):
        chat_base(hub / name, "llama")
        (hub / name / "README.md").write_text("---\nlicense: other\nlicense_name: llama3.2\n---\n# A model\n")
    (hub / "gated" / ".gated").touch()
    with HubServer(place / "hub") as hub, newllm_process(hub, place, tmp_path_factory.mktemp("hf")) as ask:
        ask.place = place
        yield ask


def test_a_base_of_the_hub_is_looked_at_before_its_weights_are_fetched(newllm):
    done = newllm("train", "dolly", "--base", "some/llama", *FEW.split(), "--output_dir", "run")
    assert done["code"] == 0, done["err"]
    assert "licence llama3.2; its own chat template" in done["out"] and "GiB (an estimate" in done["out"]
    weights = next(i for i, line in enumerate(newllm.hub.requests) if "model.safetensors" in line)
    assert any("tokenizer.json" in line for line in newllm.hub.requests[:weights])
    run = Run(newllm.place / "run")
    assert not (run.path / "base").exists()  # the hub has it
    adapters = json.loads((run.best / "adapter_config.json").read_text(encoding="utf-8"))
    assert adapters["base_model_name_or_path"] == "some/llama"
    assert "licence llama3.2: it binds" in (run.path / "card.md").read_text(encoding="utf-8")


def test_what_it_needs_is_known_to_the_doctor_and_held_out_answers_are_measured(newllm):
    newllm("train", "dolly", "--base", "some/llama", *FEW.split(), "--output_dir", "run")
    asked = newllm("doctor", "--recipe", "dolly", "--base", "some/llama", "--json")
    assert asked["code"] == 0 and json.loads(asked["out"])["parameters"] > 10_000
    figures = [
        json.loads(newllm("evaluate", model, "--data_dir", "data", "--no_baselines", "--json")["out"])
        for model in ("some/llama", "run")
    ]
    assert figures[0]["bytes"] >= figures[1]["bytes"] > 0  # a base has no record: everything counts
    answers = newllm(
        "evaluate", "some/llama", "--data_dir", "data", "--loss_on", "answers", "--no_baselines", "--json"
    )
    assert json.loads(answers["out"])["bits_per_byte"] > figures[1]["bits_per_byte"]


def test_a_gated_base_is_one_line(newllm):
    done = newllm("train", "dolly", "--base", "some/gated", *FEW.split(), "--output_dir", "other")
    assert done["code"] == 1 and done["err"].count("\n") == 1
    assert "is gated: accept its terms" in done["err"] and "HF_TOKEN" in done["err"]


def test_its_record_and_its_export_name_the_base_and_the_licence(newllm):
    newllm("train", "dolly", "--base", "some/llama", *FEW.split(), "--output_dir", "run")
    record = (newllm.place / "run" / "recipe.yaml").read_text(encoding="utf-8")
    assert "base: some/llama" in record and "model:" not in record and "num_layers" not in record
    for which in ("best", "last"):
        done = newllm("export", "run", "--checkpoint", which, "--output_dir", f"export_{which}")
        assert done["code"] == 0, done["err"]
        card = (newllm.place / f"export_{which}" / "README.md").read_text(encoding="utf-8")
        assert "base_model: some/llama" in card and "license: llama3.2" in card
    # an export of an export has no run's card: what it is comes from its record
    newllm("export", "export_best", "--output_dir", "again")
    card = (newllm.place / "again" / "README.md").read_text(encoding="utf-8")
    assert "`some/llama` after SFT (adapters of rank 16, merged)" in card and "New-LLM:" not in card
    assert "newllm train dolly" in card and "--base some/llama" in card
