"""Several sources as one folder of training data, in chosen shares."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

from newllm_lib import console
from newllm_lib.data.cache import cache_root
from newllm_lib.data.datasets import open_source
from newllm_lib.data.readers.base import Source
from newllm_lib.data.records import Record, RowStats
from newllm_lib.data.splits import SPLITS, read_splits
from newllm_lib.data.templates import join_context
from newllm_lib.errors import NewLLMError, UsageError
from newllm_lib.recipe import Recipe
from newllm_lib.runs import owned_directory, replaceable

HELD_OUT = 0.05  # documents of validation and of test for each one to train on
OFFERED = ("demo", "wikitext", "dolly", "ultrachat_200k", "hh_rlhf", "code_alpaca", "dolly_ja", "alpaca_ja")
RECORD = "mix.json"  # in the folder, beside the splits: what was asked for and what was found


def parse_weights(text: str) -> dict[str, float]:
    """`demo=2,dolly=1` as numbers that sum to 1. A source is a name, a hub id or a folder.

    Raises:
        UsageError: it does not look like that, or a weight is no number above 0.
    """
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, equals, number = part.strip().rpartition("=")
        if not equals or not name or not re.fullmatch(r"\d*\.?\d+", number) or not 0 < float(number) < 1e9:
            raise UsageError(f"--weights {text}: write it as `demo=2,dolly=1`, each weight a number above 0.")
        if name in weights:
            raise UsageError(f"--weights {text}: {name} stands there twice.")
        weights[name] = float(number)
    return {name: weight / sum(weights.values()) for name, weight in weights.items()}


def read_record(folder: Path) -> dict | None:
    """What `mix` recorded in `folder`: `weights`, `documents`, `sources` (its answer); or None."""
    try:
        return json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def mix(weights: dict[str, float], documents: int, folder: Path) -> dict[str, dict[str, int]]:
    """Write train, validation and test .jsonl into `folder`, atomically; how many of each source.

    Args:
        weights: each source's share of the documents. Of a source its first records are taken, each at most
            once; where there are fewer than its share all are, and it is said.

    Raises:
        UsageError: an unknown source, or the folder holds what is no mixture of ours.
        NewLLMError: it cannot be read.
    """
    replaceable(folder, "mixture", "--output")  # before anything is downloaded
    cache = cache_root(None)
    sources = {name: _open(name, cache) for name in weights}
    found: dict[str, dict[str, int]] = {}
    with owned_directory(folder, "mixture", "--output") as staging:
        files = {split: open(staging / f"{split}.jsonl", "w", encoding="utf-8") for split in SPLITS}
        try:
            for name, source in sources.items():
                wanted = {
                    s: math.ceil(weights[name] * documents * (1 if s == "train" else HELD_OUT))
                    for s in SPLITS
                }
                found[name] = _copy(source, wanted, files)
                short = found[name]["train"] < wanted["train"]
                console.say(
                    f"  {source.title}: {found[name]['train']:,} documents to train on"
                    + (f" (all there are; its share would be {wanted['train']:,})" if short else "")
                )
        finally:
            for file in files.values():
                file.close()
        if not all(sum(counts[split] for counts in found.values()) for split in SPLITS):
            raise NewLLMError(f"{documents} documents leave a split empty: mix more (--documents).")
        record = {"weights": weights, "documents": documents, "sources": found}
        (staging / RECORD).write_text(
            json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    return found


def _open(name: str, cache: Path) -> Source:
    is_folder = Path(name).expanduser().is_dir()
    return open_source(Recipe(data_dir=name) if is_folder else Recipe(data=name), cache)


def _copy(source: Source, wanted: dict[str, int], files: dict) -> dict[str, int]:
    counts, stats = dict.fromkeys(SPLITS, 0), RowStats()
    for split, record in read_splits(source, set(SPLITS), None, stats):
        if counts[split] < wanted[split]:
            counts[split] += 1
            files[split].write(json.dumps(_row(record), ensure_ascii=False) + "\n")
        elif all(counts[s] >= wanted[s] for s in SPLITS):
            break
    return counts


def _row(record: Record) -> dict:
    if record.text is not None:
        return {"text": record.text}
    messages: list[dict] = [{"role": m.role, "content": m.content} for m in record.messages]
    for i in record.muted:
        messages[i]["weight"] = 0
    if not record.context:
        return {"messages": messages}
    *before, asks, answers = messages  # a column of its own, since some templates write it apart
    task = asks["content"].removesuffix(join_context("", record.context))
    row = {"instruction": task, "context": record.context, "response": answers["content"]}
    return row | ({"history": before} if before else {})
