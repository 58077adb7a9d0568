"""The Python interface: eight lines that train, measure, talk and share."""

from __future__ import annotations

import subprocess
import sys

import pytest

import newllm_lib as newllm
from newllm_lib.recipe import load_recipe
from tests.helpers.chat_bases import chat_base
from tests.helpers.texts import dialogues, write_jsonl

TINY = {
    "max_steps": 4,
    "max_samples": 60,
    "context_dim": 16,
    "num_layers": 1,
    "max_seq_length": 16,
    "batch_size": 4,
    "vocab_size": 600,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    pytest.importorskip("chitchat_dataset")
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    return newllm.train("demo", output_dir=str(folder), **TINY)


def test_a_run_is_trained_measured_and_talks(run):
    assert run.status["state"] == "done" and run.status["step"] == 4
    figures = run.evaluate()
    assert 0 < figures["bits_per_byte"] < 20 and figures["split"] == "test"
    assert isinstance(run.chat("Hello!", max_new_tokens=5), str)
    assert len(run.generate(["I like", "You"], max_new_tokens=3)) == 2
    assert newllm.load(run.path).name == run.load().name


def test_the_same_call_returns_the_finished_run(run):
    before = run.metrics_path.read_bytes()
    again = newllm.train("demo", output_dir=str(run.path), **TINY)
    assert again.path == run.path and again.metrics_path.read_bytes() == before


def test_the_conversation_goes_on_until_it_is_reset(run):
    model = newllm.load(run)
    first = model.chat("Hello!", temperature=0, max_new_tokens=4)
    model.chat("And you?")
    model.reset()
    assert model.chat("Hello!", temperature=0, max_new_tokens=4) == first


def test_an_export_is_a_model_too(run, tmp_path):
    folder = run.export(tmp_path / "export")
    assert newllm.load(folder).generate("I", temperature=0, max_new_tokens=3) == run.generate(
        "I", temperature=0, max_new_tokens=3
    )


def test_a_base_of_others_is_taught_by_own_dialogues(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    write_jsonl(data / "train.jsonl", [{"messages": m} for m in dialogues(40)])
    tiny = {"max_seq_length": 96, "batch_size": 4, "max_steps": 2, "lora_rank": 2, "sample_tokens": 2}
    base = chat_base(tmp_path / "base", "qwen2")
    run = newllm.sft(base, data, output_dir=str(tmp_path / "run"), sized_for="cpu", **tiny)
    assert run.status["state"] == "done" and isinstance(run.chat("Hello!", max_new_tokens=3), str)


def test_runs_are_listed(run):
    assert [one.name for one in newllm.list_runs(run.path.parent)] == ["tiny"]


@pytest.mark.parametrize(
    "keys, line",
    [
        ({"epocs": 2}, "Unknown key 'epocs': did you mean epochs?"),
        ({"beta": 0.3}, "beta= is for task dpo"),
        ({"epochs": -1}, "epochs must be at least"),
    ],
)
def test_errors_are_in_python_words(keys, line):
    with pytest.raises(newllm.UsageError) as error:
        newllm.train("demo", **keys)
    assert line in str(error.value) and "--" not in str(error.value)


def test_what_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(newllm.UsageError, match="nothing_here"):
        newllm.load("nothing_here")


def test_importing_it_loads_no_torch():
    program = "import newllm_lib as n, sys; n.train, n.load; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_recipe_key_is_passed_with_its_type():
    assert load_recipe("demo", {"epochs": 2}).epochs == 2
