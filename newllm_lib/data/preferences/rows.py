"""What rows of preference sets look like, and how each becomes a pair.

    prompt, chosen, rejected         texts, or lists of messages (TRL's two forms; one's own JSONL)
    chosen, rejected                 whole conversations that part at the last answer: lists of messages (UltraFeedback), or
                                     one text with "Human:" and "Assistant:" before each turn (hh-rlhf)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from newllm_lib.data.preferences.pairs import Pair
from newllm_lib.data.records import HOPELESS, SHOWN, BadRecord, Message
from newllm_lib.data.schemas import parse_row
from newllm_lib.errors import NewLLMError

NEEDED = '"prompt", "chosen" and "rejected" (texts or lists of messages), or whole conversations in "chosen" and "rejected"'
_SPLITS = {"train": "train", "evaluation": "evaluation", "eval": "evaluation", "validation": "evaluation", "test": "evaluation"}


class Drops:
    """Counts rows that are no pairs, by reason; ends the reading when hardly any row is one."""

    def __init__(self):
        self.good = 0
        self.reasons: Counter[str] = Counter()
        self.first = ""

    def add(self, reason: str, where: str = "", count: int = 1) -> None:
        if count and not self.reasons:
            self.first = f"{where}: {reason}" if where else reason
        self.reasons[reason] += count
        if not self.good and self.total >= HOPELESS:
            self.check()

    @property
    def total(self) -> int:
        return sum(self.reasons.values())

    def check(self) -> None:
        """Raises:
        NewLLMError: most rows are no pairs (names the first and what a row needs), or there are none at all.
        """
        if self.total > self.good:
            raise NewLLMError(
                f"{self.total:,} of {self.good + self.total:,} rows are no preference pairs; the first: {self.first}. "
                f"Each row needs {NEEDED}."
            )
        if not self.good:
            raise NewLLMError(f"There are no preference pairs in the data: each row needs {NEEDED}.")

    def summary(self) -> str:
        """`3 left out (2 × two equal answers, …)`, or nothing."""
        reasons = ", ".join(f"{count:,} × {reason}" for reason, count in self.reasons.most_common(SHOWN) if count)
        return f"{self.total:,} left out ({reasons})" if self.total else ""


def parse_pairs(rows: Iterator[tuple[str, object]], drops: Drops) -> Iterator[Pair]:
    """The pairs of (where, row); rows that are none go to `drops`."""
    for where, row in rows:
        try:
            pair = parse_pair(row)
        except BadRecord as reason:
            drops.add(str(reason), where)
            continue
        drops.good += 1
        yield pair


def parse_pair(row: object) -> Pair:
    """Raises:
    BadRecord: a column is missing or holds something else, an answer is empty, or both are equal.
    """
    if isinstance(row, ValueError):
        raise BadRecord(str(row))
    if not isinstance(row, dict):
        raise BadRecord(f"a value of type {type(row).__name__}, not an object")
    missing = [name for name in ("chosen", "rejected") if name not in row]
    if missing:
        raise BadRecord(f"no column {' and '.join(missing)} (it has {', '.join(map(str, list(row)[:6])) or 'none'})")
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
        answers = [side if isinstance(side, str) else _messages(side, "an answer") for side in (chosen, rejected)]
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
    record = parse_row({"chosen": side})  # hh-rlhf's "Human:" and "Assistant:"
    return record.messages if record else ()


def _messages(value: object, name: str) -> tuple[Message, ...]:
    if not isinstance(value, list | tuple):
        raise BadRecord(f"{name} is of type {type(value).__name__}, not a list of messages")
    for message in value:
        if isinstance(message, dict) and message.get("role") == "assistant" and not str(message.get("content") or "").strip():
            raise BadRecord("an empty answer")
    record = parse_row({"messages": value})
    return record.messages if record else ()
