"""Packing: records to one long stream of tokens on disk, read through a memory map.

The stream is `<|endoftext|> document <|endoftext|> document … <|endoftext|>`: one token is the end of one
document and the beginning of the next, as in GPT-2. Predicting each token from those before it predicts every
token but the first, exactly once. Blocks are cut when they are read (`blocks.py`), so one cache serves every
block length.

Memory stays flat however large the data: about a mebibyte of text is read, tokenized on all cores and written
at a time.
"""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from newllm_lib import console
from newllm_lib.data.cache import Staging, key_hash, locked, plain_write_errors, read_meta, sweep
from newllm_lib.data.encoder import Encoder
from newllm_lib.data.readers.base import Source
from newllm_lib.data.records import DataReport, Record, RowStats
from newllm_lib.data.splits import HELD_OUT, derived_splits, held_out_key, read_splits, where_held_out
from newllm_lib.data.templates import TEMPLATE_VERSION
from newllm_lib.data.tokenizer import tokenizer_hash
from newllm_lib.errors import NewLLMError

if TYPE_CHECKING:
    from numpy.typing import DTypeLike
    from transformers import PreTrainedTokenizerBase

VERSION = 2  # of everything that decides what is packed: change it when that changes
BATCH_CHARACTERS = 1 << 20  # of text, tokenized in one call
BATCH_RECORDS = 10_000


@dataclass
class PackedSplit:
    """One split as tokens. The counts are of the original text (lower-cased if the tokenizer lower-cases)."""

    path: Path
    ids: np.ndarray  # (tokens,) uint16 or uint32, memory-mapped
    document_starts: np.ndarray  # (documents,) int64: where each document's <|endoftext|> stands
    # (tokens,) uint8, memory-mapped: 1 where a token counts as a target; None: all do
    loss_mask: np.ndarray | None
    documents: int
    bytes: int  # UTF-8 bytes of the text
    lost_bytes: int  # those of them that the tokens cannot give back: see `encoder`
    words: int  # words between white space
    unk_tokens: int
    lower_cased: bool
    skipped: str  # what was wrong with rows that are left out; empty if none are
    checksum: str = ""  # of the tokens, where documents begin, and what is learned
    # what the files that it was read from were taken for
    report: DataReport = field(default_factory=lambda: DataReport(""))

    @property
    def tokens(self) -> int:
        """Length of the stream; one less is predicted."""
        return len(self.ids)

    @property
    def unk_share(self) -> float:
        """Unknown tokens among all tokens but the first."""
        return self.unk_tokens / max(1, self.tokens - 1)

    def __reduce__(self) -> tuple:
        # to another process goes the place, not gigabytes of tokens
        return open_packed, (self.path,)


def open_packed(entry: Path) -> PackedSplit | None:
    """The packed split in a cache entry; None if the entry is missing or damaged."""
    meta = read_meta(entry)
    if meta is None:
        return None
    mask = entry / "loss_mask.bin"
    return PackedSplit(
        path=entry,
        ids=_mapped(entry / "ids.bin", meta["dtype"]),
        document_starts=_mapped(entry / "document_starts.bin", np.int64),
        loss_mask=_mapped(mask, np.uint8) if mask.exists() else None,
        checksum=key_hash({name: file["crc32"] for name, file in meta["files"].items()}),
        report=DataReport.of(meta.get("report") or {"source": ""}),
        **meta["counts"],
    )


def _mapped(path: Path, dtype: DTypeLike) -> np.ndarray:
    # there is nothing to map in an empty file, as of a segment without documents
    return np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.empty(0, dtype)


def check_length(split: PackedSplit, length: int) -> None:
    """Raise NewLLMError where the split is shorter than one block and the token after it."""
    if split.tokens < length + 1:
        raise NewLLMError(
            f"The {split.path.name.split('-')[0]} split has {split.tokens:,} tokens, fewer than one block of "
            f"{length} and the token after it. Lower --max_seq_length to {max(1, split.tokens - 1)} or less, "
            "or give more data."
        )


def check_answers(split: PackedSplit) -> None:
    """Raise NewLLMError where only answers count and the split has none."""
    if split.loss_mask is not None and not split.bytes:
        raise NewLLMError(no_answers(split.path.name.split("-")[0]))


def no_answers(split: str) -> str:
    """What is wrong with a split where only answers count and there are none."""
    return (
        f"The {split} split holds no answers (no text of an assistant that is to be learned): use --loss_on "
        "everything, or data with answers."
    )


def pack(
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    wanted: list[str],
    cache: Path,
    *,
    max_samples: int | None = None,
    answers_only: bool = False,
    held_out: int | None = None,
) -> dict[str, PackedSplit]:
    """The wanted splits of a source, from the cache or packed now.

    Args:
        held_out: of validation and test only the first so many documents.
        answers_only: only what assistants say counts as a target; the counts are then of their text alone.

    Raises:
        NewLLMError: the data cannot be read, a split has no text, or the disk is full. Nothing unfinished is
        ever used.
    """
    entries = {}
    for split in wanted:
        parts = _key(source, tokenizer, split, max_samples, answers_only)
        parts |= {"held_out_documents": held_out} if held_out and split != "train" else {}
        entries[split] = (cache / "packed" / f"{split}-{key_hash(parts)}", parts)
    packed = {split: _known(source, entry) for split, (entry, _) in entries.items()}
    missing = sorted(split for split in wanted if packed[split] is None)
    if missing:
        with contextlib.ExitStack() as locks:
            for split in missing:
                if locks.enter_context(locked(entries[split][0])):
                    sweep(entries[split][0])
            # another process may have done it while this one waited
            packed.update({split: _known(source, entries[split][0]) for split in missing})
            missing = [split for split in missing if packed[split] is None]
            for split in missing:
                shutil.rmtree(entries[split][0], ignore_errors=True)
            if missing:
                limits = {"train": max_samples, **dict.fromkeys(HELD_OUT, held_out)}
                _pack_now(source, tokenizer, {s: entries[s] for s in missing}, limits, answers_only)
            packed.update({split: _known(source, entries[split][0]) for split in missing})
    return {split: found for split, found in packed.items() if found is not None}


def _known(source: Source, entry: Path) -> PackedSplit | None:
    """The packed split in a cache entry. What older versions packed of a user's files has no report, and may
    hold one line of them many times: it is made again."""
    packed = open_packed(entry)
    if packed is None or (source.own and not packed.report.source):
        return None
    # the same bytes may have been packed under other names
    files = {source.name_now(name, part): part for name, part in packed.report.files.items()}
    packed.report = DataReport(source.title, files, source.unused, where_held_out(source))
    return packed


def _key(
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    split: str,
    max_samples: int | None,
    answers_only: bool,
) -> dict:
    made = derived_splits(source)
    from_train = split == "train" or split in made
    return {
        "packing": VERSION,
        "template": TEMPLATE_VERSION,
        "split": split,
        "tokenizer": tokenizer_hash(tokenizer),
        "content": source.fingerprint("train" if from_train else split),
        "made": sorted(made) if from_train else [],
        **(held_out_key(source) if from_train else {}),
        "max_samples": max_samples if split == "train" else None,
        "answers_only": answers_only,
    }


def _pack_now(
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    entries: dict,
    limits: dict[str, int | None],
    answers_only: bool,
) -> None:
    """`limits`: how many documents of a split are packed at most; of the training split those that `splits`
    chooses, of the others the first."""
    console.say(f"Packing {source.title} ({', '.join(entries)})")
    encoder, stats = Encoder(tokenizer, answers_only), RowStats()
    progress, done = console.Progress("packing", _text_size(source, set(entries)), "characters"), 0
    writers: dict[str, Writer] = {}
    try:
        for split, (entry, _) in entries.items():
            writers[split] = Writer(entry, encoder)
        for split, record in read_splits(source, set(entries), limits["train"], stats):
            most = limits[split] if split != "train" else None
            if most and writers[split].documents >= most:
                continue
            done += writers[split].add(record)
            progress.update(done)
        for split, (_, parts) in entries.items():
            if not writers[split].documents:
                raise NewLLMError(_no_text(source, split, stats))
            writers[split].finish(key=parts, skipped=stats.summary(), report=report_of(source, stats).plain())
    finally:
        for writer in writers.values():
            writer.close()
    if stats.summary():
        console.say(f"  {stats.summary()}")
    if encoder.foreign is not None and encoder.foreign.renderer.refused:
        console.say(f"  {encoder.foreign.renderer.summary()}")
    progress.close(f"packed {console.count(sum(writer.tokens for writer in writers.values()))} tokens")


def report_of(source: Source, stats: RowStats) -> DataReport:
    """What a pass over the source found."""
    return DataReport(source.title, stats.files, source.unused, where_held_out(source))


def _text_size(source: Source, splits: set[str]) -> int | None:
    """About how much text has to be read for these splits."""
    if splits & derived_splits(source):
        splits = splits | {"train"}
    sizes = [source.size(split) for split in splits & source.splits]
    return sum(size for size in sizes if size) if all(sizes) else None


def _no_text(source: Source, split: str, stats: RowStats) -> str:
    if stats.held_out and (split == "train" or split not in source.splits):
        own = " and ".join(sorted(source.splits - {"train"}))
        return (
            f"{source.title}: {own} also has {stats.held_out:,} of the train records, none is left for "
            f"{split}: add others."
        )
    if split in source.splits:
        return f"{source.title}: the {split} split holds no text."
    return (
        f"{source.title}: there is too little to train on, and of the train records none fell to {split} "
        f"(5 % by hash): add {split}.* beside it, or more text."
    )


class Writer:
    """Writes one split into a staging folder, holding no more than `BATCH_CHARACTERS` of text."""

    def __init__(self, entry: Path, encoder: Encoder):
        self.encoder, self.staging = encoder, Staging(entry)
        names = ["ids", "document_starts"] + (["loss_mask"] if encoder.answers_only else [])
        with plain_write_errors(self.staging.entry.parent):
            self.files = {name: open(self.staging.path / f"{name}.bin", "wb") for name in names}
        self.batch: list[Record] = []
        self.characters = self.tokens = self.documents = 0
        self.account = np.zeros(4, dtype=np.int64)
        self.finished = False

    def add(self, record: Record) -> int:
        """Take a record; gives the number of its characters."""
        size = sum(map(len, record.texts()))
        self.batch.append(record)
        self.characters += size
        self.documents += not record.continues
        if self.characters >= BATCH_CHARACTERS or len(self.batch) >= BATCH_RECORDS:
            self._flush()
        return size

    def _flush(self) -> None:
        if self.batch:
            encoded = self.encoder.encode(self.batch)
            self._write("ids", encoded.ids)
            self._write("document_starts", encoded.starts + self.tokens)
            if encoded.mask is not None:
                self._write("loss_mask", encoded.mask)
            self.tokens += len(encoded.ids)
            self.account += encoded.account
        self.batch, self.characters = [], 0

    def _write(self, name: str, values: np.ndarray) -> None:
        with plain_write_errors(self.staging.entry.parent):
            self.files[name].write(values.data)

    def finish(self, key: dict, skipped: str, **more) -> None:
        """End the stream and make it the cache entry; `more` goes to its meta."""
        self._flush()
        if self.encoder.foreign is not None:
            self.encoder.foreign.check()
        self._write("ids", np.array([self.encoder.end_of_text], dtype=self.encoder.dtype))
        if "loss_mask" in self.files:
            self._write("loss_mask", np.zeros(1, dtype=np.uint8))
        self.tokens += 1
        with plain_write_errors(self.staging.entry.parent):
            for file in self.files.values():
                file.close()
        counts = dict(zip(("bytes", "lost_bytes", "words", "unk_tokens"), self.account.tolist(), strict=True))
        counts |= {"documents": self.documents, "lower_cased": self.encoder.lower_cased, "skipped": skipped}
        self.staging.commit(key=key, dtype=self.encoder.dtype.name, counts=counts, **more)
        self.finished = True

    def close(self) -> None:
        """Give up what is not finished."""
        for file in self.files.values():
            with contextlib.suppress(OSError):  # closing flushes: a full disk was already reported
                file.close()
        if not self.finished:
            self.staging.abandon()
