"""nanoGPT beside us, by its own `train.py`, from a folder of the user's: nothing of it is in this project.

What is known of it here is its interface: tokens as uint16 in `data/NAME/{train,val}.bin`, a vocabulary's
size in `meta.pkl`, `--key=value` flags, and what it prints: `step 250: train loss 1.9654, val loss 2.0613`
and `iter 250: loss 1.97, …`, in nats a token. It is run in a scratch folder of links, so that its own is left
as it is.
"""

from __future__ import annotations

import importlib.util
import math
import pickle
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from newllm_lib.errors import UsageError

DATASET = "newllm_text"
CHARACTERS = "config/train_shakespeare_char.py"  # its own settings for a text by characters
EVALUATED = re.compile(r"^step (\d+): train loss \S+, val loss (\d+(?:\.\d+)?)")
LOGGED = re.compile(r"^iter (\d+): loss ")


@dataclass(frozen=True)
class NanoGPT:
    """A folder with its `train.py`, prepared to train on a text of ours.

    Args:
        place: the scratch folder that it is run in.
        tokens_per_byte: of the validation text; what turns nats a token into bits a byte.
        lost: bits a byte for text that the tokens cannot give back, 8 for each such byte.
        flags: of its `train.py`.
    """

    place: Path
    tokens_per_byte: float
    lost: float
    flags: tuple[str, ...]

    def words(self, steps: int | None) -> list[str]:
        """Its command; `steps`: where the learning rate has fallen to its end, None: as its settings say."""
        fitted = [] if steps is None else [f"--max_iters={steps}", f"--lr_decay_iters={steps}"]
        return [sys.executable, "train.py", *self.flags, f"--dataset={DATASET}", *fitted]

    def bits_per_byte(self, nats: float) -> float:
        """Of a mean over its tokens."""
        return nats / math.log(2) * self.tokens_per_byte + self.lost


def by_characters(folder: Path, place: Path, texts: dict[str, str], flags: list[str]) -> NanoGPT:
    """For a text as its own example has it: each character a token.

    Args:
        texts: "train" and "validation".
    """
    known = {character: i for i, character in enumerate(sorted(set("".join(texts.values()))))}
    tokens = {part: np.array([known[c] for c in text], dtype=np.uint16) for part, text in texts.items()}
    _lay_out(folder, place, tokens, len(known))
    rate = len(texts["validation"]) / len(texts["validation"].encode("utf-8"))
    return NanoGPT(place, rate, 0.0, (CHARACTERS, *flags))


def by_our_tokens(folder: Path, place: Path, train, validation, vocabulary: int, flags: list[str]) -> NanoGPT:
    """For tokens of ours.

    Args:
        train: a `PackedSplit`.
        validation: a `PackedSplit`.

    Raises:
        UsageError: the vocabulary does not fit its 16 bits.
    """
    if vocabulary > 1 << 16:
        raise UsageError(
            f"nanoGPT's files have 16 bits a token: a vocabulary of {vocabulary:,} is too large."
        )
    tokens = {"train": train.ids, "validation": validation.ids}
    _lay_out(folder, place, {part: ids.astype(np.uint16) for part, ids in tokens.items()}, padded(vocabulary))
    lost = 8 * validation.lost_bytes / validation.bytes
    return NanoGPT(place, (validation.tokens - 1) / validation.bytes, lost, tuple(flags))


def sized(parameters: int, width: int, vocabulary: int) -> dict[str, int]:
    """Sizes of a GPT-2 of about so many parameters: 12 width² in each layer, and the embedding."""
    layers = max(1, round((parameters - vocabulary * width) / (12 * width * width)))
    return {"n_layer": layers, "n_head": width // 64, "n_embd": width}


def padded(vocabulary: int) -> int:
    """As its `train.py` rounds GPT-2's up, because matrix products like multiples of 64."""
    return -(-vocabulary // 64) * 64


def load(folder: str, size: tuple[int, int, int], vocabulary: int, length: int):
    """Its model, by its own `model.py`, with the `step` of `peers`.

    Args:
        size: parameters, width and depth, as `peers.SIZES` has them.
        length: of its blocks.
    """
    from torch import nn

    spec = importlib.util.spec_from_file_location("nanogpt_model", Path(folder) / "model.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules["nanogpt_model"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sizes = sized(*size[:2], vocabulary) | {"vocab_size": padded(vocabulary), "block_size": length}

    class Stepped(nn.Module):
        carries = False

        def __init__(self):
            super().__init__()
            self.model = module.GPT(module.GPTConfig(**sizes, dropout=0.0, bias=False))

        def step(self, ids, labels, state):
            return self.model(ids, labels)[1], state

    return Stepped()


def check(folder: Path) -> None:
    """Raise UsageError where it is not there."""
    if not (folder / "train.py").is_file():
        raise UsageError(f"--nanogpt {folder}: there is no train.py; give the folder of a nanoGPT clone.")


def _lay_out(folder: Path, place: Path, tokens: dict[str, np.ndarray], vocabulary: int) -> None:
    data = place / "data" / DATASET
    data.mkdir(parents=True)
    for entry in folder.resolve().iterdir():
        if entry.name != "data" and not entry.name.startswith("."):
            (place / entry.name).symlink_to(entry)
    tokens["train"].tofile(data / "train.bin")
    tokens["validation"].tofile(data / "val.bin")
    (data / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": vocabulary}))
