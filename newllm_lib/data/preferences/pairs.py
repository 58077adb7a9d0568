"""A preference pair, what the rows of preference sets look like, and how each becomes one.

prompt, chosen, rejected   texts, or lists of messages (TRL's two forms; one's own JSONL)
chosen, rejected           whole conversations that part at the last answer: lists of messages
                           (UltraFeedback), or one text with "Human:" and "Assistant:" before each
                           turn (hh-rlhf)
"""

from __future__ import annotations

import json
from typing import NamedTuple

from newllm_lib.data.records import BadRecord, Kind, Message
from newllm_lib.data.schemas import CHOSEN, MESSAGES

PAIRS = Kind(
    "preference pairs",
    '"prompt", "chosen" and "rejected" (texts or lists of messages), or whole conversations in "chosen" and '
    '"rejected"',
    "left out",
    0.5,
)
_SPLITS = {
    "train": "train",
    "evaluation": "evaluation",
    "eval": "evaluation",
    "validation": "evaluation",
    "test": "evaluation",
}


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


def parse_pair(row: object) -> Pair:
    """Raises BadRecord where a column is missing or malformed, an answer empty, or both are equal."""
    if not isinstance(row, dict):
        raise BadRecord(f"a value of type {type(row).__name__}, not an object")
    missing = [name for name in ("chosen", "rejected") if name not in row]
    if missing:
        raise BadRecord(
            f"no column {' and '.join(missing)} (it has {', '.join(map(str, list(row)[:6])) or 'none'})"
        )
    prompt, chosen, rejected = _sides(row)
    if not any(message.content.strip() for message in prompt):
        raise BadRecord("an empty prompt")
    if not chosen.strip() or not rejected.strip():
        raise BadRecord("an empty answer")
    if chosen == rejected:
        raise BadRecord("two equal answers")
    kind, group = (str(row.get(name) or "") for name in ("kind", "group"))
    return Pair(prompt, chosen, rejected, kind, group, _SPLITS.get(str(row.get("split") or ""), ""))


def _sides(row: dict) -> tuple[tuple[Message, ...], str, str]:
    prompt, chosen, rejected = row.get("prompt"), row["chosen"], row["rejected"]
    if isinstance(prompt, str) and isinstance(chosen, str) and isinstance(rejected, str):
        return (Message("user", prompt),), chosen.strip(), rejected.strip()
    if isinstance(prompt, list | tuple):
        before = _messages(prompt, "prompt")
        answers = [
            side if isinstance(side, str) else _messages(side, "an answer") for side in (chosen, rejected)
        ]
        texts = [a.strip() if isinstance(a, str) else _only_answer(a, before) for a in answers]
        return before, *texts
    if "prompt" in row and not isinstance(prompt, str):
        raise BadRecord(f"prompt is of type {type(prompt).__name__}, not text or a list of messages")
    good, bad = (_conversation(side, name) for side, name in ((chosen, "chosen"), (rejected, "rejected")))
    if good[:-1] != bad[:-1]:
        raise BadRecord("two conversations that part before the last answer")
    if not good or good[-1].role != "assistant" or bad[-1].role != "assistant":
        raise BadRecord("a conversation that does not end with the assistant")
    return good[:-1], good[-1].content, bad[-1].content


def _only_answer(messages: tuple[Message, ...], before: tuple[Message, ...]) -> str:
    """The answer after the prompt, whether the prompt is repeated before it or not."""
    rest = messages[len(before) :] if messages[: len(before)] == before else messages
    if len(rest) != 1 or rest[0].role != "assistant":
        raise BadRecord("an answer that is not one message of the assistant")
    return rest[0].content


def _conversation(side: object, name: str) -> tuple[Message, ...]:
    if isinstance(side, list | tuple):
        return _messages(side, name)
    if not isinstance(side, str):
        raise BadRecord(f"{name} is of type {type(side).__name__}, not text or a list of messages")
    if not side.strip():
        raise BadRecord("an empty answer")
    record = CHOSEN.record({"chosen": side})  # hh-rlhf's "Human:" and "Assistant:"
    return record.messages if record else ()


def _messages(value: object, name: str) -> tuple[Message, ...]:
    if not isinstance(value, list | tuple):
        raise BadRecord(f"{name} is of type {type(value).__name__}, not a list of messages")
    for message in value:
        if (
            isinstance(message, dict)
            and message.get("role") == "assistant"
            and not str(message.get("content") or "").strip()
        ):
            raise BadRecord("an empty answer")
    record = MESSAGES.record({"messages": value})
    return record.messages if record else ()
