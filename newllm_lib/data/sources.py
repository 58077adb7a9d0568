"""Where the data comes from: a registry of named sources, any data set of the hub, or a folder of the user's.

Every source answers the same four questions: which splits it has itself (`splits`), what identifies a split's content
(`fingerprint`), how large it is (`size`), and what its records are (`records`). Splits that it lacks are made in
`splits.py`.
"""

from __future__ import annotations

import importlib.util
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from newllm_lib.data.cache import key_hash
from newllm_lib.data.folder import content_hash, find_files, kind_of, parse_rows, read_file, text_size
from newllm_lib.data.hub import HubDataset, HubName, HubReader
from newllm_lib.data.jsonfiles import read_json_members
from newllm_lib.data.records import BadRecord, Message, Record, Tally
from newllm_lib.data.segments import DataFile, LocalReader, Reader, in_segments
from newllm_lib.data.textfiles import group_lines
from newllm_lib.errors import NewLLMError, UsageError


@dataclass(frozen=True)
class Registered:
    """A source known by name.

    `revision` is the commit it was written for, or the branch that holds it; `fields` are the columns that are read.
    """

    title: str
    home: str  # a PyPI package, or a hub id as `HubName` writes it
    revision: str
    fields: tuple[str, ...]
    licence: str
    layout: str  # how the rows are to be read: "chitchat", "article lines" or "records"


REGISTRY = {
    "demo": Registered(
        "ChitChat", "chitchat-dataset", "0.9.0", ("messages",), "MIT", "chitchat"
    ),
    "wikitext": Registered(
        "WikiText-2", "Salesforce/wikitext:wikitext-2-raw-v1", "b08601e04326c79dfdd32d625aee71d232d685c3", ("text",),
        "CC BY-SA 3.0 and GFDL", "article lines",
    ),
    "dolly": Registered(
        "Dolly-15k", "databricks/databricks-dolly-15k", "bdd27f4d94b9c1f951818a7da7fd7aeea5dbff1a",
        ("instruction", "context", "response"), "CC BY-SA 3.0", "records",
    ),
    "dailydialog": Registered(  # the set itself is a script; the hub keeps a converted copy on this branch
        "DailyDialog", "li2017dailydialog/daily_dialog", "refs/convert/parquet", ("dialog",), "CC BY-NC-SA 4.0", "records",
    ),
    "hh_rlhf": Registered(
        "HH-RLHF", "Anthropic/hh-rlhf", "09be8c5bbc57cb3887f3a9732ad6aa7ec602a1fa", ("chosen",), "MIT", "records",
    ),
    "ultrachat": Registered(
        "UltraChat", "stingning/ultrachat", "f220fe796ce3ed62fbe1681b45ce6cbc9c6cabe0", ("data",), "MIT", "records",
    ),
    "ultrachat_200k": Registered(
        "UltraChat 200k", "HuggingFaceH4/ultrachat_200k", "8049631c405ae6576f93f445c6b8166f76f5505a", ("messages",), "MIT",
        "records",
    ),
    "code_alpaca": Registered(
        "CodeAlpaca-20k", "sahil2801/CodeAlpaca-20k", "main", ("instruction", "input", "output"), "CC BY 4.0", "records",
    ),
    "dolly_ja": Registered(
        "Dolly-15k in Japanese", "kunishou/databricks-dolly-15k-ja", "f2b1a9fa32dc019a7c960367b2896e31c9f83f8e",
        ("instruction", "input", "output"), "CC BY-SA 3.0", "records",
    ),
    "alpaca_ja": Registered(
        "Alpaca in Japanese", "fujiki/japanese_alpaca_data", "e6eaffc1b1e37df94808dc5473bb18873bf80eaa",
        ("instruction", "input", "output"), "CC BY-NC-SA 4.0", "records",
    ),
}  # fmt: skip


class Source(Protocol):
    """What the rest of the data room knows of a source."""

    title: str
    commit: str  # of the hub; empty elsewhere
    in_order: bool  # `max_samples` are the first records, not those with the smallest hashes

    @property
    def splits(self) -> set[str]:
        """Which of train, validation and test the source has itself."""

    def fingerprint(self, split: str) -> str:
        """Changes whenever the content of `split` does."""

    def size(self, split: str) -> int | None:
        """About how many bytes of text the split holds, for progress; None if unknown."""

    def records(self, split: str, tally: Tally) -> Iterator[Record]:
        """The split's records in order; bad rows are counted in `tally`, which ends the pass if there are too many."""

    def files(self, split: str) -> list[DataFile] | None:
        """The split's files, where all of them can be read in segments (see `segments`)."""


def open_source(recipe, cache: Path, commit: str = "") -> Source:
    """The source that a recipe names by `data_dir` or `data`.

    Args:
        commit: of the hub, to use instead of the newest: what a run was started with.
    Raises:
        UsageError: an unknown name, a folder that is not there, or files that are missing or ambiguous.
        NewLLMError: the hub cannot be reached, or a package is not installed.
    """
    if recipe.data_dir:
        return FolderSource(Path(recipe.data_dir).expanduser())
    known = REGISTRY.get(recipe.data)
    if known is None:
        name = HubName.parse(recipe.data)
        if name is None:
            raise UsageError(
                f"Unknown data {recipe.data!r}: use {', '.join(REGISTRY)}, a hub id such as owner/name or "
                "owner/name:config, or --data_dir FOLDER."
            )
        layout = "article lines" if name.repository == "Salesforce/wikitext" else "records"
        return HubSource(name, layout, cache, commit=commit)
    if known.layout == "chitchat":
        return ChitChatSource(known)
    # a commit may be gone where the set was copied to; a branch holds something else than the newest commit
    is_commit = re.fullmatch("[0-9a-f]{40}", known.revision) is not None
    return HubSource(HubName.parse(f"{known.home}@{known.revision}"), known.layout, cache, or_newest=is_commit, commit=commit)


class FolderSource:
    """`--data_dir FOLDER`: see `folder.find_files` for the names of the files."""

    commit, in_order = "", False

    def __init__(self, folder: Path):
        self.folder = folder
        self.title = folder.resolve().name or str(folder)
        self._paths = find_files(folder)
        self._hashes: dict[str, str] = {}

    @property
    def splits(self) -> set[str]:
        return set(self._paths)

    def fingerprint(self, split: str) -> str:
        if split not in self._hashes:
            kinds = [kind_of(path) for path in self._paths[split]]
            self._hashes[split] = key_hash({"files": content_hash(self._paths[split]), "kinds": kinds})
        return self._hashes[split]

    def size(self, split: str) -> int | None:
        return sum(text_size(path) for path in self._paths[split])

    def records(self, split: str, tally: Tally) -> Iterator[Record]:
        for path in self._paths[split]:
            yield from read_file(path, tally)
        tally.finish()

    def files(self, split: str) -> list[DataFile] | None:
        return in_segments([DataFile(str(path), path.stat().st_size) for path in self._paths[split]])

    def reader(self) -> Reader:
        return LocalReader()


class HubSource:
    """A data set of the hub, streamed: nothing is kept but what is packed."""

    in_order = False

    def __init__(self, name: HubName, layout: str, cache: Path, or_newest: bool = False, commit: str = ""):
        slug = str(name).replace("/", "--").replace(":", "--")
        memo = cache / "hub" / f"{slug}-{key_hash({'revision': name.revision})}.json"
        self.dataset = HubDataset(name, memo, or_newest, commit=commit)
        self.commit = self.dataset.commit
        self.layout, self.title = layout, f"{name} (commit {self.commit[:8]})"

    @property
    def splits(self) -> set[str]:
        return set(self.dataset.splits)

    def fingerprint(self, split: str) -> str:
        return f"{self.dataset.name}@{self.dataset.commit}/{self.dataset.splits[split]}/{self.layout}"

    def size(self, split: str) -> int | None:
        return None

    def records(self, split: str, tally: Tally) -> Iterator[Record]:
        rows = self.dataset.rows(split)
        if self.layout == "article lines":
            for article in group_lines(self._lines(rows), "articles"):
                tally.good += 1
                yield Record(article)
        else:
            yield from parse_rows(((f"{self.dataset.name}, {split} row {i}", r) for i, r in enumerate(rows, 1)), tally)
        tally.finish()

    def files(self, split: str) -> list[DataFile] | None:
        return in_segments(self.dataset.files(split)) if self.layout == "records" else None

    def reader(self) -> Reader:
        return HubReader(self.dataset.name.asked)

    def _lines(self, rows: Iterator[dict]) -> Iterator[str]:
        """WikiText's rows are the lines of its files. Its blank lines, which hold a space there, became empty rows."""
        for row in rows:
            if not isinstance(row.get("text"), str):
                raise UsageError(f"Data set {self.dataset.name} has no text in a column text: name another id.")
            text = row["text"] or " "
            yield text if text.endswith("\n") else text + "\n"


class ChitChatSource:
    """The PyPI package chitchat-dataset: 7,168 conversations between people, one record each.

    Read from the package's own JSON file, one conversation at a time (the package itself would load all of it).
    """

    commit, in_order = "", False

    def __init__(self, known: Registered):
        spec = importlib.util.find_spec("chitchat_dataset")
        folders = list(spec.submodule_search_locations or []) if spec else []
        self.path = Path(folders[0]) / "dataset.json" if folders else None
        if self.path is None or not self.path.is_file():
            package = known.home
            raise NewLLMError(f"The PyPI package {package} (the demo data) is not installed: pip install {package}")
        self.title = known.title
        self._hash = ""

    @property
    def splits(self) -> set[str]:
        return {"train"}

    def fingerprint(self, split: str) -> str:
        self._hash = self._hash or content_hash([self.path])
        return f"chitchat/{self._hash}"

    def size(self, split: str) -> int | None:
        return int(0.31 * self.path.stat().st_size)  # the rest is ids, dates and ratings

    def files(self, split: str) -> list[DataFile] | None:
        return None

    def records(self, split: str, tally: Tally) -> Iterator[Record]:
        for key, conversation in read_json_members(self.path):
            try:
                record = _chitchat_record(conversation)
            except BadRecord as reason:
                tally.reject(str(reason), f"{self.path}, conversation {key}")
                continue
            if record is not None:
                tally.good += 1
                yield record
        tally.finish()


def _chitchat_record(conversation: object) -> Record | None:
    """A conversation is a list of turns, a turn a list of messages by one sender.

    Whoever speaks first is the user, the other the assistant; what one says before the other does is joined by spaces.
    """
    try:
        spoken = [(m["sender"], m["text"].strip()) for turn in conversation["messages"] for m in turn]
    except (TypeError, KeyError, AttributeError) as error:
        raise BadRecord("not a list of turns with sender and text") from error
    spoken = [(sender, text) for sender, text in spoken if text]
    messages = []
    for sender, same in itertools.groupby(spoken, key=lambda message: message[0]):
        role = "user" if sender == spoken[0][0] else "assistant"
        messages.append(Message(role, " ".join(text for _, text in same)))
    return Record(None, tuple(messages)) if messages else None
