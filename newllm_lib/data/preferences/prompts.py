"""Prompts for GRPO: what is asked, and the row's other columns for the reward function."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from newllm_lib.data.preferences.pairs import PROMPTS, SIDES, SPLITS, Pair, asked_in, parse_pair
from newllm_lib.data.readers.conversions import framed
from newllm_lib.data.records import BadRecord, Kind, Message, first_filled
from newllm_lib.data.turns import dialogue_of, exchange

KIND = Kind("prompts", '"prompt" (a text or a list of messages)', "left out", 0.5)
_NO_COLUMNS = (
    "prompts",
    "completions",
    "split",
    "group",
)  # the function gets its own of these names, or none


class Prompt(NamedTuple):
    """A conversation up to a question, and the other columns of its row."""

    prompt: tuple[Message, ...]
    columns: dict[str, Any]
    group: str = ""  # prompts of one group are never in both splits
    split: str = ""  # "train" or "evaluation", where the source says so
    notes: tuple[str, ...] = ()

    def question(self) -> str:
        """The last thing that was said before the answer."""
        return self.prompt[-1].content

    def key(self) -> tuple:
        """Equal for prompts that must not be in both splits."""
        return (self.group,) if self.group else tuple(self.prompt)

    def beside(self) -> dict[str, Any]:
        """What stands beside the prompt."""
        return self.columns

    def identity(self) -> tuple:
        """Equal for repetitions."""
        return (self.prompt,)

    def to_json(self) -> str:
        """One line of JSONL."""
        row = {"prompt": [message._asdict() for message in self.prompt], **self.columns}
        return json.dumps(row, ensure_ascii=False, default=str)


def parse_prompt(row: object) -> Prompt:
    """Raises BadRecord where a row asks nothing. A pair's answers become columns."""
    if not isinstance(row, dict):
        raise BadRecord(f"a value of type {type(row).__name__}, not an object")
    notes: list[str] = []
    more = {"group": str(row.get("group") or ""), "split": SPLITS.get(str(row.get("split") or ""), "")}
    if all(side in row for side in SIDES):
        pair = parse_pair(row)
        assert isinstance(pair, Pair)  # it has both sides
        found = prompt_of_pair(pair)
        return found._replace(columns=found.columns | _others(row, *SIDES, "prompt"), notes=pair.notes)
    asked = first_filled(row, PROMPTS)
    if asked is None:
        raise BadRecord(f"no column prompt (it has {', '.join(map(str, list(row)[:6])) or 'none'})")
    turns = exchange(asked_in(row, asked, notes), "?", asked, "answer", notes)
    record = dialogue_of(framed(row, turns, notes))
    messages = record.messages[:-1] if record else ()
    if messages and messages[-1].role == "assistant":  # a whole dialogue: its last answer is asked for again
        messages = messages[:-1]
    if not messages or messages[-1].role != "user":
        raise BadRecord("a conversation that does not end with the user")
    return Prompt(messages, _others(row, asked), **more, notes=tuple(dict.fromkeys(notes)))


def prompt_of_pair(pair: Pair) -> Prompt:
    """A pair's prompt, with its two answers as columns."""
    return Prompt(pair.prompt, pair.beside(), pair.group, pair.split)


def columns_of_prompts(columns: tuple[str, ...]) -> tuple[str, list[str]]:
    """What rows with these columns are taken for: all of them are read."""
    return "prompts", list(columns)


def _others(row: dict, *read: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in (*read, *_NO_COLUMNS)}
