"""The names that we use of TRL, PEFT and the Trainer are there: in what is installed, and in the oldest that
setup.py admits.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import trl_names

ROOT = Path(__file__).parents[2]
# What those releases want besides, where the installed ones are too new for them.
BESIDE_THE_OLDEST = (
    "huggingface_hub<2",
    "httpx<1",
    "httpcore<2",
    "certifi",
    "dill<0.3.9",
    "multiprocess<0.70.17",
    "fsspec<=2025.3.0",
    "tokenizers<0.23",
    "requests",
    "urllib3",
    "charset-normalizer",
    "idna",
)


def test_every_name_is_there():
    assert trl_names.missing() == []


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("CONFIG", "beta_of_old"),
        ("TRAINER", "tokenizer"),
        ("METHODS", "get_batch_samples_of_old"),
        ("LORA", "rank"),
        ("COLLATED", "labels"),
        ("SFT_CONFIG", "max_seq_length"),
        ("SFT_TRAINER", "tokenizer"),
        ("PACKED", "attention_mask"),
        ("ATTRIBUTES", "reference"),
        ("OTHER_TRAINERS", "tokenizer"),
    ],
)
def test_a_name_that_disappears_is_named(place, name, monkeypatch):
    monkeypatch.setattr(trl_names, place, getattr(trl_names, place) | {name})
    found = trl_names.missing()
    assert len(found) == (len(trl_names.OTHERS) if place == "OTHER_TRAINERS" else 1) and name in found[0]


def oldest() -> list[str]:
    """Requirements of the lowest versions in setup.py."""
    text = (ROOT / "setup.py").read_text(encoding="utf-8")
    names = ("transformers", "datasets", "peft", "trl")
    lowest = {name: re.search(f'"{name}>=([0-9.]+)"', text)[1] for name in names}
    return [f"{name}=={version}.*" for name, version in lowest.items()]


@pytest.mark.slow
def test_the_oldest_versions_that_are_admitted_have_them_too_and_train(tmp_path):
    """Needs a package registry."""
    place = tmp_path / "oldest"
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--target",
        str(place),
        "--no-deps",
        *oldest(),
        *BESIDE_THE_OLDEST,
    ]
    ended = subprocess.run(install, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-2000:]
    environment = os.environ | {"PYTHONPATH": f"{place}{os.pathsep}{ROOT}"}
    names = subprocess.run(
        [sys.executable, trl_names.__file__], env=environment, capture_output=True, text=True
    )
    assert names.returncode == 0, names.stdout + names.stderr[-2000:]
    assert "trl 0.29" in names.stdout
    tests = [
        str(ROOT / "tests/training/test_dpo.py"),
        str(ROOT / "tests/training/test_sft.py"),
        *(str(ROOT / f"tests/training/test_{name}.py") for name in ("preference_methods", "reward", "grpo")),
        "-k",
        "moves_the_margin or learns_which or writes_answers or stopped_run or log_two or alone_and_merged "
        "or without_adapters or (each_kind and qwen2) or preferences_go_on",
    ]
    command = [sys.executable, "-m", "pytest", "-q", "-x", *tests]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert ran.returncode == 0, ran.stdout[-3000:]
