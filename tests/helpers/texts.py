"""Small texts and dialogues, files of them, and a tokenizer made of them."""

from __future__ import annotations

import json
import random
from pathlib import Path

from newllm_lib.data.readers.base import PLAIN
from newllm_lib.data.readers.textfiles import parting_of, read_text

WORDS = (
    "the of and a river old house green runs over its small people music war city which was born near "
    "Übersee 東京"
).split()


def read_documents(path: Path) -> list[str]:
    """The documents of a text file as `documents: auto` parts them."""
    return [record.text for record in read_text(path, PLAIN, parting_of(path))]


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
