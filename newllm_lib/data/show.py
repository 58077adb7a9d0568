"""Data as a run will read them: some records token by token, what the loss counts, lengths beside the window.

`look` gives all of it as values; `DataSample.lines` says it, `DataSample.picture` draws the lengths.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from newllm_lib import console
from newllm_lib.data.cache import cache_root
from newllm_lib.data.encoder import Encoder, refuse_muted
from newllm_lib.data.packing import no_answers, report_of
from newllm_lib.data.prepared import open_for_training
from newllm_lib.data.readers.base import Source
from newllm_lib.data.records import DataReport, Record, RowStats
from newllm_lib.data.splits import SPLITS, check_train, read_splits
from newllm_lib.data.tokenizer import load_tokenizer
from newllm_lib.errors import NewLLMError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from newllm_lib.recipe import Recipe

LOOKED_AT = 1000  # records whose lengths are told
SHOWN_TOKENS = 400  # of one record
_GREEN, _GREY, _PLAIN = "\x1b[32m", "\x1b[90m", "\x1b[0m"
_OPEN, _CLOSE = "⟦", "⟧"


class Piece(NamedTuple):
    """Tokens in a row of which the loss counts all or none, as text."""

    text: str
    counts: bool


class ShownRecord(NamedTuple):
    """One record as it is packed."""

    pieces: list[Piece]
    tokens: int
    counted: int  # tokens that the loss counts


@dataclass
class DataSample:
    """What `look` found. Lengths in tokens."""

    report: DataReport
    records: list[ShownRecord]
    lengths: list[int]  # of the first records, at most `LOOKED_AT`
    window: int  # tokens in a training block
    vocabulary: int
    words: int  # in those records
    unk: int  # tokens among them that are <unk>
    loss_on: str

    @property
    def tokens_per_word(self) -> float:
        """How finely the tokenizer cuts; NaN where nothing is parted by spaces."""
        return sum(self.lengths) / self.words if self.words > 1 else float("nan")

    @property
    def longer(self) -> float:
        """Share of the records that are longer than a window."""
        return sum(length > self.window for length in self.lengths) / len(self.lengths)

    def plain(self) -> dict:
        """All of it as JSON knows it."""
        records = [{**r._asdict(), "pieces": [piece._asdict() for piece in r.pieces]} for r in self.records]
        figures = {"tokens_per_word": self.tokens_per_word, "longer_than_window": self.longer}
        more = {"report": self.report.plain(), "records": records}
        return {**vars(self), **more, **figures}

    def lines(self, colour: bool = False) -> Iterator[str]:
        """All of it for a terminal, safe to print: what the loss counts is green, or between ⟦ and ⟧."""
        yield from map(console.printable, self.report.lines())
        for number, record in enumerate(self.records, 1):
            yield ""
            yield f"record {number}: {record.tokens:,} tokens, the loss counts {record.counted:,}"
            yield "".join(_marked(piece, colour) for piece in record.pieces)
        lengths, whole = sorted(self.lengths), sum(self.lengths)
        most = lengths[int(0.95 * (len(lengths) - 1))]
        yield ""
        counts = "green" if colour else f"between {_OPEN} and {_CLOSE}"
        yield f"What the loss counts ({self.loss_on}) is {counts}."
        yield (
            f"The first {len(lengths):,} records: {whole:,} tokens, {self.tokens_per_word:.2f} a word, <unk> "
            f"{100 * self.unk / whole:.1f} %, vocabulary {self.vocabulary:,}"
        )
        yield (
            f"Their lengths: median {statistics.median(lengths):.0f}, 95 % up to {most:,}, longest "
            f"{lengths[-1]:,}; {100 * self.longer:.0f} % are longer than a window of {self.window:,} tokens"
        )

    def picture(self, path: str | Path) -> None:
        """Write a histogram of the lengths, with the window, as an image."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 3), layout="constrained")
        axes = figure.subplots()
        axes.hist(self.lengths, bins=min(60, max(self.lengths)), color="tab:green")
        axes.axvline(self.window, color="black", linestyle="--", label=f"window: {self.window}")
        axes.set(xlabel="tokens in a record", ylabel="records", title=self.report.source)
        axes.legend()
        figure.savefig(path, dpi=120)


def _marked(piece: Piece, colour: bool) -> str:
    text = console.printable(piece.text)
    if colour:
        return f"{_GREEN if piece.counts else _GREY}{text}{_PLAIN}"
    return f"{_OPEN}{text}{_CLOSE}" if piece.counts else text


def look(recipe: Recipe, count: int = 3, cache_dir: str | Path | None = None) -> DataSample:
    """The first records of the recipe's training split, as a run with it would read them.

    Args:
        recipe: as for `prepare`.
        count: so many records are shown.
        cache_dir: where prepared data is kept; default: $NEWLLM_CACHE, else ~/.cache/newllm.

    Raises:
        NewLLMError: as `prepare`.
    """
    cache, stats = cache_root(cache_dir), RowStats()
    source = open_for_training(recipe, cache)
    check_train(source, {"train"})
    tokenizer = load_tokenizer(recipe, source, cache)
    records = read_splits(source, {"train"}, recipe.max_samples, stats)
    first = [record for _, record in itertools.islice(records, max(count, LOOKED_AT))]
    if not first:
        raise NewLLMError(f"{source.title}: the train split holds no text. Give it some, or name other data.")
    for _ in records if source.own and not source.in_segments else ():  # so that the report counts all
        pass
    encoder = Encoder(tokenizer, recipe.loss_on == "answers")
    encoded = encoder.encode([record._replace(continues=False) for record in first])
    ends = np.append(encoded.starts, len(encoded.ids))
    mask = np.ones(len(encoded.ids), dtype=np.uint8) if encoded.mask is None else encoded.mask
    spans = list(zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True))
    return DataSample(
        report=report_of(source, stats),
        records=[_shown(tokenizer, encoded.ids[a:b], mask[a:b]) for a, b in spans[:count]],
        lengths=[b - a for a, b in spans],
        window=recipe.max_seq_length,
        vocabulary=len(tokenizer),
        words=sum(len(text.split()) for record in first for text in record.texts()),
        unk=0 if encoder.unk_id is None else int((encoded.ids == encoder.unk_id).sum()),
        loss_on="the answers" if recipe.loss_on == "answers" else "everything",
    )


def _shown(tokenizer: PreTrainedTokenizerBase, ids: np.ndarray, mask: np.ndarray) -> ShownRecord:
    pieces, begin = [], 0
    whole = min(len(ids), SHOWN_TOKENS)
    for end in range(1, whole + 1):
        if end == whole or mask[end] != mask[begin]:
            text = tokenizer.decode(ids[begin:end].tolist(), skip_special_tokens=False)
            pieces.append(Piece(text, bool(mask[begin])))
            begin = end
    if whole < len(ids):
        pieces.append(Piece(f" … ({len(ids) - whole:,} tokens more)", False))
    return ShownRecord(pieces, len(ids), int(mask.sum()))


@dataclass
class Checked:
    """What `check` found."""

    report: DataReport
    records: dict[str, int]  # of each split
    characters: dict[str, int]
    problem: str  # why it cannot be trained on; empty: it can


def check(recipe: Recipe, cache_dir: str | Path | None = None) -> Checked:
    """Read all of a recipe's data once, as training will, without making anything of it."""
    stats, answers = RowStats(), recipe.loss_on == "answers"
    records, characters = dict.fromkeys(SPLITS, 0), dict.fromkeys(SPLITS, 0)
    learned = dict.fromkeys(SPLITS, 0)
    report, problem = DataReport(str(recipe.data_dir or recipe.data)), ""
    try:
        source = open_for_training(recipe, cache_root(cache_dir))
        report = DataReport(source.title, stats.files, source.unused)
        check_train(source, set(SPLITS))
        for split, record in read_splits(source, set(SPLITS), recipe.max_samples, stats):
            if not answers:
                refuse_muted([record])
            learned[split] += bool(not answers or record.learned())
            records[split] += not record.continues
            characters[split] += _size(record)
        report = report_of(source, stats)
        problem = _problem(source, records, learned)
    except NewLLMError as error:
        problem = str(error)
    return Checked(report, records, characters, problem)


def _problem(source: Source, records: dict[str, int], learned: dict[str, int]) -> str:
    """What of the splits cannot be trained on or measured; empty: nothing."""
    if empty := [split for split in SPLITS if not records[split]]:
        return f"{source.title}: nothing is left for {' and '.join(empty)}: give more text, or a file for it."
    return next((no_answers(split) for split in SPLITS if not learned[split]), "")


def _size(record: Record) -> int:
    return sum(map(len, record.texts()))
