"""From a recipe to packed tokens: source → records → tokenizer → packed splits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from newllm_lib import console
from newllm_lib.data import ahead, streaming
from newllm_lib.data.cache import cache_root, key_hash
from newllm_lib.data.datasets import open_source
from newllm_lib.data.packing import PackedSplit, check_answers, check_length, pack
from newllm_lib.data.readers.base import Source
from newllm_lib.data.records import DataReport, RowStats
from newllm_lib.data.splits import SPLITS, check_train
from newllm_lib.data.tokenizer import load_tokenizer
from newllm_lib.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from newllm_lib.data.streaming.segments import LargeSource
    from newllm_lib.data.streaming.stream import StreamedSplit
    from newllm_lib.recipe import Recipe

LARGE = 300 << 20  # bytes of training files: from here on a set is prepared while training


@dataclass
class PreparedData:
    """All that a run needs to know of its data. Close it: until then a training split is streamed."""

    tokenizer: PreTrainedTokenizerBase
    train: PackedSplit | StreamedSplit
    validation: PackedSplit
    test: PackedSplit
    description: str  # one line: source, documents, tokens, vocabulary, share of <unk>
    fingerprint: str  # the same if and only if tokenizer and tokens of all splits are: for exact resume
    report: DataReport  # what the source was taken for
    commit: str = ""  # of the hub

    def state(self) -> dict:
        """What a checkpoint must remember to go on with the same data, on another machine too."""
        stream = self.train.state() if hasattr(self.train, "state") else None
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        packed = {split: part.checksum for split, part in parts.items() if isinstance(part, PackedSplit)}
        return {"commit": self.commit, "stream": stream, "packed": packed}

    def close(self) -> None:
        """End what still prepares."""
        if hasattr(self.train, "close"):
            self.train.close()


def prepare(
    recipe: Recipe,
    cache_dir: str | Path | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    saved: dict | None = None,
    leads: bool = True,
) -> PreparedData:
    """Make (or find in the cache) everything that training on a recipe's data needs, saying what is done.

    A set whose training files are large is not packed before training but while it trains (`stream`).

    Args:
        recipe: a `Recipe`; its fields data, data_dir, max_samples, streaming, carry_state, seed, tokenizer,
            vocab_size, max_seq_length and loss_on are used.
        cache_dir: where prepared data is kept; default: $NEWLLM_CACHE, else ~/.cache/newllm.
        tokenizer: another run's, to use instead of the recipe's.
        saved: `PreparedData.state` of a checkpoint to go on from.
        leads: False where another process on this machine prepares the same data for the same training.

    Raises:
        NewLLMError: one line that says what is wrong with the data and how to mend it.
    """
    ahead.wait()
    cache = cache_root(cache_dir)
    source = open_for_training(recipe, cache, (saved or {}).get("commit", ""))
    check_train(source, set(SPLITS))
    tokenizer = tokenizer or load_tokenizer(recipe, source, cache)
    if source.in_segments:
        return _prepare_stream(recipe, cast("LargeSource", source), tokenizer, cache, saved, leads)
    packed = packed_for_training(recipe, source, tokenizer, cache)
    for split in packed.values():
        check_length(split, recipe.max_seq_length)
        check_answers(split)
    train = packed["train"]
    description = (
        f"{source.title}: {train.documents:,} documents, {console.count(train.tokens)} tokens to train on "
        f"(validation {console.count(packed['validation'].tokens)}, test "
        f"{console.count(packed['test'].tokens)}), vocabulary {len(tokenizer):,}, <unk> "
        f"{100 * train.unk_share:.1f} %"
        + (", text lower-cased" if train.lower_cased else "")
        + (
            f", loss on the answers ({100 * train.loss_mask.mean():.0f} % of the tokens)"
            if train.loss_mask is not None
            else ""
        )
    )
    fingerprint = key_hash({split: part.path.name for split, part in packed.items()})
    return _prepared(source, tokenizer, train, packed, description, fingerprint, saved)


def _prepared(
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    train: PackedSplit | StreamedSplit,
    packed: dict[str, PackedSplit],
    description: str,
    fingerprint: str,
    saved: dict | None,
) -> PreparedData:
    """All of it together; `packed` holds the splits that are measured."""
    validation, test = packed["validation"], packed["test"]
    before = (saved or {}).get("packed") or {}
    if any(before.get(split, part.checksum) != part.checksum for split, part in packed.items()):
        # the same files, which the version that began the run read otherwise
        fingerprint = key_hash({split: part.checksum for split, part in packed.items()})
    report = _joined_report(train.report, validation.report, test.report)
    return PreparedData(
        tokenizer, train, validation, test, description, fingerprint, report, commit=source.commit
    )


def packed_for_training(
    recipe: Recipe, source: Source, tokenizer: PreTrainedTokenizerBase, cache: Path
) -> dict[str, PackedSplit]:
    """All three splits of a source that is packed before training."""
    answers_only = recipe.loss_on == "answers"
    return pack(
        source, tokenizer, list(SPLITS), cache, max_samples=recipe.max_samples, answers_only=answers_only
    )


@dataclass
class PreparedDialogues:
    """Dialogues to train on and some held out, in another model's tokens."""

    train: PackedSplit
    validation: PackedSplit
    description: str  # one line
    fingerprint: str  # the same if and only if tokenizer and tokens of both are


HELD_OUT_DIALOGUES = 500  # that a base is measured on: an evaluation should take a fraction of an epoch


def prepare_dialogues(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, cache_dir: str | Path | None = None
) -> PreparedDialogues:
    """The dialogues that a recipe names, as a base model's tokenizer writes them; of a large set its sample.

    Raises:
        UsageError: the data are plain text.
        NewLLMError: they cannot be read, or hold no answers.
    """
    cache = cache_root(cache_dir)
    source = open_for_training(recipe, cache)
    check_train(source, {"train", "validation"})
    first = next(iter(source.records("train", RowStats())), None)
    if first is not None and first.text is not None:
        raise UsageError(
            f"{source.title} is plain text, and --base learns from dialogues: name others with --data or "
            "--data_dir, or leave --base out."
        )
    packed = pack(
        source,
        tokenizer,
        ["train", "validation"],
        cache,
        max_samples=recipe.max_samples,
        answers_only=recipe.loss_on == "answers",
        held_out=HELD_OUT_DIALOGUES,
    )
    for split in packed.values():
        check_answers(split)
    train, validation = packed["train"], packed["validation"]
    sample = (
        f" (the first {(source.size('train') or 0) / 1e6:.0f} MB of a large set)"
        if source.in_segments
        else ""
    )
    held_out = f"{validation.documents:,} held out"
    description = f"{source.title}{sample}: {train.documents:,} dialogues to train on, {held_out}"
    fingerprint = key_hash({split: part.path.name for split, part in packed.items()})
    return PreparedDialogues(train, validation, description, fingerprint)


def _prepare_stream(
    recipe: Recipe,
    source: LargeSource,
    tokenizer: PreTrainedTokenizerBase,
    cache: Path,
    saved: dict | None,
    leads: bool,
) -> PreparedData:
    """The held-out splits of a large source's sample; its training split, begun."""
    answers_only, known = recipe.loss_on == "answers", (saved or {}).get("stream")
    train = streaming.StreamedSplit(source, tokenizer, cache, recipe, known, leads)
    try:
        if not known:
            train.start()
        packed = pack(source, tokenizer, ["validation", "test"], cache, answers_only=answers_only)
        for split in packed.values():
            check_length(split, recipe.max_seq_length)
            check_answers(split)
        train.declare()
        train.check_disk()
    except BaseException:
        train.close()
        raise
    description = (
        f"{source.title}: about {console.count(train.documents)} documents, {console.count(train.tokens)} "
        f"tokens to train on, estimated from the first of {len(train.job.segments):,} pieces and prepared "
        f"while training (validation {console.count(packed['validation'].tokens)}, test "
        f"{console.count(packed['test'].tokens)}), vocabulary {len(tokenizer):,}, <unk> "
        f"{100 * packed['validation'].unk_share:.1f} %" + (", loss on the answers" if answers_only else "")
    )
    parts = {split: part.path.name for split, part in packed.items()}
    fingerprint = key_hash(
        {**parts, "train": train.path.name, "max_samples": recipe.max_samples, "seed": recipe.seed}
    )
    return _prepared(source, tokenizer, train, packed, description, fingerprint, saved)


def _joined_report(train: DataReport, *others: DataReport) -> DataReport:
    """Of all splits. What a large set's sample was taken for, the pieces say that are trained on."""
    report = replace(train)
    for other in others:
        own = {name: part for name, part in other.files.items() if part.split != "train"}
        report.add(replace(other, files=own))
    return report


def open_for_training(recipe: Recipe, cache: Path, commit: str = "") -> Source:
    """The recipe's source; a `LargeSource` where it is to be prepared while training.

    Raises:
        UsageError: `streaming: on` for data that cannot be, or as `open_source`.
    """
    source = open_source(recipe, cache, commit)
    files = source.files("train") if recipe.streaming != "off" and "train" in source.splits else None
    if recipe.streaming == "on" and files is None:
        raise UsageError(
            f"--streaming on needs records in .jsonl or .parquet, and {source.title} has others: leave it "
            "out."
        )
    large = files is not None and sum(file.bytes for file in files) >= LARGE and not recipe.carry_state
    return streaming.LargeSource(source) if large or recipe.streaming == "on" else source


def load_split(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, split: str, cache_dir: str | Path | None = None
) -> PackedSplit:
    """One split of a recipe's data, packed with a given tokenizer (a finished run's own). Of a large set's
    training split, the sample that is read before training.

    Raises:
        NewLLMError: as `prepare`.
    """
    if split not in SPLITS:
        raise UsageError(f"Unknown split {split!r}: use one of {', '.join(SPLITS)}.")
    cache = cache_root(cache_dir)
    source = open_for_training(recipe, cache)
    check_train(source, {split})
    if split == "train" and source.in_segments:
        console.say(
            f"  {source.title} is large: the first {(source.size('train') or 0) / 1e6:.0f} MB stand for its "
            "training split"
        )
    answers_only = recipe.loss_on == "answers"
    packed = pack(
        source, tokenizer, [split], cache, max_samples=recipe.max_samples, answers_only=answers_only
    )[split]
    check_answers(packed)
    # said once: of a training split that is counted beside it, the same would be said again
    for line in packed.report.lines() if source.own and split != "train" else ():
        console.say(f"  {line}")
    return packed
