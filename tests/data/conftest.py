"""Small data and recipes for the tests of the data room."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

WORDS = (
    "the of and a river old house green runs over its small people music war city which was born near "
    "Übersee 東京"
).split()


def paragraphs(count: int, seed: int = 0) -> list[str]:
    """Different paragraphs of words, some not English."""
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(20, 60))).capitalize() + f" {i}." for i in range(count)]


def dialogues(count: int, seed: int = 0) -> list[list[dict]]:
    """Different dialogues of two to six turns."""
    rng = random.Random(seed)
    return [
        [
            {"role": role, "content": " ".join(rng.choices(WORDS, k=rng.randint(3, 12))) + f" {i}"}
            for role in (("user", "assistant") * 3)[: rng.randint(2, 6)]
        ]
        for i in range(count)
    ]


def write_jsonl(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def byte_level_bpe(vocab_size: int, special_tokens: list[str]):
    """A byte-level BPE of somebody else: a `tokenizers.Tokenizer` without our control tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special_tokens, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(paragraphs(50), trainer)
    return backend


@contextlib.contextmanager
def hub_worker(hub, tmp_path_factory):
    """A process that knows `hub`: gives a function that prepares data there, see `hub_worker.py`."""
    blocking = ("HF_", "TRANSFORMERS_OFFLINE", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(blocking)}
    environment |= {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path_factory.mktemp("hf")),
        "HF_HUB_DOWNLOAD_TIMEOUT": "1",
    }
    errors = tmp_path_factory.mktemp("worker") / "stderr"
    with open(errors, "w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.data.hub_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=environment,
            cwd=Path(__file__).parents[2],
        )

    def ask(cache, **fields):
        recipe = {
            "data_dir": None,
            "max_samples": None,
            "tokenizer": "bpe",
            "vocab_size": 300,
            "max_seq_length": 16,
            "loss_on": "everything",
            "streaming": "auto",
            "template": "chat",
            "carry_state": False,
            "seed": 0,
        }
        process.stdin.write(json.dumps({**recipe, **fields, "cache": str(cache)}) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
        assert line, errors.read_text()
        return json.loads(line)

    yield ask
    process.stdin.close()
    process.wait(20)


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
def folder(tmp_path) -> Path:
    """A data folder with 300 paragraphs to train on and no other split."""
    place = tmp_path / "texts"
    place.mkdir()
    (place / "train.txt").write_text("\n\n".join(paragraphs(300)) + "\n", encoding="utf-8")
    return place


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache"


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
