"""Token ids for the quality benchmark: the same text, tokens and splits for every model, kept in one small folder.

ChitChat: the conversations of the PyPI package, shuffled once; 500 to report, 250 others to choose settings by, the rest to
train. Each conversation stands as lines "A: …" and "B: …". WikiText-2: articles of text files in its format, cut 8 : 1 : 1. A
byte-level BPE of 4,096 is trained on all but the test part. Every document begins with token 0, which is how a model knows.
"""

from __future__ import annotations

import importlib.util
import json
import lzma
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from newllm_lib.errors import NewLLMError, UsageError

VOCABULARY = 4096
PARTS = ("train", "validation", "test")
LONGEST = "longest"  # the test part's longest document, once more by itself


@dataclass
class Corpus:
    """Token ids (uint16) of the parts and of `LONGEST`, and how many bytes of text each is."""

    name: str
    vocabulary: int
    ids: dict[str, np.ndarray]
    bytes: dict[str, int]

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for part, ids in self.ids.items():
            (folder / f"{self.name}.{part}.xz").write_bytes(lzma.compress(ids.astype(np.uint16).tobytes()))
        about = {"vocabulary": self.vocabulary, "bytes": self.bytes}
        (folder / f"{self.name}.json").write_text(json.dumps(about), encoding="utf-8")

    @classmethod
    def load(cls, name: str, folder: Path) -> Corpus:
        about = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        ids = {
            part: np.frombuffer(lzma.decompress((folder / f"{name}.{part}.xz").read_bytes()), dtype=np.uint16)
            for part in about["bytes"]
        }
        return cls(name, about["vocabulary"], ids, about["bytes"])


def open_corpus(name: str, folder: Path, text: Path | None = None) -> Corpus:
    """The corpus from `folder`, where it is made first if it is not there.

    Args:
        text: for wikitext2, the folder that holds files named `*wikitext*` with its text.
    Raises:
        UsageError: a name that is none, or no text. NewLLMError: ChitChat's package is not installed.
    """
    if name not in _TEXTS:
        raise UsageError(f"There is no benchmark corpus {name!r}: use {' or '.join(_TEXTS)}.")
    if (folder / f"{name}.json").is_file():
        found = Corpus.load(name, folder)
        if LONGEST in found.ids:  # not made by an older version
            return found
    encode(name, _TEXTS[name](text)).save(folder)
    return Corpus.load(name, folder)


def encode(name: str, parts: dict[str, list[str]], vocabulary: int = VOCABULARY) -> Corpus:
    """Train the BPE on all but the test part and encode all three."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=["<start>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(parts["train"] + parts["validation"], trainer)
    parts = {**parts, LONGEST: [max(parts["test"], key=len)]}
    ids = {
        part: np.concatenate([np.array([0, *e.ids], dtype=np.uint16) for e in tokenizer.encode_batch(documents)])
        for part, documents in parts.items()
    }
    # a document's end is predicted too (as the next one's start), and counts as one byte
    return Corpus(name, vocabulary, ids, {part: sum(len(d.encode()) + 1 for d in parts[part]) for part in parts})


def _chitchat(text: Path | None) -> dict[str, list[str]]:
    spec = importlib.util.find_spec("chitchat_dataset")
    if spec is None:
        raise NewLLMError("ChitChat's package is missing: pip install chitchat-dataset==0.9.0")
    conversations = json.loads((Path(spec.origin).parent / "dataset.json").read_text(encoding="utf-8"))
    names = sorted(conversations)
    random.Random(0).shuffle(names)
    documents = [_as_lines(conversations[name]["messages"]) for name in names]
    return {"train": documents[750:], "validation": documents[500:750], "test": documents[:500]}


def _as_lines(turns: list) -> str:
    return "\n".join(f"{'AB'[i % 2]}: " + " ".join(m["text"] for m in turn) for i, turn in enumerate(turns))


def _wikitext(text: Path | None) -> dict[str, list[str]]:
    files = sorted(text.glob("*wikitext*")) if text else []
    if not files:
        raise UsageError("wikitext2 needs --text FOLDER, a folder with WikiText-2's files (*wikitext*).")
    articles: list[str] = []
    for line in "".join(f.read_text(encoding="utf-8") for f in files).splitlines(keepends=True):
        title = line.strip()
        if title.startswith("= ") and title.endswith(" =") and not title.startswith("= ="):
            articles.append("")
        if articles:
            articles[-1] += line
    random.Random(0).shuffle(articles)
    tenth = len(articles) // 10
    return {"train": articles[2 * tenth :], "validation": articles[:tenth], "test": articles[tenth : 2 * tenth]}


_TEXTS = {"chitchat": _chitchat, "wikitext2": _wikitext}
