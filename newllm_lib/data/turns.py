"""The turns of a dialogue, whatever form they come in, and the record that they become.

`turns_of` and `exchange` make turns of any value that holds some: lists of messages, pairs, texts by turns,
or one text with labels or marks. Roles are what the data says, or alternate, beginning with the user. What is
decided on the way is noted for the report.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from itertools import cycle
from typing import NamedTuple

from newllm_lib.data.columns import ANSWERED, ASKED, REASONING
from newllm_lib.data.records import (
    ROLE_NAMES,
    ROLES,
    BadRecord,
    EmptyRecord,
    Message,
    Record,
    first_filled,
    is_empty,
)
from newllm_lib.data.written_turns import labelled_roles, written_turns

LONGEST_TURN = 1_000_000  # bytes in one turn of a dialogue: nobody said so much, a row went wrong
_HH_TURN = re.compile(r"\n\n(Human|Assistant):")  # hh-rlhf: one text with a label before each turn
# A message's keys: who speaks, what is said, whether it is learned; `masked` says the contrary.
_SPEAKERS = ("role", "from", "speaker", "author", "sender", "type")
_SAID = ("content", "value", "text", "parts", "message", "utterance")
_WEIGHTS = ("weight", "loss_weight", "loss", "train", "training", "trainable", "masked")
_CALLS = ("tool_calls", "function_call")
_BESIDE = frozenset((*_WEIGHTS, *_CALLS, *REASONING, "tool_call_id"))
_LISTS_OF_MESSAGES = ("messages", "conversations", "contents")  # others may hold texts by turns
_TEXT_PARTS = ("text", "input_text", "output_text")
_KEYS = {**dict.fromkeys(ASKED, "user"), **dict.fromkeys(ANSWERED, "assistant")}  # {"input": …, "output": …}
_WRAPPED = ("messages", "turns", "conversations")  # keys of an object that holds the turns
_TRUTHS = {
    **dict.fromkeys(("true", "yes", "1", "1.0", "desirable", "good", "chosen"), True),
    **dict.fromkeys(("false", "no", "0", "0.0", "undesirable", "bad", "rejected"), False),
}
# what ends a text for another tokenizer, where it was left in the text
_ENDED = re.compile(
    r"(?:\s*(?:</s>|\[SEP\]|\[EOS\]|<\|?(?:im_end|endoftext|end_of_text|eot_id|eot|end|end_of_turn|eos)\|?>))+\s*\Z"
)
FOREIGN = re.compile(r"<\|\w{1,24}\|>")  # control tokens of other tokenizers
_BEGUN = re.compile(r"\s*(?:<s>|<bos>|\[CLS\]|\[BOS\])\s*(?!.*</s>.*\S)", re.DOTALL)


class Turn(NamedTuple):
    """One turn as it is read, before it is checked and becomes a `Message`."""

    role: str  # one of ROLES
    content: object
    learned: bool = True  # False: an assistant says it, and it is not to be learned


def is_blank(content: object) -> bool:
    """Whether a system message says nothing: then it is none."""
    return is_empty(content) or isinstance(content, str) and not content.strip()


def truth(value: object) -> bool | None:
    """Yes or no, as data write it: true, 1, "False", "undesirable"; None: neither."""
    return _TRUTHS.get(str(value).strip().lower())


def without_ends(text: str, notes: list[str]) -> str:
    """A text without the tokens that began or ended it for another tokenizer: they would be learned as
    letters.
    """
    if text[:1] in "<[ \n" and (match := _BEGUN.match(text)):
        notes.append(f"{match[0].strip()} at the beginning of a text: cut off, as a token that begins it")
        text = text[match.end() :]
    if ">" not in text[-3:] and "]" not in text[-3:]:
        return text
    ended = _ENDED.search(text)
    if ended is None or not ended.start() or (ended[0].strip() == "</s>" and "<s>" in text):
        return text  # the token is all that is said; or HTML's end of what is struck out
    notes.append(f"{ended[0].split()[0][:24]} at the end of a text: cut off, as a token that ends it")
    return text[: ended.start()]


def turns_of(value: object, name: str, notes: list[str]) -> list[Turn]:
    """The turns in a list of messages, of pairs (what is asked, what is answered), or of texts in turn; none
    in an empty one.

    Raises:
        BadRecord: it is no such list.
    """
    if isinstance(value, str):
        return _turns_of_text(value, name, notes)
    if isinstance(value, dict):
        value = _unwrapped(value)
    if not isinstance(value, list | tuple):
        kind = EmptyRecord if is_empty(value) and not isinstance(value, dict) else BadRecord
        raise kind(f"{name} is of type {type(value).__name__}, not a list")
    if name not in _LISTS_OF_MESSAGES and not any(isinstance(item, dict | list | tuple) for item in value):
        return alternating(value)
    turns: list[Turn] = []
    for item in value:
        if isinstance(item, dict):
            if item.get("content").__class__ is list:
                item, results = _without_results(item, notes)
                turns += results
            turns += _message(item, notes) if item else ()
        elif isinstance(item, list | tuple) and len(item) == 2:
            turns += [Turn("user", item[0]), Turn("assistant", item[1])]
        else:
            raise BadRecord("a message without role and content")
    return turns


def _unwrapped(value: dict) -> object:
    """The turns in an object: a single message, a list one level down, or a list for each key."""
    if inner := first_filled(value, _WRAPPED):
        return value[inner]
    if not _is_message(value):
        return value
    columns = [column for column in value.values() if isinstance(column, list)]
    if len(columns) == len(value) and len({len(column) for column in columns}) == 1:
        return [dict(zip(value, row, strict=True)) for row in zip(*columns, strict=True)]
    return [value]


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
        turns, more = as_turns(written)
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
        turns = dialogue_turns(answer, answered, notes)
        if any(turn.role == "user" for turn in turns) or not isinstance(prompt, str):
            return turns
    if isinstance(answer, str) and isinstance(prompt, str):
        return _text_exchange(prompt, answer, notes)
    before = [Turn("user", prompt)] if isinstance(prompt, str) else _list_of_turns(prompt, asked, notes)
    if isinstance(answer, str):
        checked_turn(answer, answered)
        return [*before, Turn("assistant", answer)]
    after = _list_of_turns(answer, answered, notes)
    said = [turn.content for turn in after if turn.role == "user"]
    question = next((turn.content for turn in reversed(before) if turn.role == "user"), None)
    is_whole = said and (isinstance(prompt, str) or question in said)
    return after if is_whole or after[: len(before)] == before else before + after


def _list_of_turns(value: object, name: str, notes: list[str]) -> list[Turn]:
    if isinstance(value, dict):
        value = _unwrapped(value)
    if not isinstance(value, list | tuple) or not all(isinstance(item, dict) for item in value):
        checked_text(value, name)
    return turns_of(value, name, notes)


def _text_exchange(prompt: str, answer: str, notes: list[str]) -> list[Turn]:
    if repeats(prompt, answer):
        answer = answer[len(prompt) :].lstrip()
        notes.append("a prompt repeated in its answer: cut off there")
    written = written_turns(prompt)
    begins = answer.lstrip()
    if not written and (begins.startswith(("<|", "<start_of_turn>")) or labelled_roles([begins])):
        whole = written_turns(f"{prompt.rstrip()}\n\n{begins}")
        if whole and whole[1][-1][0] == "assistant":
            turns, more = as_turns(whole)
            notes += more
            return turns
    if not written:
        return [Turn("user", _without_label(prompt, notes)), Turn("assistant", answer)]
    if ROLE_NAMES.get(written[1][-1][0].lower()) != "assistant":  # the answer's own label may be missing
        turns, more = as_turns(written)
        turns.append(Turn("assistant", answer.strip()))
    else:
        turns, more = as_turns(written_turns(prompt + answer) or written)
    notes += more
    return turns


def _without_label(prompt: str, notes: list[str]) -> str:
    """A prompt without the label "Human:" that stands before it."""
    said = labelled_roles([prompt])
    if not said or said[0][0] != "user" or not said[0][1]:
        return prompt
    notes.append("a label such as Human: before a prompt: left out")
    return said[0][1]


def _unlabelled(turns: list[Turn], notes: list[str]) -> list[Turn]:
    """Turns without the labels that stand in their texts, where each text says who speaks."""
    first = next((turn.content for turn in turns if turn.role != "system"), None)
    if not isinstance(first, str) or labelled_roles((first,)) is None:
        return turns
    if not all(isinstance(turn.content, str) for turn in turns):
        return turns
    said = labelled_roles(str(turn.content) for turn in turns if turn.role != "system")
    if not said or [who for who, _ in said] != [turn.role for turn in turns if turn.role != "system"]:
        return turns
    notes.append("labels in the turns of a dialogue: left out")
    texts = iter(text for _, text in said)
    return [turn if turn.role == "system" else turn._replace(content=next(texts)) for turn in turns]


def repeats(prompt: str, answer: str) -> bool:
    """Whether an answer begins with all of its prompt; a word or two may be chance."""
    return len(prompt) > 11 and len(answer) > len(prompt) and answer.startswith(prompt)


def dialogue_turns(value: object, name: str, notes: list[str]) -> list[Turn]:
    """The turns of a whole dialogue: a list, or one text with labels or marks."""
    if not isinstance(value, str):
        return turns_of(value, name, notes)
    before, *parts = _HH_TURN.split(checked_text(value, name))
    if parts and not before.strip():
        names, texts = parts[::2], parts[1::2]
        return [Turn(ROLE_NAMES[who.lower()], text.strip()) for who, text in zip(names, texts, strict=True)]
    written = written_turns(value)
    if not written:
        raise BadRecord(f"{name} does not begin with Human: or Assistant:")
    turns, more = as_turns(written)
    notes += more
    return turns


def is_dialogue(value: object) -> bool:
    """Whether a preference pair's answer is a whole dialogue."""
    is_text = isinstance(value, str) and (_HH_TURN.match(value) or written_turns(value))
    return bool(is_text) or isinstance(value, list | tuple) and len(value) > 1


def as_turns(written: tuple[str, list[tuple[str, str]]]) -> tuple[list[Turn], list[str]]:
    """What `written_turns` found; the empty turn goes with which a prompt ends."""
    kind, pairs = written
    turns = [Turn(_role(name), text) for name, text in pairs]
    if not turns[-1].content:
        turns.pop()
    return turns, [f"a dialogue written as text ({kind}): read as turns"]


def _message(message: dict, notes: list[str]) -> Iterator[Turn]:
    """The turn (or turns) in a message of any of the common forms."""
    role, content = message.get("role"), message.get("content")
    if len(message) == 2 and content.__class__ is str and role in ROLES:
        yield Turn(role, content)
        return
    speaker = first_filled(message, _SPEAKERS)
    if speaker is None or (speaker == "type" and str(message["type"]).lower() not in ROLE_NAMES):
        yield from _named_by_key(message)
        return
    role = _role(message[speaker])
    said = next((key for key in _SAID if key in message), None)
    calls = [_call(call) for key in _CALLS for call in _as_list(message.get(key))]
    if said is None and not calls:
        raise BadRecord("a message without role and content")
    content = joined_parts(message.get(said), said or "content")
    if calls:
        content = "\n".join(str(part) for part in (content, *calls) if part)
        notes.append("tool calls: read as <tool_call> in the assistant's turn")
    if reasoning := first_filled(message, REASONING):
        content = thought(message[reasoning], content, reasoning)
    if role == "system" and message[speaker] != role:
        notes.append(f"role {_word(message[speaker])}: read as {role}")
    unread = message.keys() - _BESIDE - {speaker, said}
    notes += [f"a message's {_word(key)}: not read" for key in unread if not is_empty(message[key])]
    yield Turn(role, content, _is_learned(message, role, notes))


def _without_results(message: dict, notes: list[str]) -> tuple[dict, list[Turn]]:
    """A message without the results of tools that Anthropic's hold (empty: it holds nothing else), and these
    as turns of their own.
    """
    results = [part for part in message["content"] if _is_result(part)]
    if not results:
        return message, []
    notes.append("a tool's result: read as system")
    rest = [part for part in message["content"] if not _is_result(part)]
    turns = [Turn("system", joined_parts(part.get("content"), "a tool's result")) for part in results]
    return ({**message, "content": rest} if rest else {}), turns


def _is_result(part: object) -> bool:
    return isinstance(part, dict) and part.get("type") == "tool_result"


def _named_by_key(message: dict) -> Iterator[Turn]:
    """Turns of an object whose keys are the speakers: {"human": …, "assistant": …}."""
    said = {key: str(key).lower() for key, value in message.items() if not is_empty(value)}
    roles = {key: _KEYS.get(name) or ROLE_NAMES.get(name) for key, name in said.items()}
    if not roles or None in roles.values():
        raise BadRecord("a message without role and content")
    for role in ("system", "user", "assistant"):  # keys that were sorted would begin with the answer
        yield from (Turn(role, message[key]) for key, its in roles.items() if its == role)


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
    return f"<tool_call>{checked_text(call, 'a tool call')}</tool_call>"


def joined_parts(content: object, name: str) -> object:
    """A content of parts (Anthropic's thoughts and tool calls, too) as one text; anything else as it is."""
    if isinstance(content, dict):
        content = content.get("parts", [content])
    if not isinstance(content, list | tuple):
        return content
    texts: list[str] = []
    for part in content:
        if isinstance(part, dict):
            kind = part.get("type") or "text"
            if kind == "thinking":
                part = {"text": thought(part.get("thinking"), "", name)}
            elif kind == "tool_use":
                part = {"text": ("\n" if texts else "") + _call({**part, "arguments": part.get("input")})}
            elif kind not in _TEXT_PARTS:
                raise BadRecord(f"{name} holds a part of type {_word(kind)}, not text")
            part = next((part[key] for key in ("text", "value", "content") if key in part), None)
        texts.append(checked_text(part, name))
    return "".join(texts)


def thought(reasoning: object, content: object, name: str) -> str:
    """What was thought before an answer, as most reasoning models write it."""
    answer = "" if is_empty(content) else checked_text(content, "content")
    return f"<think>\n{checked_text(reasoning, name).strip()}\n</think>\n\n{answer}"


def _is_learned(message: dict, role: str, notes: list[str]) -> bool:
    """What a message says of its weight in the loss."""
    for key in _WEIGHTS:
        value = message.get(key)
        if value is None:
            continue
        known = truth(value)
        if known is None:
            raise BadRecord(f"a message's {key} that is neither 0 nor 1")
        learned = known != (key == "masked")
        if role != "assistant":
            if learned:
                notes.append(f"{key} of a {role}'s turn: not read, only what the assistant says is an answer")
        elif not learned:
            notes.append(f"a message's {key}: not learned")
            return False
    return True


def alternating(texts: Iterable[object]) -> list[Turn]:
    """Texts of the user and the assistant in turn."""
    return [
        Turn(role, text.strip() if isinstance(text, str) else text)
        for role, text in zip(cycle(("user", "assistant")), texts, strict=False)
    ]


def dialogue_of(turns: Iterable[Turn], notes: Iterable[str] = (), name: str = "a turn") -> Record | None:
    turns = [turn for turn in turns if turn.role != "system" or not is_blank(turn.content)]
    if not turns:
        return None
    notes = list(notes)
    messages, muted = [], []
    for i, (role, content, learned) in enumerate(_unlabelled(turns, notes)):
        content = checked_turn(content, name)
        if role == "assistant":
            bare = without_ends(content, notes)
            content = bare if bare is content else checked_turn(bare, name)
        if "<|" in content:
            notes += [f"{mark} in a turn: learned as letters" for mark in set(FOREIGN.findall(content))]
        messages.append(Message(role, content))
        if not learned:
            muted.append(i)
    return Record(None, tuple(messages), muted=tuple(muted), notes=tuple(dict.fromkeys(notes)))


def checked_turn(text: object, name: str) -> str:
    """A turn's text as it is."""
    text = checked_text(text, name)
    if not text.strip():
        raise EmptyRecord("an empty message")
    if "\0" in text:
        raise BadRecord("a message that holds a NUL character")
    if len(text) * 4 >= LONGEST_TURN and len(text.encode("utf-8")) >= LONGEST_TURN:
        raise BadRecord(f"a message of {LONGEST_TURN:,} bytes or more")
    return text


def checked_text(text: object, name: str) -> str:
    if not isinstance(text, str):
        kind = EmptyRecord if is_empty(text) and not isinstance(text, list | dict) else BadRecord
        raise kind(f"{name} is of type {type(text).__name__}, not a string")
    try:
        if not text.isascii():
            text.encode("utf-8")
    except UnicodeEncodeError:
        raise BadRecord(
            f"{name} holds half of a surrogate pair (text cut in the middle of a character)"
        ) from None
    return text
