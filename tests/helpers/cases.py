"""Reads what was packed back into turns, with what of them is learned."""

from __future__ import annotations

import re
from pathlib import Path

from newllm_lib.data import prepare
from newllm_lib.data.packing import PackedSplit

NOUNS = "anchor barrel copper dragon ember falcon garnet hammer island jacket kernel lantern".split()


def noun(i: int) -> str:
    """A word for row `i`."""
    return NOUNS[i % len(NOUNS)]


def asked(i: int) -> str:
    return f"How heavy is the {noun(i)} of shelf {i}?"


def answered(i: int) -> str:
    return f"It weighs {3 * i + 1} pounds, the {noun(i)} does."


def turns(split: PackedSplit, tokenizer) -> list[list[tuple[str, str, bool]]]:
    """(role, text, learned) of each turn of each document; role "text" of one without turns."""
    ends = [*split.document_starts.tolist(), len(split.ids) - 1]
    found = []
    for begin, end in zip(ends, ends[1:], strict=False):
        document, place = [], begin + 1
        for piece in re.split(r"(<\|(?:user|assistant|system)\|>)", tokenizer.decode(split.ids[place:end])):
            document.append(piece)
        spoken = [
            (who.strip("<|>"), text.removesuffix("<|end|>"))
            for who, text in zip(document[1::2], document[2::2], strict=True)
        ] or [("text", document[0])]
        learned = _learned(split, tokenizer, begin, end)
        found.append([(role, text, text in learned) for role, text in spoken])
    return found


def _learned(split: PackedSplit, tokenizer, begin: int, end: int) -> list[str]:
    """The runs of tokens of a document that the loss counts, as text."""
    if split.loss_mask is None:
        return []
    runs, run = [], []
    for token, counts in zip(split.ids[begin:end], split.loss_mask[begin:end], strict=True):
        if counts:
            run.append(int(token))
        elif run:
            runs.append(run)
            run = []
    return [tokenizer.decode(run).removesuffix("<|end|>") for run in (*runs, run) if run]


def all_turns(data) -> dict[str, list[tuple[str, str, bool]]]:
    """The turns of every document of all splits, by the last text of each."""
    documents = [d for part in (data.train, data.validation, data.test) for d in turns(part, data.tokenizer)]
    return {document[-1][1]: document for document in documents}


def read_folder(place: Path, recipe, cache: Path, **changes) -> tuple[dict, object]:
    """The turns of a folder's documents as they are packed, and the report on its train file."""
    data = prepare(recipe(data_dir=place, **{"loss_on": "answers", **changes}), cache)
    (name,) = (n for n in data.report.files if n.startswith("train"))
    return all_turns(data), data.report.files[name]
