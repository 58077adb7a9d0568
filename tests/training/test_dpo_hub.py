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

from newllm_lib.runs import Run
from tests.helpers.chat_bases import dialogpt
from tests.helpers.hub_server import HubServer

HERE = Path(__file__).parent


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
