"""Where preference pairs come from: made here, a known set of the hub, any other by its id, or files of the user's."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from newllm_lib.data.cache import cache_root, key_hash
from newllm_lib.data.folder import KINDS, find_files, kind_of, read_table
from newllm_lib.data.hub import HUB_SPLIT_NAMES, HubDataset, HubName
from newllm_lib.data.preferences.generate import generate
from newllm_lib.data.preferences.pairs import Pair
from newllm_lib.data.preferences.rows import Drops, parse_pairs
from newllm_lib.data.sources import REGISTRY
from newllm_lib.errors import NewLLMError, UsageError

MADE_HERE = "preferences_ja"
HELD_OUT_SHARE = 0.1  # of pairs whose source has no split of its own
_PREFERENCE_SPLITS = {"train_prefs": "train", "test_prefs": "test"} | HUB_SPLIT_NAMES
_ULTRAFEEDBACK = "HuggingFaceH4/ultrafeedback_binarized"


@dataclass
class Preferences:
    """Pairs to train on and pairs held out; no prompt (and no group) is in both."""

    title: str
    train: list[Pair]
    evaluation: list[Pair]
    drops: Drops = field(default_factory=Drops)

    @property
    def fingerprint(self) -> str:
        """The same if and only if the pairs are."""
        return key_hash({"train": [p.to_json() for p in self.train], "evaluation": [p.to_json() for p in self.evaluation]})

    def description(self) -> str:
        groups = len({p.group for p in self.evaluation if p.group})
        about = f" about {groups} things that training never mentions" if groups else ""
        left_out = self.drops.summary()
        return (
            f"{self.title}: {len(self.train):,} pairs to train on, {len(self.evaluation):,} held out{about}"
            + (f"; {left_out}" if left_out else "")
        )


def load_preferences(recipe) -> Preferences:
    """The pairs that a recipe names (`data`, `data_dir`, `max_samples`, `eval_pairs`, `seed`).

    Raises:
        UsageError: no such source. NewLLMError: it cannot be read, or holds no pairs.
    """
    drops = Drops()
    if recipe.data_dir is None and recipe.data == MADE_HERE:
        title, pairs = "Japanese pairs made here", generate(seed=recipe.seed)
        drops.good = len(pairs)
    else:
        title, pairs = _read(recipe, drops)
    drops.check()
    train, evaluation = _apart(pairs, drops)
    train = _smallest(train, recipe.max_samples)
    evaluation = _smallest(evaluation, recipe.eval_pairs)
    for split, name in ((train, "to train on"), (evaluation, "to hold out")):
        if not split:
            raise NewLLMError(f"{title}: no pairs are left {name}. Give more, with different prompts.")
    return Preferences(title, train, evaluation, drops)


def _read(recipe, drops: Drops) -> tuple[str, list[Pair]]:
    """The title and all pairs, with the split where the source has one."""
    if recipe.data_dir is not None:
        found = find_files(Path(recipe.data_dir))
        title = Path(recipe.data_dir).resolve().name
        return title, _of_splits({split: _file_rows(paths) for split, paths in found.items()}, drops)
    path = Path(recipe.data).expanduser()
    if path.is_file():
        if kind_of(path) not in KINDS[1:]:
            raise UsageError(f"{path}: preference pairs are read from {', '.join(KINDS[1:])}.")
        return path.name, list(parse_pairs(_file_rows([path]), drops))
    name, revision, title = _home(recipe.data)
    cache = cache_root() / "hub" / f"preferences-{key_hash({'name': str(name), 'revision': revision})}.json"
    hub = HubDataset(HubName(name.repository, name.config, revision), cache, or_newest=True, split_names=_PREFERENCE_SPLITS)
    rows = {split: ((f"{title}, row {i}", row) for i, row in enumerate(hub.rows(split), 1)) for split in hub.splits}
    return title, _of_splits(rows, drops)


def _home(data: str) -> tuple[HubName, str, str]:
    """The hub id, its revision and the title of a source by name."""
    if data == "hh_rlhf":
        known = REGISTRY["hh_rlhf"]
        return HubName.parse(known.home), known.revision, known.title
    name = HubName.parse(_ULTRAFEEDBACK if data == "ultrafeedback" else data)
    is_file = data.lower().endswith(KINDS)
    if name is None or is_file:
        what = "is no file" if is_file else "are no preference pairs"
        raise UsageError(
            f"There {what} {data!r}: use {MADE_HERE}, hh_rlhf, ultrafeedback, a data set's hub id, a .jsonl file, or "
            "--data_dir FOLDER."
        )
    return name, name.revision, str(name)


def _file_rows(paths: Sequence[Path]) -> Iterator[tuple[str, object]]:
    for path in paths:
        yield from read_table(path)


def _of_splits(rows: dict[str, Iterator], drops: Drops) -> list[Pair]:
    """Pairs of a source with splits: those that are not for training are for evaluation. One split alone is divided later."""
    named = {"train": "train", "validation": "evaluation", "test": "evaluation"} if len(rows) > 1 else {}
    return [
        pair._replace(split=named.get(split, pair.split)) for split, found in rows.items() for pair in parse_pairs(found, drops)
    ]


def _apart(pairs: list[Pair], drops: Drops) -> tuple[list[Pair], list[Pair]]:
    """Pairs to train on and to hold out: as the source says, else by a hash of what is asked."""
    if not any(pair.split == "evaluation" for pair in pairs):
        keys = sorted({_position(pair.key()) for pair in pairs})
        share = max([HELD_OUT_SHARE, *keys[: max(1, len(keys) // 10)]])  # by content; of a few pairs at least a tenth
        pairs = [pair._replace(split="evaluation" if _position(pair.key()) <= share else "train") for pair in pairs]
    evaluation = _once([pair for pair in pairs if pair.split == "evaluation"], drops)
    held_out = {pair.key() for pair in evaluation}
    train = [pair for pair in pairs if pair.split != "evaluation"]
    kept = [pair for pair in train if pair.key() not in held_out]
    drops.add("held out under the same prompt", count=len(train) - len(kept))
    return _once(kept, drops), evaluation


def _once(pairs: list[Pair], drops: Drops) -> list[Pair]:
    """Without repetitions."""
    kept = list({pair[:3]: pair for pair in pairs}.values())
    drops.add("a repetition", count=len(pairs) - len(kept))
    return kept


def _smallest(pairs: list[Pair], count: int | None) -> list[Pair]:
    """`count` of the pairs, chosen by their content alone; None: all. The order stays."""
    if count is None or len(pairs) <= count:
        return pairs
    taken = sorted(range(len(pairs)), key=lambda i: _position(pairs[i][:3]))[:count]
    return [pairs[i] for i in sorted(taken)]


def _position(value: object) -> float:
    """From 0 to 1, by the content of `value` alone."""
    digest = hashlib.blake2b(repr(value).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
