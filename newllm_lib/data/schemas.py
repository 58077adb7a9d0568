"""What the rows of known data sets look like, and how each becomes a record of messages (or of text).

A row becomes a record by the first of `SCHEMAS` whose columns all hold something, or by the one that its
data set names (`datasets`); a new kind of row is one more entry there. Roles are what the data says, or
alternate, beginning with the user. `turns_of` and `exchange` make turns of any value that holds some, for
preference pairs too. What is decided on the way is noted for the report.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial
from itertools import cycle
from typing import Any, NamedTuple, TypeVar

from newllm_lib.data.records import (
    ROLE_NAMES,
    ROLES,
    BadRecord,
    EmptyRecord,
    Message,
    NotToLearn,
    Record,
    RowStats,
)
from newllm_lib.data.templates import join_context, written_turns

LONGEST_TURN = 1_000_000  # bytes in one turn of a dialogue: nobody said so much, a row went wrong
END_OF_UTTERANCE = "__eou__"  # DailyDialog's text files: one dialogue a line, this after each turn
_HH_TURN = re.compile(r"\n\n(Human|Assistant):")  # hh-rlhf: one text with a label before each turn
# Columns beside a dialogue's own: a system text, earlier turns, what was thought before the answer.
SYSTEM = ("system", "system_prompt", "system_message")
HISTORY = ("history",)
REASONING = ("reasoning_content", "reasoning", "thinking")
CONTEXTS = ("context", "input")  # what stands below a question
ASKED = ("instruction", "prompt", "question", "query", "input", "user", "human")
ANSWERED = ("response", "output", "completion", "answer", "assistant")
# Columns that say whether a whole row is to be learned.
VERDICTS = ("label", "kto_tag", "weight", "loss_weight", "train")
BESIDE = (*SYSTEM, *HISTORY, *VERDICTS)  # read beside every dialogue
# A message's keys: who speaks, what is said, whether it is learned; `masked` says the contrary.
_SPEAKERS = ("role", "from", "speaker")
_SAID = ("content", "value", "text", "parts")
_WEIGHTS = ("weight", "loss_weight", "loss", "train", "training", "masked")
_CALLS = ("tool_calls", "function_call")
_KEYS = frozenset((*_SPEAKERS, *_SAID, *_WEIGHTS, *_CALLS, *REASONING, "tool_call_id"))
_LISTS_OF_MESSAGES = ("messages", "conversations", "contents")  # others may hold texts by turns
_TEXT_PARTS = ("text", "input_text", "output_text")
_MOST_KINDS = 1000  # sets of columns that are counted: rows that all differ are no table
T = TypeVar("T")


class Turn(NamedTuple):
    """One turn as it is read, before it is checked and becomes a `Message`."""

    role: str  # one of ROLES
    content: object
    learned: bool = True  # False: an assistant says it, and it is not to be learned


class Schema(NamedTuple):
    """One kind of row."""

    needs: tuple[str, ...]  # columns without which it is not this kind; the first one tells what was meant
    takes: tuple[str, ...]  # columns that are read if they are there
    parse: Callable[[dict], Record | None]  # None: the row holds no text at all
    name: str = ""  # in the report; empty: its columns

    def fits(self, row: dict) -> bool:
        """Whether a row has the columns that it needs."""
        return all(column in row for column in self.needs)

    def record(self, row: object) -> Record | None:
        """A row of this kind as a record; None where it holds no text at all.

        Raises:
            BadRecord: a column is missing, or holds a value that is not what it should be.
        """
        row = _checked_row(row)
        if not self.fits(row):
            raise BadRecord(
                f"no column {' and '.join(c for c in self.needs if c not in row)} (it has {_columns(row)})"
            )
        return self.parse(row)

    def __str__(self) -> str:
        return self.name or " and ".join(self.needs)


def parse_row(row: object) -> Record | None:
    """A row as a record, by the first of `SCHEMAS` whose columns hold something; None where it holds no text
    at all (blank rows are separators in some sets, not errors).

    Raises:
        BadRecord: no known column, a column that is missing beside the known one, or a value that is not what
        it should be.
    """
    if isinstance(row, list) and row and isinstance(row[0], dict):
        return MESSAGES.parse({"messages": row})
    row = _checked_row(row)
    schema = schema_of(filled(row)) or schema_of(tuple(row))  # the latter says what is empty
    if schema is not None:
        return schema.parse(row)
    firsts = dict.fromkeys(schema.needs[0] for schema in SCHEMAS)
    for first in firsts:
        if first in row:
            wanted = dict.fromkeys(s.needs[1] for s in SCHEMAS if s.needs[0] == first)
            raise BadRecord(f"{first} without {' or '.join(wanted)}")
    raise BadRecord(f"no column {' or '.join(COMMON)} (it has {_columns(row)})")


def parse_rows(
    rows: Iterable[tuple[str, object]],
    tally: RowStats,
    parse: Callable[[Any], Any] = parse_row,
    describe: Callable[[tuple[str, ...]], tuple[str, list[str]]] | None = None,
) -> Iterator[Any]:
    """What `parse` makes of (where, row) pairs; bad rows go to `tally`, rows without text are passed over.

    Args:
        describe: what rows with these columns are taken for, and which of the columns `parse` reads; default:
            as the schema that reads them says.
    """
    file = tally.file
    kinds: Counter[Any] = Counter()
    roles: Counter[tuple[str, ...]] = Counter()
    try:
        for where, row in rows:
            if isinstance(row, ValueError):
                tally.reject(str(row), where)
                continue
            try:
                record = parse(row)
            except BadRecord as reason:
                tally.leave_out(reason, where)
                continue
            if record is not None:
                tally.accept()
                if record.notes:
                    file.notes.update(record.notes)
                if isinstance(record, Record):
                    roles[tuple([role for role, _ in record.messages])] += 1
                columns = filled(row) if isinstance(row, dict) else ("messages",)
                if columns in kinds or len(kinds) < _MOST_KINDS:
                    kinds[columns] += 1
                yield record
    finally:
        for speakers, count in roles.items():
            file.roles.update({role: count * speakers.count(role) for role in speakers})
        for columns, count in kinds.items():
            name, read = describe(columns) if describe else _described(parse, columns)
            if not name:
                break  # a reader of its own knows its set, and leaves out what is none of the text
            file.formats[name] += count
            file.read.update(dict.fromkeys(read, count))
            file.unread.update({column: count for column in columns if column not in read})


def filled(row: dict) -> tuple[str, ...]:
    """The columns of a row that hold something: parquet, pandas and tables that were put together write null
    or NaN where there is nothing.
    """
    return tuple([name for name, value in row.items() if not is_empty(value)])


def is_empty(value: object) -> bool:
    """Whether a value says nothing: null, NaN, an empty text, list or object."""
    return not value and value not in (0, False) or value.__class__ is float and value != value


@lru_cache(maxsize=_MOST_KINDS)
def schema_of(columns: tuple[str, ...]) -> Schema | None:
    """The first of `SCHEMAS` that needs no other columns than these."""
    return next((schema for schema in SCHEMAS if all(need in columns for need in schema.needs)), None)


def _described(parse: Callable, columns: tuple[str, ...]) -> tuple[str, list[str]]:
    owner = getattr(parse, "__self__", None)
    schema = owner if isinstance(owner, Schema) else schema_of(columns) if parse is parse_row else None
    if schema is None:
        return "", []
    known = schema.needs + schema.takes
    return str(schema), [column for column in columns if column in known]


def _checked_row(row: object) -> dict:
    if not isinstance(row, dict):
        raise BadRecord(f"a value of type {type(row).__name__}, not an object")
    return row


def _columns(row: dict) -> str:
    return ", ".join(map(str, list(row)[:6])) or "none"


def ends_utterance(text: str) -> bool:
    """Whether a text is one of DailyDialog's lines."""
    return text.rstrip().endswith(END_OF_UTTERANCE)


# --- kinds of rows


def _text(row: dict) -> Record | None:
    text = row["text"]
    if text == "":
        return None
    text = _checked_text(text, "text")
    if ends_utterance(text):
        return dialogue_of(_alternating(text.rstrip().removesuffix(END_OF_UTTERANCE).split(END_OF_UTTERANCE)))
    written = written_turns(text)
    return dialogue_of(*_as_turns(written)) if written else Record(text)


def _messages(row: dict, column: str) -> Record | None:
    """A list of turns: messages, pairs, or texts by the user and the assistant in turn."""
    notes: list[str] = []
    turns = turns_of(row[column], column, notes)
    return _framed(row, turns, notes) if turns else None


def _chosen(row: dict) -> Record | None:
    """The better answer of a preference pair: a whole dialogue, or the answer to a prompt."""
    notes: list[str] = []
    asked = first_filled(row, ASKED)
    if asked and not is_dialogue(row["chosen"]):
        return _exchange(row, asked, "chosen")
    turns = dialogue_turns(row["chosen"], "chosen", notes)
    return _framed(row, turns, notes) if turns else None


def _exchange(row: dict, asked: str, answered: str) -> Record | None:
    """What is asked, perhaps with a context below it, and what is answered: texts, or lists of messages."""
    _check_rivals(row, answered)
    notes: list[str] = []
    prompt, context = with_context(row, asked)
    turns = exchange(prompt, row[answered], asked, answered, notes)
    if reasoning := first_filled(row, REASONING):
        *turns, last = turns
        turns.append(last._replace(content=_thought(row[reasoning], last.content, reasoning)))
    record = _framed(row, turns, notes)
    return record and record._replace(context=context)


def _exchanges() -> Iterator[Schema]:
    """Every pair of a column that asks and one that answers."""
    for asked in ASKED:
        for answered in ANSWERED:
            takes = (*[c for c in CONTEXTS if c != asked], *REASONING, *BESIDE)
            yield Schema((asked, answered), takes, partial(_exchange, asked=asked, answered=answered))


# each goes to other processes: so `parse` is a function of this file, or a `partial` of one
MESSAGES, CONVERSATIONS, CONVERSATION, CONTENTS, DIALOG, DIALOGUE, UTTERANCES, ULTRACHAT = (
    Schema((column,), BESIDE, partial(_messages, column=column), name)
    for column, name in (
        ("messages", "messages"),
        ("conversations", "ShareGPT's conversations"),
        ("conversation", "conversations"),
        ("contents", "Gemini's contents"),
        ("dialog", "DailyDialog's dialogues"),
        ("dialogue", "dialogues"),
        ("utterances", "utterances"),
        ("data", "UltraChat's dialogues"),
    )
)
_PAIRED = {schema.needs: schema for schema in _exchanges()}
DOLLY = _PAIRED["instruction", "response"]
ALPACA = _PAIRED["instruction", "output"]
COMPLETION = _PAIRED["prompt", "completion"]
CHOSEN = Schema(("chosen",), (*ASKED, *BESIDE), _chosen, "the chosen answers of preference pairs")
TEXT = Schema(("text",), (), _text, "plain text")
_LISTS = (MESSAGES, CONVERSATIONS, CONVERSATION, CONTENTS)
_OTHERS = (CHOSEN, DIALOG, DIALOGUE, UTTERANCES, TEXT, ULTRACHAT)
SCHEMAS = (*_LISTS, DOLLY, ALPACA, COMPLETION, *_OTHERS, *_PAIRED.values())
COMMON = ("messages", "instruction", "prompt", "question", "text")  # named where there is none
COLUMNS = frozenset(column for schema in SCHEMAS for column in schema.needs + schema.takes)


# --- turns


def turns_of(value: object, name: str, notes: list[str]) -> list[Turn]:
    """The turns in a list of messages, of pairs (what is asked, what is answered), or of texts in turn; none
    in an empty one.

    Raises:
        BadRecord: it is no such list.
    """
    if isinstance(value, str):
        return _turns_of_text(value, name, notes)
    if isinstance(value, dict) and _is_message(value):
        value = [value]
    if not isinstance(value, list | tuple):
        kind = EmptyRecord if is_empty(value) and not isinstance(value, dict) else BadRecord
        raise kind(f"{name} is of type {type(value).__name__}, not a list")
    if name not in _LISTS_OF_MESSAGES and not any(isinstance(item, dict | list | tuple) for item in value):
        return _alternating(value)
    turns: list[Turn] = []
    for item in value:
        if isinstance(item, dict):
            turns += _message(item, notes)
        elif isinstance(item, list | tuple) and len(item) == 2:
            turns += [Turn("user", item[0]), Turn("assistant", item[1])]
        else:
            raise BadRecord("a message without role and content")
    return turns


def _is_message(value: dict) -> bool:
    return any(key in value for key in (*_SPEAKERS, *ROLE_NAMES))


def _turns_of_text(text: str, name: str, notes: list[str]) -> list[Turn]:
    """Turns that are written as JSON (tables hold them so) or with marks or labels."""
    if text.lstrip().startswith("["):
        try:
            value = json.loads(text)
        except ValueError:
            value = None
        if isinstance(value, list):
            return turns_of(value, name, notes)
    if written := written_turns(text):
        turns, more = _as_turns(written)
        notes += more
        return turns
    raise BadRecord(f"{name} is of type str, not a list")


def exchange(prompt: object, answer: object, asked: str, answered: str, notes: list[str]) -> list[Turn]:
    """The turns of what is asked and what is answered: texts or lists of messages, the prompt perhaps
    repeated in the answer.
    """
    if (
        isinstance(answer, str)
        and is_dialogue(answer)
        and not (isinstance(prompt, str) and repeats(prompt, answer))
    ):
        return dialogue_turns(answer, answered, notes)
    if isinstance(answer, str) and isinstance(prompt, str):
        return _text_exchange(prompt, answer, notes)
    before = [Turn("user", prompt)] if isinstance(prompt, str) else _list_of_turns(prompt, asked, notes)
    if isinstance(answer, str):
        _checked_turn(answer, answered)
        return [*before, Turn("assistant", answer)]
    after = _list_of_turns(answer, answered, notes)
    said = [turn.content for turn in after if turn.role == "user"]
    question = next((turn.content for turn in reversed(before) if turn.role == "user"), None)
    is_whole = said and (isinstance(prompt, str) or question in said)
    return after if is_whole or after[: len(before)] == before else before + after


def _list_of_turns(value: object, name: str, notes: list[str]) -> list[Turn]:
    if isinstance(value, dict):
        value = value["messages"] if "messages" in value else [value] if _is_message(value) else value
    if not isinstance(value, list | tuple) or not all(isinstance(item, dict) for item in value):
        _checked_text(value, name)
    return turns_of(value, name, notes)


def _text_exchange(prompt: str, answer: str, notes: list[str]) -> list[Turn]:
    if repeats(prompt, answer):
        answer = answer[len(prompt) :].lstrip()
        notes.append("a prompt repeated in its answer: cut off there")
    written = written_turns(prompt)
    if not written:
        return [Turn("user", prompt), Turn("assistant", answer)]
    if ROLE_NAMES.get(written[1][-1][0].lower()) != "assistant":  # the answer's own label may be missing
        turns, more = _as_turns(written)
        turns.append(Turn("assistant", answer.strip()))
    else:
        turns, more = _as_turns(written_turns(prompt + answer) or written)
    notes += more
    return turns


def repeats(prompt: str, answer: str) -> bool:
    """Whether an answer begins with all of its prompt; a word or two may be chance."""
    return len(prompt) > 11 and len(answer) > len(prompt) and answer.startswith(prompt)


def dialogue_turns(value: object, name: str, notes: list[str]) -> list[Turn]:
    """The turns of a whole dialogue: a list, or one text with labels or marks."""
    if not isinstance(value, str):
        return turns_of(value, name, notes)
    before, *parts = _HH_TURN.split(_checked_text(value, name))
    if parts and not before.strip():
        names, texts = parts[::2], parts[1::2]
        return [Turn(ROLE_NAMES[who.lower()], text.strip()) for who, text in zip(names, texts, strict=True)]
    written = written_turns(value)
    if not written:
        raise BadRecord(f"{name} does not begin with Human: or Assistant:")
    turns, more = _as_turns(written)
    notes += more
    return turns


def is_dialogue(value: object) -> bool:
    """Whether a preference pair's answer is a whole dialogue."""
    is_text = isinstance(value, str) and (_HH_TURN.match(value) or written_turns(value))
    return bool(is_text) or isinstance(value, list | tuple) and len(value) > 1


def _as_turns(written: tuple[str, list[tuple[str, str]]]) -> tuple[list[Turn], list[str]]:
    """What `written_turns` found; the empty turn goes with which a prompt ends."""
    kind, pairs = written
    turns = [Turn(_role(name), text) for name, text in pairs]
    if not turns[-1].content:
        turns.pop()
    return turns, [f"a dialogue written as text ({kind}): read as turns"]


def with_context(row: dict, asked: str) -> tuple[object, str]:
    """What is asked, with the context below it that the row holds beside it; and that context."""
    prompt = row[asked]
    name = first_filled(row, CONTEXTS if asked != "input" else CONTEXTS[:1])
    if name is None or not isinstance(prompt, str):
        return prompt, ""
    below = _checked_text(row[name], name).strip()
    return join_context(_checked_turn(prompt, asked), below), below


def framed(row: dict, turns: list[Turn], notes: list[str]) -> list[Turn]:
    """The turns with what other columns put before them: a system text, and earlier turns."""
    if history := first_filled(row, HISTORY):
        earlier = turns_of(row[history], history, notes)
        first = 1 if turns and turns[0].role == "system" else 0
        turns = [*turns[:first], *earlier, *turns[first:]]
    if system := first_filled(row, SYSTEM):
        own = next((t.content for t in turns if t.role == "system" and not _is_blank(t.content)), None)
        if own is None:
            return [Turn("system", row[system]), *turns]
        if own != row[system]:
            raise BadRecord(f"a column {system} beside another system message: keep the one that is meant")
    return turns


def _is_blank(content: object) -> bool:
    """Whether a system message says nothing: then it is none."""
    return is_empty(content) or isinstance(content, str) and not content.strip()


def first_filled(row: dict, columns: Iterable[str]) -> str | None:
    """The first of these columns that holds something."""
    return next((column for column in columns if column in row and not is_empty(row[column])), None)


def _framed(row: dict, turns: list[Turn], notes: list[str]) -> Record | None:
    _check_verdict(row, notes)
    return dialogue_of(framed(row, turns, notes), notes, "content" if "messages" in row else "a turn")


def _check_rivals(row: dict, answered: str) -> None:
    """Raise BadRecord where two columns hold answers that differ."""
    for other in ANSWERED:
        differs = answered in ANSWERED and other in row and row[other] != row[answered]
        if differs and not is_empty(row[other]):
            raise BadRecord(f"{answered} and {other} hold different answers: keep the one that is meant")


def verdict(column: str, value: object) -> bool | None:
    """Whether a row is to be learned, as a column says that may say so; None: it says nothing of it."""
    if column.endswith("weight"):
        return bool(value) if value in (0, 1) else None
    return {"true": True, "false": False}.get(str(value).lower())


def _check_verdict(row: dict, notes: list[str]) -> None:
    """Raise NotToLearn where a row says so of itself (KTO's `label: false`, a weight of 0)."""
    for column in VERDICTS:
        if column not in row or is_empty(value := row[column]):
            continue
        said = verdict(column, value)
        if said is None:
            notes.append(f"column {column}: not read, it does not say whether the row is to be learned")
        elif not said:
            raise NotToLearn(f"{column} is {str(value).lower()}")


# --- messages


def _message(message: dict, notes: list[str]) -> Iterator[Turn]:
    """The turn (or turns) in a message of any of the common forms."""
    role, content = message.get("role"), message.get("content")
    if len(message) == 2 and content.__class__ is str and role in ROLES:
        yield Turn(role, content)
        return
    speaker = first_filled(message, _SPEAKERS)
    if speaker is None:
        yield from _named_by_key(message)
        return
    role = _role(message[speaker])
    said = next((key for key in _SAID if key in message), None)
    calls = [_call(call) for key in _CALLS for call in _as_list(message.get(key))]
    if said is None and not calls:
        raise BadRecord("a message without role and content")
    content = _joined_parts(message.get(said), said or "content")
    if calls:
        content = "\n".join(str(part) for part in (content, *calls) if part)
        notes.append("tool calls: read as <tool_call> in the assistant's turn")
    if reasoning := first_filled(message, REASONING):
        content = _thought(message[reasoning], content, reasoning)
    if role == "system" and message[speaker] != role:
        notes.append(f"role {_word(message[speaker])}: read as {role}")
    notes += [
        f"a message's {_word(key)}: not read" for key in message.keys() - _KEYS if not is_empty(message[key])
    ]
    yield Turn(role, content, _is_learned(message, role, notes))


def _named_by_key(message: dict) -> Iterator[Turn]:
    """Turns of an object whose keys are the speakers: {"human": …, "assistant": …}."""
    roles = {key: ROLE_NAMES.get(str(key).lower()) for key, value in message.items() if not is_empty(value)}
    if not roles or None in roles.values():
        raise BadRecord("a message without role and content")
    yield from (Turn(str(role), message[key]) for key, role in roles.items())


def _role(name: object) -> str:
    if name in ROLES:
        return name
    role = ROLE_NAMES.get(name.strip().lower()) if isinstance(name, str) else None
    if role is None:
        raise BadRecord(f"a role that is none of {', '.join(ROLES)}, tool ({_word(name)})")
    return role


def _word(value: object) -> str:
    """A name as it may stand in a reason: short, and without what a row holds."""
    text = str(value)
    return text if re.fullmatch(r"[\w .-]{1,24}", text) else f"of type {type(value).__name__}"


def _as_list(value: object) -> list:
    return [] if is_empty(value) else value if isinstance(value, list) else [value]


def _call(call: object) -> str:
    """A tool call as text: `<tool_call>{"name": …, "arguments": …}</tool_call>`."""
    if isinstance(call, dict):
        call = call["function"] if isinstance(call.get("function"), dict) else call
        arguments = call.get("arguments")
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except ValueError:
                pass  # it stays the text that it is
        call = json.dumps({"name": call.get("name"), "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>{_checked_text(call, 'a tool call')}</tool_call>"


def _joined_parts(content: object, name: str) -> object:
    """A content of parts as one text; anything else as it is."""
    if isinstance(content, dict):
        content = content.get("parts", [content])
    if not isinstance(content, list | tuple):
        return content
    texts = []
    for part in content:
        if isinstance(part, dict):
            kind = part.get("type") or "text"
            if kind not in _TEXT_PARTS:
                raise BadRecord(f"{name} holds a part of type {_word(kind)}, not text")
            part = part.get("text")
        texts.append(_checked_text(part, name))
    return "".join(texts)


def _thought(reasoning: object, content: object, name: str) -> str:
    """What was thought before an answer, as most reasoning models write it."""
    answer = "" if is_empty(content) else _checked_text(content, "content")
    return f"<think>\n{_checked_text(reasoning, name).strip()}\n</think>\n\n{answer}"


def _is_learned(message: dict, role: str, notes: list[str]) -> bool:
    """What a message says of its weight in the loss."""
    for key in _WEIGHTS:
        value = message.get(key)
        if value is None:
            continue
        if value not in (0, 1):
            raise BadRecord(f"a message's {key} that is neither 0 nor 1")
        learned = bool(value) != (key == "masked")
        if role != "assistant":
            if learned:
                notes.append(f"{key} of a {role}'s turn: not read, only what the assistant says is an answer")
        elif not learned:
            notes.append(f"a message's {key}: not learned")
            return False
    return True


def _alternating(texts: Iterable[object]) -> list[Turn]:
    """Texts of the user and the assistant in turn."""
    return [
        Turn(role, text.strip() if isinstance(text, str) else text)
        for role, text in zip(cycle(("user", "assistant")), texts, strict=False)
    ]


def dialogue_of(turns: Iterable[Turn], notes: Iterable[str] = (), name: str = "a turn") -> Record | None:
    turns = [turn for turn in turns if turn.role != "system" or not _is_blank(turn.content)]
    if not turns:
        return None
    messages = tuple([Message(turn.role, _checked_turn(turn.content, name)) for turn in turns])
    muted = tuple([i for i, turn in enumerate(turns) if not turn.learned])
    return Record(None, messages, muted=muted, notes=tuple(dict.fromkeys(notes)))


def _checked_turn(text: object, name: str) -> str:
    """A turn's text as it is."""
    text = _checked_text(text, name)
    if not text.strip():
        raise EmptyRecord("an empty message")
    if "\0" in text:
        raise BadRecord("a message that holds a NUL character")
    if len(text) * 4 >= LONGEST_TURN and len(text.encode("utf-8")) >= LONGEST_TURN:
        raise BadRecord(f"a message of {LONGEST_TURN:,} bytes or more")
    return text


def _checked_text(text: object, name: str) -> str:
    if not isinstance(text, str):
        kind = EmptyRecord if is_empty(text) and not isinstance(text, list | dict) else BadRecord
        raise kind(f"{name} is of type {type(text).__name__}, not a string")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise BadRecord(
            f"{name} holds half of a surrogate pair (text cut in the middle of a character)"
        ) from None
    return text
