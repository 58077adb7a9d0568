"""Fixtures that the data room's tests and the cases share."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest


@pytest.fixture
def recipe(tmp_path):
    """Makes recipes: the demo's fields, with what is given changed."""

    def make(**changes) -> SimpleNamespace:
        fields = {
            "data": "demo",
            "data_dir": None,
            "max_samples": None,
            "tokenizer": "bpe",
            "vocab_size": 400,
            "max_seq_length": 16,
            "loss_on": "everything",
            "streaming": "auto",
            "template": "chat",
            "carry_state": False,
            "seed": 0,
        }
        return SimpleNamespace(
            **{**fields, **{k: str(v) if isinstance(v, Path) else v for k, v in changes.items()}}
        )

    return make


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache"
