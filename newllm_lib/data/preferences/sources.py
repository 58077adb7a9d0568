"""Where preference pairs come from: made here, a data set of the hub, or files of the user's."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from newllm_lib.data.cache import cache_root, key_hash
from newllm_lib.data.datasets import REGISTRY, open_with, reading_of
from newllm_lib.data.preferences.generate import generate
from newllm_lib.data.preferences.pairs import PAIRS, Judged, Pair, columns_of_pairs, parse_pair
from newllm_lib.data.preferences.prompts import (
    KIND as PROMPT_KIND,
    Prompt,
    columns_of_prompts,
    parse_prompt,
    prompt_of_pair,
)
from newllm_lib.data.readers.base import HUB_SPLIT_NAMES, KINDS, PACKINGS, ROWS, HubName, Source, kind_of
from newllm_lib.data.records import DataReport, RowStats
from newllm_lib.data.schemas import parse_rows
from newllm_lib.errors import NewLLMError, UsageError

if TYPE_CHECKING:
    from newllm_lib.recipe import Recipe

Row = TypeVar("Row", Pair, Prompt)
MADE_HERE = "preferences_ja"
HELD_OUT_SHARE = 0.1  # of pairs whose source has no split of its own
_SPLIT_NAMES = {"train_prefs": "train", "test_prefs": "test"} | HUB_SPLIT_NAMES
_HOMES = {
    "hh_rlhf": f"{REGISTRY['hh_rlhf'].home}@{REGISTRY['hh_rlhf'].revision}",
    "ultrafeedback": "HuggingFaceH4/ultrafeedback_binarized",
}


@dataclass
class Preferences(Generic[Row]):
    """Pairs (for GRPO, prompts) to train on and to hold out; no prompt (and no group) is in both."""

    title: str
    train: list[Row]
    evaluation: list[Row]
    stats: RowStats
    unit: str = "pairs"

    @property
    def fingerprint(self) -> str:
        """The same if and only if the pairs are."""
        return key_hash(
            {"train": [p.to_json() for p in self.train], "evaluation": [p.to_json() for p in self.evaluation]}
        )

    @property
    def report(self) -> DataReport:
        """What the rows were taken for."""
        return DataReport(self.title, self.stats.files)

    def description(self) -> str:
        groups = len({p.group for p in self.evaluation if p.group})
        about = f" about {groups} things that training never mentions" if groups else ""
        left_out = self.stats.summary()
        return (
            f"{self.title}: {len(self.train):,} {self.unit} to train on, {len(self.evaluation):,} held out"
            + about
            + (f"; {left_out}" if left_out else "")
        )


def load_prompts(recipe: Recipe) -> Preferences[Prompt]:
    """The prompts that a recipe names, by the same keys as pairs; pairs are prompts too.

    Raises:
        UsageError: no such source.
        NewLLMError: it cannot be read, or holds no prompts.
    """
    stats = RowStats(PROMPT_KIND)
    if recipe.data_dir is None and recipe.data == MADE_HERE:
        title, rows = "Japanese questions made here", [prompt_of_pair(p) for p in generate(seed=recipe.seed)]
        stats.good = len(rows)
    else:
        source = _open(recipe)
        title, rows = source.title, _rows(source, stats, parse_prompt, columns_of_prompts)
        stats.finish()
    return _divided(recipe, title, rows, stats, "prompts")


def load_preferences(recipe: Recipe) -> Preferences[Pair]:
    """The pairs that a recipe names (`data`, `data_dir`, `max_samples`, `eval_pairs`, `seed`).

    Raises:
        UsageError: no such source.
        NewLLMError: it cannot be read, or holds no pairs.
    """
    stats = RowStats(PAIRS)
    if recipe.data_dir is None and recipe.data == MADE_HERE:
        title, pairs = "Japanese pairs made here", generate(seed=recipe.seed)
        stats.good = len(pairs)
    else:
        source = _open(recipe)
        title, pairs = source.title, _read(source, stats, singles=recipe.task == "kto")
        stats.finish()
    return _divided(recipe, title, pairs, stats, "pairs", _across)


def _divided(
    recipe: Recipe,
    title: str,
    rows: list[Row],
    stats: RowStats,
    unit: str,
    evaluated: Callable[[list[Row]], list[Row]] = list,
) -> Preferences[Row]:
    """Rows to train on and to hold out, as many as the recipe wants.

    Args:
        evaluated: what is made of those that are held out.
    """
    if not rows:
        raise NewLLMError(f"There are no {stats.kind.plural} in the data: each row needs {stats.kind.needs}.")
    train, evaluation = _apart(rows, stats)
    train = _smallest(train, recipe.max_samples)
    evaluation = _smallest(evaluated(evaluation), recipe.eval_pairs)
    for split, name in ((train, "to train on"), (evaluation, "to hold out")):
        if not split:
            raise NewLLMError(f"{title}: no {unit} are left {name}. Give more, with different prompts.")
    return Preferences(title, train, evaluation, stats, unit)


def _open(recipe: Recipe) -> Source:
    """The source that a recipe's pairs are read from."""
    if recipe.data_dir is not None:
        return open_with("FolderSource", Path(recipe.data_dir).expanduser(), reading=reading_of(recipe))
    path = Path(recipe.data).expanduser()
    if path.is_file():
        if kind_of(path) not in ROWS:
            raise UsageError(f"{path}: preference pairs are read from {', '.join(ROWS)}.")
        return open_with("FolderSource", path, {"train": [path]}, reading=reading_of(recipe))
    name = HubName.parse(_HOMES.get(recipe.data, recipe.data))
    is_file = recipe.data.lower().endswith((*KINDS, *PACKINGS))
    if name is None or is_file:
        what = "is no file" if is_file else "are no preference pairs"
        raise UsageError(
            f"There {what} {recipe.data!r}: use {MADE_HERE}, hh_rlhf, ultrafeedback, a data set's hub id, a "
            ".jsonl file, or --data_dir FOLDER."
        )
    return open_with("HubSource", name, cache_root(), or_newest=True, split_names=_SPLIT_NAMES)


def _read(source: Source, stats: RowStats, singles: bool) -> list[Pair]:
    """All pairs.

    Args:
        singles: whether an answer without another to its prompt is taken too, as a pair with one side.
    """

    def whole(rows: list) -> list[Pair]:
        judged = [row for row in rows if isinstance(row, Judged)]
        return [row for row in rows if isinstance(row, Pair)] + _paired(judged, stats, singles)

    return _rows(source, stats, parse_pair, columns_of_pairs, whole)


def _rows(source: Source, stats: RowStats, parse, describe, whole: Callable[[list], list] = list) -> list:
    """All rows, with the split where the source has one: those that are not for training are for evaluation.
    One split alone is divided later.

    Args:
        whole: makes rows of what was parsed of a split.
    """
    named = (
        {"train": "train", "validation": "evaluation", "test": "evaluation"} if len(source.splits) > 1 else {}
    )
    found: list = []
    for split in source.splits:
        stats.begin(f"{source.title} {split}", split)
        rows = whole(list(parse_rows(source.rows(split), stats, parse, describe)))
        found += [row._replace(split=named.get(split, row.split)) for row in rows]
    return found


def _paired(judged: list[Judged], stats: RowStats, singles: bool) -> list[Pair]:
    """Pairs of the good and the bad answers to one prompt, in their order; the others are counted, or taken
    as pairs with one side."""
    halves: dict[tuple, tuple[list[Pair], list[Pair]]] = {}
    for half, good in judged:
        halves.setdefault(half.prompt, ([], []))[not good].append(half)
    pairs = [
        good._replace(rejected=bad.chosen)
        for goods, bads in halves.values()
        for good, bad in zip(goods, bads, strict=False)
        if good.chosen != bad.chosen
    ]
    if singles:
        for goods, bads in halves.values():
            pairs += goods[len(bads) :]
            pairs += [bad._replace(chosen="", rejected=bad.chosen) for bad in bads[len(goods) :]]
        return pairs
    stats.good -= len(judged) - len(pairs)
    why = "a single answer, with no other to its prompt that is judged otherwise (newllm train kto learns it)"
    stats.reject(why, count=len(judged) - 2 * len(pairs))
    return pairs


def _apart(pairs: list[Row], stats: RowStats) -> tuple[list[Row], list[Row]]:
    """Pairs to train on and to hold out: as the source says, else by a hash of what is asked."""
    if not any(pair.split == "evaluation" for pair in pairs):
        keys: list[float] = sorted({_position(pair.key()) for pair in pairs})
        # by content; of a few pairs at least a tenth
        share = max([HELD_OUT_SHARE, *keys[: max(1, len(keys) // 10)]])
        pairs = [
            pair._replace(split="evaluation" if _position(pair.key()) <= share else "train") for pair in pairs
        ]
    evaluation = _once([pair for pair in pairs if pair.split == "evaluation"], stats)
    held_out = {pair.key() for pair in evaluation}
    train = [pair for pair in pairs if pair.split != "evaluation"]
    kept = [pair for pair in train if pair.key() not in held_out]
    stats.reject("held out under the same prompt", count=len(train) - len(kept))
    return _once(kept, stats), evaluation


def _across(pairs: list[Pair]) -> list[Pair]:
    """Held-out pairs; of single answers a good one beside a bad one to another prompt, while there are
    both."""
    good = [pair for pair in pairs if not pair.rejected]
    bad = [pair for pair in pairs if not pair.chosen]
    crossed = [
        one._replace(rejected=other.rejected, rejected_prompt=other.prompt)
        for one, other in zip(good, bad, strict=False)
    ]
    return [pair for pair in pairs if pair.chosen and pair.rejected] + crossed


def _once(pairs: list[Row], stats: RowStats) -> list[Row]:
    """Without repetitions."""
    kept = list({pair.identity(): pair for pair in pairs}.values())
    stats.reject("a repetition", count=len(pairs) - len(kept))
    return kept


def _smallest(pairs: list[Row], count: int | None) -> list[Row]:
    """`count` of the pairs, chosen by their content alone; None: all. The order stays."""
    if count is None or len(pairs) <= count:
        return pairs
    taken = sorted(range(len(pairs)), key=lambda i: _position(pairs[i].identity()))[:count]
    return [pairs[i] for i in sorted(taken)]


def _position(value: object) -> float:
    """From 0 to 1, by the content of `value` alone."""
    digest = hashlib.blake2b(repr(value).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
