"""Every command that takes a model takes a run, a folder, an export, adapters, and a hub id."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest

from newllm_lib.checkpoints import load_model, save_model
from newllm_lib.data.tokenizer import train_bpe, wrap
from newllm_lib.recipe import Recipe, load_recipe
from newllm_lib.runs import Run
from newllm_lib.training.model_config import build_model
from tests.helpers.foreign_models import make_adapter, make_model
from tests.helpers.hub_server import HubServer
from tests.helpers.newllm_process import newllm_process

SENTENCES = ["Ada likes tea and red apples.", "Bob likes the sea.", "Eve likes old films and rain."]
SIZES = {
    "sized_for": "cpu",
    "num_layers": 1,
    "hidden_size": 16,
    "context_dim": 16,
    "mlp_size": 24,
    "num_heads": 2,
    "max_seq_length": 24,
    "vocab_size": 300,
}


class Program:
    """A pickle that leaves a file where it is read."""

    def __reduce__(self):
        return (Path.touch, (Path(os.environ.get("MARK", "ran")),))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder as a user's: texts, a run, adapters; and a hub with other people's models."""
    here = tmp_path_factory.mktemp("place")
    (here / "texts").mkdir()
    for split, repeated in (("train", 30), ("validation", 10), ("test", 10)):
        lines = [f"{split} {i}: {SENTENCES[i % 3]}" for i in range(repeated)]
        (here / "texts" / f"{split}.txt").write_text("\n\n".join(lines) + "\n")
    run, tokenizer = Run(here / "checkpoints" / "small"), wrap(train_bpe(iter([SENTENCES * 20]), 300))
    recipe = load_recipe("demo", {**SIZES, "data_dir": str(here / "texts"), "run_name": "small"})
    run.path.mkdir(parents=True)
    run.recipe_path.write_text(recipe.to_yaml())
    save_model(build_model(recipe, len(tokenizer), tokenizer), tokenizer, run.best)
    hub = here / "hub" / "models"
    for kind in ("gpt2", "qwen2", "llama", "t5", "bert"):
        make_model(hub / "some" / kind, kind)
    make_adapter(here / "adapter", hub / "some" / "qwen2", "some/qwen2")
    _spoil(hub)
    return here


def _spoil(hub: Path) -> None:
    """Repositories that cannot be loaded, each in a way of its own."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(hub / "some" / "gpt2", hub / "some" / name))

    for name in ("pickled", "converted"):
        folder = copy(name)
        if name == "converted":
            shutil.copytree(hub / "some" / "gpt2", folder / ".converted")
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Program()))
    (copy("gated") / ".gated").touch()
    make_model(hub / "some" / "endless", "gpt2", eos=None)
    program = copy("program")
    config = json.loads((program / "config.json").read_text())
    config |= {
        "model_type": "unheard_of",
        "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"},
    }
    (program / "config.json").write_text(json.dumps(config))
    (program / "own.py").write_text("open('ran', 'w')")
    program = copy("tokenizer_program")
    config = json.loads((program / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    (program / "tokenizer_config.json").write_text(json.dumps(config))
    (program / "own.py").write_text("open('ran', 'w')")


@pytest.fixture(scope="module")
def newllm(place, tmp_path_factory):
    """newllm(*words, said="") in one process that knows the hub; gives code, out, err; `.hub`: the server."""
    with HubServer(place / "hub") as hub, newllm_process(hub, place, tmp_path_factory.mktemp("hf")) as ask:
        yield ask
    assert not (place / "ran").exists()  # no pickle and no program was run


EVERY_KIND = [
    "small",
    "checkpoints/small/best",
    "some/gpt2",
    "some/qwen2",
    "some/llama",
    "adapter",
    "some/converted",
]


@pytest.mark.parametrize("model", EVERY_KIND)
def test_every_kind_is_evaluated_talked_with_and_exported(newllm, place, model):
    measured = newllm("evaluate", model, "--data_dir", "texts", "--json")
    assert measured["code"] == 0, measured["err"]
    figures = json.loads(measured["out"])
    assert 0 < figures["bits_per_byte"] < 30 and figures["bytes"] > 0 and "bigram" in figures["baselines"]

    talked = newllm("chat", model, "--temperature", "0", "--max_new_tokens", "5", said="Ada likes\n/quit\n")
    assert talked["code"] == 0 and "Bye." in talked["out"], talked["err"]

    folder = f"out_{model.replace('/', '_')}"
    exported = newllm("export", model, "--output_dir", folder)
    assert exported["code"] == 0, exported["err"]
    names = {file.name for file in (place / folder).iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= names
    again = newllm("evaluate", folder, "--data_dir", "texts", "--json")  # an export is a model like any other
    assert again["code"] == 0, again["err"]
    assert json.loads(again["out"])["bits_per_byte"] == pytest.approx(figures["bits_per_byte"], rel=1e-5)


def test_a_run_is_compared_with_a_model_of_the_hub_on_the_runs_text(newllm, place):
    compared = newllm("compare", "some/qwen2", "small", "--output_dir", "compared", "--json")
    assert compared["code"] == 0, compared["err"]
    result = json.loads(compared["out"])
    assert [m["name"] for m in result["models"]] == ["some/qwen2", "small"]
    assert result["models"][0]["bytes"] == result["models"][1]["bytes"]
    neither = newllm("compare", "some/qwen2", "some/llama")
    assert neither["code"] == 2 and "some/qwen2 and some/llama: no recipe.yaml" in neither["err"]
    assert (
        newllm("compare", "some/qwen2", "some/llama", "--data_dir", "texts", "--output_dir", "both")["code"]
        == 0
    )


@pytest.fixture(scope="module")
def exported(newllm, place):
    """The run's export, as it lies on the hub."""
    folder = place / "hub" / "models" / "me" / "small"
    done = newllm("export", "small", "--output_dir", str(folder))
    assert done["code"] == 0, done["err"]
    return "me/small"


def test_an_export_on_the_hub_is_a_start_for_our_loop(newllm, place, exported):
    words = ["train", "text", "--data", "texts/train.txt", "--max_steps", "3", "--batch_size", "2"]
    done = newllm(*words, "--from", exported, "--run_name", "from_hub")
    assert done["code"] == 0, done["err"]
    run = Run(place / "checkpoints" / "from_hub")
    record = Recipe.from_yaml(run.recipe_path)
    assert (record.from_run, record.hidden_size, record.num_layers) == (exported, 16, 1)
    assert f"before training ({exported})" in done["out"]
    here = newllm(*words, "--from", "small", "--run_name", "from_here")
    assert here["code"] == 0, here["err"]
    losses = [
        [r["loss"] for r in Run(place / "checkpoints" / n).metrics() if "loss" in r]
        for n in ("from_hub", "from_here")
    ]
    assert losses[0] == losses[1] != []
    again = newllm(*words, "--from", exported, "--run_name", "from_hub")
    assert again["code"] == 0 and "finished" in again["out"]


def test_what_is_no_start_on_the_hub_is_one_line(newllm, exported):
    words = ["train", "text", "--data", "texts/train.txt", "--from"]
    foreign = newllm(*words, "some/gpt2")
    assert foreign["code"] == 2 and "holds no recipe.yaml" in foreign["err"]
    assert "--base some/gpt2" in foreign["err"] and foreign["err"].count("\n") == 1
    assert newllm(*words, "some/gone")["code"] == 2
    sized = newllm(*words, exported, "--hidden_size", "32")
    assert sized["code"] == 2 and "hidden_size 32 (it has 16)" in sized["err"]


def test_dialogues_are_not_measured_with_a_tokenizer_that_has_no_turns(newllm, place):
    (place / "dialogues").mkdir()
    turns = [{"role": "user", "content": "Ada?"}, {"role": "assistant", "content": "Tea."}]
    (place / "dialogues" / "test.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    done = newllm("evaluate", "some/gpt2", "--data_dir", "dialogues", "--no_baselines")
    assert done["code"] == 1 and "no tokens for their turns" in done["err"] and done["err"].count("\n") == 1


def test_what_was_fetched_once_is_not_asked_for_again(newllm):
    newllm("export", "some/llama", "--output_dir", "twice")
    newllm.hub.forgive()
    assert newllm("export", "some/llama", "--output_dir", "twice")["code"] == 0
    assert newllm.hub.requests == []


@pytest.mark.parametrize(
    ("name", "code", "says"),
    [
        ("some/t5", 1, "is no causal language model of text (it is T5ForConditionalGeneration)"),
        ("some/bert", 1, "is no causal language model of text (it is BertForMaskedLM)"),
        ("some/pickled", 1, "its weights only as a pickle (pytorch_model.bin)"),
        ("some/gated", 1, "is gated: accept its terms"),
        ("some/program", 1, "needs a program of its own"),
        ("some/nothing", 2, "is not on the hub"),
        ("nothing_here", 2, "No run 'nothing_here' is here"),
        ("smal", 2, "did you mean small?"),
        ("checkpoints/nothing", 2, "No run 'checkpoints/nothing'"),
        ("./nothing", 2, "No run './nothing'"),
        ("texts", 2, "No run 'texts'"),
    ],
)
@pytest.mark.parametrize("command", ["chat", "export"])
def test_what_cannot_be_loaded_is_one_line(newllm, command, name, code, says):
    done = newllm(command, name)
    assert done["code"] == code and says in done["err"] and done["err"].count("\n") == 1, done["err"]
    assert "please report" not in done["err"]


def test_a_tokenizer_without_an_end_is_refused(newllm):
    done = newllm("chat", "some/endless")
    assert (
        done["code"] == 1 and "has no end token (eos_token)" in done["err"] and done["err"].count("\n") == 1
    )


def test_a_tokenizers_program_is_neither_run_nor_asked_about(newllm):
    done = newllm("chat", "some/tokenizer_program", said="Ada\n/quit\n")
    assert done["code"] == 0 and "Bye." in done["out"] and "custom code" not in done["out"] + done["err"]


def test_weights_are_not_downloaded_for_what_is_no_language_model(newllm):
    newllm.hub.forgive()
    newllm("chat", "some/bert")
    assert not [request for request in newllm.hub.requests if "safetensors" in request]


def test_a_hub_that_does_not_answer_is_said(newllm):
    newllm.hub.fail("api/models/some/away", 503, times=20)
    done = newllm("chat", "some/away")
    assert (
        done["code"] == 1
        and "cannot be read from the Hugging Face hub" in done["err"]
        and "503" in done["err"]
    )


def test_adapters_without_their_base_say_which_one_they_need(newllm, place):
    moved = Path(shutil.copytree(place / "adapter", place / "lonely"))
    config = json.loads((moved / "adapter_config.json").read_text())
    (moved / "adapter_config.json").write_text(
        json.dumps(config | {"base_model_name_or_path": "/content/gone"})
    )
    done = newllm("chat", "lonely")
    assert done["code"] == 1 and "belong to /content/gone" in done["err"] and done["err"].count("\n") == 1
    (moved / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(moved)}))
    assert "name themselves as their base" in newllm("chat", "lonely")["err"]


def test_the_weights_are_in_the_dtype_that_is_asked_for(place):
    import torch

    folder = place / "hub" / "models" / "some" / "gpt2"
    assert load_model(folder).model.dtype == torch.float32
    assert load_model(folder, dtype=torch.bfloat16).model.dtype == torch.bfloat16
    assert (
        load_model(place / "checkpoints" / "small").run.name == "small" and load_model(folder).recipe is None
    )


def test_a_tokenizer_that_needs_a_package_names_it(place, monkeypatch):
    from transformers import AutoTokenizer

    from newllm_lib.checkpoints import load
    from newllm_lib.errors import NewLLMError

    def refused(folder, **options):  # in transformers' own words
        raise ValueError("`tiktoken` is required to read a `tiktoken` file.")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", refused)
    monkeypatch.setattr(load, "find_spec", lambda name: None)
    folder = place / "hub" / "models" / "some" / "gpt2"
    with pytest.raises(NewLLMError, match="is SentencePiece's: `pip install sentencepiece protobuf`"):
        load_model(folder)
    monkeypatch.setattr(load, "find_spec", lambda name: "there")
    with pytest.raises(NewLLMError, match="tiktoken"):
        load_model(folder)
