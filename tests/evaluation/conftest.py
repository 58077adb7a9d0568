"""Small tokenizers, splits and models, made once: what the tests of this folder measure."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from newllm_lib.data.templates import UNKNOWN
from newllm_lib.data.tokenizer import train_bpe, train_words, wrap
from newllm_lib.recipe import load_recipe
from newllm_lib.training.model_config import build_model

SIZES = {
    "sized_for": "cpu",
    "hidden_size": 16,
    "context_dim": 16,
    "mlp_size": 24,
    "num_layers": 2,
    "num_heads": 2,
    "dropout": 0.0,
    "max_seq_length": 24,
}
PEOPLE, THINGS = (
    ("Ada", "Bob", "Eve", "Ünal"),
    ("tea", "red apples", "the sea", "old films", "rain — a lot", "猫"),
)


def sentences(count, seed=0):
    """Documents with structure to learn, of very different lengths, with characters of one to three bytes."""
    random = np.random.default_rng(seed)
    documents = []
    for _ in range(count):
        said = [
            f"{random.choice(PEOPLE)} likes {random.choice(THINGS)} and {random.choice(THINGS)}."
            for _ in range(random.integers(1, 9))
        ]
        documents.append(" ".join(said))
    return documents


@dataclass
class Split:
    """The parts of a `PackedSplit` that evaluation reads."""

    ids: np.ndarray
    document_starts: np.ndarray
    loss_mask: np.ndarray | None
    bytes: int
    lost_bytes: int
    words: int
    documents: int
    lower_cased: bool = False


def pack(tokenizer, documents, loss_mask=None, lost_bytes=0):
    """Documents as one stream: <|endoftext|> before each and at the end."""
    bos, ids, starts = tokenizer.bos_token_id, [], []
    for document in documents:
        starts.append(len(ids))
        ids += [bos, *tokenizer(document, add_special_tokens=False)["input_ids"]]
    size = sum(len(d.encode()) for d in documents)
    words = sum(len(d.split()) for d in documents)
    ids = np.array([*ids, bos], dtype=np.uint16)
    mask = None if loss_mask is None else loss_mask(len(ids)).astype(np.uint8)
    return Split(ids, np.array(starts, dtype=np.int64), mask, size, lost_bytes, words, len(documents))


def dialogue(tokenizer, turns):
    """Token ids of a dialogue without its <|endoftext|>."""
    from newllm_lib.data.templates import encode_messages

    roles = ("user", "assistant")
    return encode_messages(tokenizer, [(roles[i % 2], t) for i, t in enumerate(turns)])


@pytest.fixture(scope="session")
def bpe():
    return wrap(train_bpe(iter([sentences(50)]), 330))


@pytest.fixture(scope="session")
def words():
    return wrap(
        train_words(iter([sentences(50)]), 16), unk_token=UNKNOWN
    )  # so few that several words are <unk>


@pytest.fixture(scope="session")
def make_model():
    """make_model(tokenizer, model="new_llm", **recipe keys): untrained, but with logits far from equal."""

    def make(tokenizer, model="new_llm", scale=1.0, **changes):
        torch.manual_seed(3)
        recipe = load_recipe("demo", {**SIZES, "model": model, **changes})
        built = build_model(recipe, len(tokenizer), tokenizer).eval()
        with torch.no_grad():
            for parameter in built.parameters():
                if parameter.ndim == 2:
                    parameter.add_(torch.randn_like(parameter), alpha=0.3 * scale)
        return built

    return make


def train_a_little(model, split, steps=80, length=24):
    """Enough steps to know the sentences better than chance."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    ids = torch.from_numpy(split.ids.astype(np.int64))
    generator = torch.Generator().manual_seed(0)
    model.train()
    for _ in range(steps):
        starts = torch.randint(len(ids) - length, (16,), generator=generator)
        batch = torch.stack([ids[s : s + length] for s in starts])
        optimizer.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="session")
def tools():
    """The functions above, for tests that cannot import this file."""
    return type(
        "Tools",
        (),
        {
            "pack": staticmethod(pack),
            "sentences": staticmethod(sentences),
            "dialogue": staticmethod(dialogue),
            "train_a_little": staticmethod(train_a_little),
            "Split": Split,
            "SIZES": SIZES,
        },
    )


@pytest.fixture(scope="session")
def test_data():
    """The folder of real data; skips without it."""
    folder = os.environ.get("NEWLLM_TEST_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("real data: set NEWLLM_TEST_DATA to its folder")
    return Path(folder)


@pytest.fixture(scope="session")
def make_run(make_model, tmp_path_factory):
    """make_run(folder, tokenizer, model=..., **recipe keys): a run as training leaves it, on a folder of
    small texts.

    Returns the `Run`; its recipe names the folder `data`, made once, as `data_dir`.
    """
    from newllm_lib.runs import Run, atomic_write_text, staged_directory

    data = tmp_path_factory.mktemp("data")
    for name, count, seed in (("train", 300, 1), ("validation", 30, 2), ("test", 40, 3)):
        (data / f"{name}.txt").write_text("\n\n".join(sentences(count, seed)) + "\n", encoding="utf-8")

    def make(
        folder, tokenizer, model="new_llm", trained_on=None, names=("best", "last", "checkpoint-7"), **changes
    ):
        run = Run(folder)
        changes = {"data_dir": str(data), **changes}
        built = make_model(tokenizer, model, **{k: v for k, v in changes.items() if k != "data_dir"})
        if trained_on is not None:
            train_a_little(built, trained_on)
        for name in names:
            with staged_directory(run.path / name) as staging:
                built.save_pretrained(staging)
                tokenizer.save_pretrained(staging)
        recipe = load_recipe("demo", {**SIZES, "model": model, **changes})
        atomic_write_text(run.recipe_path, recipe.to_yaml())
        return run

    make.data = data
    return make


@pytest.fixture
def cache(tmp_path_factory, monkeypatch):
    """A fresh cache of prepared data for this test."""
    monkeypatch.setenv("NEWLLM_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("NEWLLM_DEVICE", "cpu")
