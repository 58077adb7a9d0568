"""A preference pair, what the rows of preference sets look like, and how each becomes one.

prompt, chosen, rejected   what is asked (also `question`, `instruction` with `input`, a list of messages),
                           and two answers: texts, messages, or lists of them (TRL, Orca, Alpaca, ShareGPT)
chosen, rejected           whole conversations that part at the last answer: lists of messages
                           (UltraFeedback), or one text with "Human:" and "Assistant:" before each turn
                           (hh-rlhf)
prompt, completion, label  single answers (KTO): those to one prompt are put together; KTO learns the
                           others too

The turns are read by `data.turns`, as those of other dialogues are.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from newllm_lib.data.columns import ANSWERED, ASKED, CONTEXTS, HISTORY, SYSTEM, WEIGHTS, contexts_of
from newllm_lib.data.readers.base import parse_json
from newllm_lib.data.readers.conversions import check_verdict, framed, verdict, with_context
from newllm_lib.data.records import BadRecord, Kind, Message, first_filled, is_empty
from newllm_lib.data.turns import dialogue_of, dialogue_turns, exchange, is_dialogue

PAIRS = Kind(
    "preference pairs",
    '"prompt", "chosen" and "rejected" (texts or lists of messages), or whole conversations in "chosen" and '
    '"rejected"',
    "left out",
    0.5,
)
SIDES = ("chosen", "rejected")
PROMPTS = (*ASKED, "messages", "conversations", "conversation")
# what the two answers are called elsewhere
_OTHER_NAMES = {
    "preferred": "chosen",
    "dispreferred": "rejected",
    "preferred_output": "chosen",  # OpenAI's
    "non_preferred_output": "rejected",
    "non_preferred": "rejected",
    "chosen_response": "chosen",
    "rejected_response": "rejected",
    "response_chosen": "chosen",
    "response_rejected": "rejected",
    **dict.fromkeys(("accepted", "better", "win", "chosen_answer", "positive"), "chosen"),
    "response_j": "chosen",  # of pairs from Stack Exchange
    "response_k": "rejected",
    **dict.fromkeys(("worse", "lose", "rejected_answer", "negative"), "rejected"),
}
_READ = frozenset(
    (*SIDES, *_OTHER_NAMES, *PROMPTS, *ANSWERED, *CONTEXTS, *SYSTEM, *HISTORY, *WEIGHTS)
    + ("label", "kto_tag", "kind", "group", "split")
)
SPLITS = {
    "train": "train",
    "evaluation": "evaluation",
    "eval": "evaluation",
    "validation": "evaluation",
    "test": "evaluation",
}


class Pair(NamedTuple):
    """A conversation up to a question, an answer that is preferred, and one that is not. Of single answers
    that KTO learns from, one of the two is empty."""

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    kind: str = ""  # what is wrong with the rejected answer, where that is known
    group: str = ""  # pairs of one group are about the same thing: never in both splits, resampled together
    split: str = ""  # "train" or "evaluation", where the source says so
    # what the rejected answer was given to, where that is another prompt (single answers, KTO)
    rejected_prompt: tuple[Message, ...] = ()
    notes: tuple[str, ...] = ()  # what was decided when it was read, for the report

    def question(self) -> str:
        """The last thing that was said before the answer."""
        return self.prompt[-1].content

    def key(self) -> tuple:
        """Equal for pairs that ask the same, which must not be in both splits."""
        return (self.group,) if self.group else tuple(self.prompt)

    def beside(self) -> dict[str, str]:
        """What stands beside the prompt."""
        return {"chosen": self.chosen, "rejected": self.rejected}

    def identity(self) -> tuple:
        """Equal for repetitions."""
        return (self.prompt, self.chosen, self.rejected)

    def to_json(self) -> str:
        """One line of JSONL; a prompt of a single question is written as text."""
        single = len(self.prompt) == 1 and self.prompt[0].role == "user"
        prompt = self.prompt[0].content if single else [message._asdict() for message in self.prompt]
        row = {"prompt": prompt, "chosen": self.chosen, "rejected": self.rejected}
        row |= {name: value for name in ("kind", "group", "split") if (value := getattr(self, name))}
        return json.dumps(row, ensure_ascii=False)


class Judged(NamedTuple):
    """A row with one answer and a verdict on it (KTO): half of a pair."""

    pair: Pair  # with no rejected answer
    good: bool

    @property
    def notes(self) -> tuple[str, ...]:
        return (*self.pair.notes, "single answers with a label: paired with the others to the same prompt")


def parse_pair(row: object) -> Pair | Judged:
    """Raises BadRecord where a column is missing or malformed, an answer empty, or both are equal."""
    if not isinstance(row, dict):
        raise BadRecord(f"a value of type {type(row).__name__}, not an object")
    row = _with_usual_names(row)
    kind, group = (str(row.get(name) or "") for name in ("kind", "group"))
    more: dict[str, Any] = {
        "kind": kind,
        "group": group,
        "split": SPLITS.get(str(row.get("split") or ""), ""),
    }
    notes: list[str] = []
    check_verdict(row, notes, WEIGHTS)
    label = next((verdict(c, row[c]) for c in ("label", "kto_tag") if c in row), None)
    if label is not None and not any(side in row for side in SIDES):
        prompt, answer = _sides(row, (first_filled(row, ANSWERED) or "",), notes)
        return Judged(Pair(prompt, answer, "", **more, notes=tuple(dict.fromkeys(notes))), label)
    if missing := [name for name in SIDES if name not in row]:
        raise BadRecord(
            f"no column {' and '.join(missing)} (it has {', '.join(map(str, list(row)[:6])) or 'none'})"
        )
    prompt, chosen, rejected = _sides(row, SIDES, notes)
    if chosen == rejected:
        raise BadRecord("two equal answers")
    return Pair(prompt, chosen, rejected, **more, notes=tuple(dict.fromkeys(notes)))


def columns_of_pairs(columns: tuple[str, ...]) -> tuple[str, list[str]]:
    """What rows with these columns are taken for, and which of the columns `parse_pair` reads."""
    names = {column: _usual(column, {}) for column in columns}
    there = set(names.values())
    asked, *beside = (next((c for c in some if c in there), "") for some in (PROMPTS, SYSTEM, HISTORY))
    read = {asked, *beside, *SIDES, *contexts_of(asked), *WEIGHTS, "kind", "group", "split"}
    if "chosen" not in there:
        read |= {*ANSWERED, "label", "kto_tag"}
    return "preference pairs", [column for column, name in names.items() if name in read]


def _with_usual_names(row: dict) -> dict:
    """A row whose two answers are `chosen` and `rejected`, whatever they were called."""
    row = {_usual(name, row): value for name, value in row.items()}
    for side in SIDES:  # a single answer in a list, or turns written as JSON
        value = row.get(side)
        if isinstance(value, list | tuple) and len(value) == 1 and isinstance(value[0], str):
            row[side] = value[0]
        elif isinstance(value, int | float) and not isinstance(value, bool) and not is_empty(value):
            row[side] = str(value)
        elif isinstance(value, str) and value.lstrip().startswith("[{"):
            row[side] = parse_json(value) if isinstance(parse_json(value), list) else value
    if "rejected" in row and "chosen" not in row:
        _add_chosen(row)
    answers = row.get("output")
    if "chosen" not in row and isinstance(answers, list | tuple) and len(answers) == 2:  # Alpaca's pairs
        row |= {"chosen": answers[0], "rejected": answers[1]}
    return row


def _add_chosen(row: dict) -> None:
    """Of a row with a rejected answer alone (ms-swift's), its answer or its last message is preferred."""
    said = row.get("messages")
    if answered := first_filled(row, ANSWERED):
        row["chosen"] = row.pop(answered)
    elif (
        isinstance(said, list) and said and isinstance(said[-1], dict) and said[-1].get("role") == "assistant"
    ):
        row |= {"messages": said[:-1], "chosen": said[-1:]}


def _usual(name: str, row: dict) -> str:
    """The usual name of a column, in any case; its own where there is none, or the row has that, too."""
    usual = _OTHER_NAMES.get(str(name).strip().lower()) or str(name).strip().lower()
    return usual if usual in _READ and usual not in row else name


def _sides(row: dict, sides: tuple[str, ...], notes: list[str]) -> tuple:
    """The conversation up to the answer that each side gives, and these answers. An unnamed side: the answer
    ends the row's messages.
    """
    asked = first_filled(row, PROMPTS)
    conversations = []
    for side in sides:
        _check_answer(row[side] if side else row.get(asked or ""))
        if asked is None or not side:
            if side and any(name in row for name in PROMPTS) and not is_dialogue(row[side]):
                raise BadRecord("an empty prompt")
            column = side or str(asked)
            turns = dialogue_turns(row[column], column, notes)
        else:
            turns = exchange(asked_in(row, asked, notes), row[side], asked, side, notes)
        record = dialogue_of(framed(row, turns, notes))
        conversations.append(record.messages if record else ())
        notes += record.notes if record else ()
    if any(whole[:-1] != conversations[0][:-1] for whole in conversations):
        raise BadRecord("two conversations that part before the last answer")
    if any(not whole or whole[-1].role != "assistant" for whole in conversations):
        raise BadRecord("a conversation that does not end with the assistant")
    if not any(message.role == "user" for message in conversations[0][:-1]):
        raise BadRecord("an empty prompt")
    return conversations[0][:-1], *[whole[-1].content.strip() for whole in conversations]


def asked_in(row: dict, asked: str, notes: list[str]) -> object:
    """What is asked, with the context that stands beside it."""
    prompt = with_context(row, asked, notes)[0]
    if not isinstance(prompt, str | list | tuple | dict):
        raise BadRecord(f"{asked} is of type {type(prompt).__name__}, not text or a list of messages")
    return prompt


def _check_answer(side: object) -> None:
    """Raise BadRecord where the last thing that is said is nothing."""
    last = side[-1] if isinstance(side, list | tuple) and side else side
    if isinstance(last, dict):
        last = next((last[key] for key in ("content", "value", "text") if key in last), last)
    if is_empty(last) or isinstance(last, str) and not last.strip():
        raise BadRecord("an empty answer")
