"""Preference training from a base of the hub: the default one in its own format, from a local server, by the
command line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from newllm_lib.runs import Run
from tests.helpers.hub_server import HubServer
from tests.helpers.texts import byte_level_bpe

END = "<|endoftext|>"
HERE = Path(__file__).parent


def dialogpt(folder: Path) -> None:
    """A tiny model in the format of microsoft/DialoGPT-small: weights with old buffers, two files of
    vocabulary, its template in the tokenizer's configuration."""
    from transformers import GPT2Config, GPT2LMHeadModel

    folder.mkdir(parents=True)
    backend = byte_level_bpe(400, [END])
    backend.model.save(str(folder))  # vocab.json, merges.txt
    end, sizes = (
        backend.token_to_id(END),
        {"n_positions": 256, "n_ctx": 256, "n_embd": 32, "n_layer": 2, "n_head": 2},
    )
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=backend.get_vocab_size(), bos_token_id=end, eos_token_id=end, **sizes)
    model = GPT2LMHeadModel(config)
    buffers = {f"transformer.h.{i}.attn.bias": torch.ones(1, 1, 256, 256).tril().bool() for i in range(2)}
    weights = {
        name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"
    }  # tied
    save_file(weights | buffers, folder / "model.safetensors", {"format": "pt"})
    written = {**config.to_dict(), "architectures": ["GPT2LMHeadModel"]}
    (folder / "config.json").write_text(json.dumps(written))
    template = "{% for message in messages %}{{ message.content }}{{ eos_token }}{% endfor %}"
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"model_max_length": 256, "chat_template": template})
    )


def test_the_default_base_comes_from_the_hub_and_its_adapters_go_anywhere(tmp_path):
    dialogpt(tmp_path / "hub" / "models" / "microsoft" / "DialoGPT-small")
    command = [
        sys.executable,
        "-m",
        "newllm_lib",
        "train",
        "dpo",
        "--sized_for",
        "cpu",
        "--max_seq_length",
        "256",
        "--max_samples",
        "16",
        "--eval_pairs",
        "6",
        "--max_steps",
        "2",
        "--learning_rate",
        "0.01",
        "--lora_dropout",
        "0",
        "--evals_per_epoch",
        "1",
        "--output_dir",
        "run",
    ]
    export = [sys.executable, "-m", "newllm_lib", "export", "run"]
    home = os.environ | {"HF_HOME": str(tmp_path / "hf"), "NEWLLM_CACHE": str(tmp_path / "cache")}
    with HubServer(tmp_path / "hub") as hub:
        said = ended(command, tmp_path, home | {"HF_ENDPOINT": hub.url})
    assert "DPO on microsoft/DialoGPT-small" in said and "Before:" in said
    run = Run(tmp_path / "run")
    assert not (run.path / "base").exists()  # the hub has it
    first = next(row for row in run.metrics() if "loss" in row)
    assert first["loss"] == pytest.approx(0.6931, abs=1e-4)
    adapters = json.loads((run.best / "adapter_config.json").read_text(encoding="utf-8"))
    assert adapters["base_model_name_or_path"] == "microsoft/DialoGPT-small"  # not a folder of this machine
    card = (run.path / "card.md").read_text(encoding="utf-8")
    assert (
        'from_pretrained("microsoft/DialoGPT-small")' in card
        and "newllm_lib" not in card.partition("## Use")[2]
    )
    gone = home | {"HF_HUB_OFFLINE": "1"}  # what was fetched once needs no network
    ended(export, tmp_path, gone)
    exported = (run.path / "export" / "recipe.yaml").read_text(encoding="utf-8")
    assert "base: microsoft/DialoGPT-small" in exported
    alone = [
        sys.executable,
        str(HERE / "load_alone.py"),
        str(run.path),
        str(run.path / "export"),
        str(tmp_path / "logits.pt"),
    ]
    assert (
        json.loads(ended(alone, tmp_path, gone).splitlines()[-1]) == []
    )  # neither ours, nor trl, nor datasets
    found = torch.load(tmp_path / "logits.pt")
    assert (found["adapted"] - found["base"]).abs().max() > 1e-3  # the adapters do something
    assert (found["adapted"] - found["merged"]).abs().max() < 1e-4


def ended(command: list[str], folder: Path, environment: dict) -> str:
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout
