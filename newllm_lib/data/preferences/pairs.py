"""A preference pair, whatever it came from, and how it is written as JSONL."""

from __future__ import annotations

import json
from typing import NamedTuple

from newllm_lib.data.records import Message


class Pair(NamedTuple):
    """A conversation up to a question, an answer that is preferred, and one that is not."""

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    kind: str = ""  # what is wrong with the rejected answer, where that is known
    group: str = ""  # pairs of one group are about the same thing: never in both splits, resampled together
    split: str = ""  # "train" or "evaluation", where the source says so

    def question(self) -> str:
        """The last thing that was said before the answer."""
        return self.prompt[-1].content

    def key(self) -> tuple:
        """Equal for pairs that ask the same, which must not be in both splits."""
        return (self.group,) if self.group else tuple(self.prompt)

    def to_json(self) -> str:
        """One line of JSONL; a prompt of a single question is written as text."""
        single = len(self.prompt) == 1 and self.prompt[0].role == "user"
        prompt = self.prompt[0].content if single else [message._asdict() for message in self.prompt]
        row = {"prompt": prompt, "chosen": self.chosen, "rejected": self.rejected}
        row |= {name: value for name in ("kind", "group", "split") if (value := getattr(self, name))}
        return json.dumps(row, ensure_ascii=False)
