"""Small data and recipes for the tests of the data room."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.data_fixtures import cache, recipe  # noqa: F401
from tests.helpers.texts import paragraphs


@pytest.fixture
def folder(tmp_path) -> Path:
    """A data folder with 300 paragraphs to train on and no other split."""
    place = tmp_path / "texts"
    place.mkdir()
    (place / "train.txt").write_text("\n\n".join(paragraphs(300)) + "\n", encoding="utf-8")
    return place


@pytest.fixture(scope="session")
def bpe():
    """A small byte-level BPE."""
    from newllm_lib.data.tokenizer import train_bpe, wrap

    return wrap(train_bpe(iter([paragraphs(200)]), 400))


@pytest.fixture(scope="session")
def words():
    """A small word list, as in the seed's protocol."""
    from newllm_lib.data.templates import UNKNOWN
    from newllm_lib.data.tokenizer import train_words, wrap

    return wrap(
        train_words(iter([["the old house and the green river runs near the small city"]]), 16), UNKNOWN
    )
