"""From a row of a known kind to a record: one function for each kind of `schemas.SCHEMAS`."""

from __future__ import annotations

from newllm_lib.data.columns import (
    ANSWERED,
    ASKED,
    HISTORY,
    REASONING,
    SYSTEM,
    VERDICTS,
    WEIGHTS,
    contexts_of,
)
from newllm_lib.data.records import ROLE_NAMES, BadRecord, NotToLearn, Record, first_filled, is_empty
from newllm_lib.data.templates import join_context
from newllm_lib.data.turns import (
    FOREIGN,
    Turn,
    alternating,
    as_turns,
    checked_text,
    checked_turn,
    dialogue_of,
    dialogue_turns,
    exchange,
    is_blank,
    is_dialogue,
    joined_parts,
    thought,
    truth,
    turns_of,
    without_ends,
)
from newllm_lib.data.written_turns import written_turns

NUL = "NUL characters in a text: learned as they stand"
END_OF_UTTERANCE = "__eou__"  # DailyDialog's text files: one dialogue a line, this after each turn
_NO_INPUT = ("<noinput>", "noinput", "no input")  # Alpaca's


def ends_utterance(text: str) -> bool:
    """Whether a text is one of DailyDialog's lines."""
    return text.rstrip().endswith(END_OF_UTTERANCE)


# --- kinds of rows


def plain_text(row: dict) -> Record | None:
    text, notes = row["text"], list[str]()
    if text == "":
        return None
    text = checked_text(text, "text")
    check_verdict(row, notes, WEIGHTS)
    if "role" in row and str(row["role"]).strip().lower() in ROLE_NAMES:
        raise BadRecord("a message by itself, with its role: put all messages of a dialogue into one row")
    if "\0" in text:
        notes.append(NUL)
    if ends_utterance(text):
        return dialogue_of(alternating(text.rstrip().removesuffix(END_OF_UTTERANCE).split(END_OF_UTTERANCE)))
    if written := written_turns(text):
        return dialogue_of(*as_turns(written))
    text = without_ends(text, notes)
    marks = dict.fromkeys(FOREIGN.findall(text)) if "<|" in text else ()
    if len(marks) > 1:
        notes.append(f"{' and '.join(list(marks)[:2])} in a text that is no dialogue: learned as letters")
    return Record(text, notes=tuple(notes))


def list_of_turns(row: dict, column: str) -> Record | None:
    """A list of turns: messages, pairs, or texts by the user and the assistant in turn."""
    notes: list[str] = []
    turns = turns_of(row[column], column, notes)
    return _framed(row, turns, notes) if turns else None


def chosen_answer(row: dict) -> Record | None:
    """The better answer of a preference pair: a whole dialogue, or the answer to a prompt."""
    notes: list[str] = []
    asked = first_filled(row, ASKED)
    if asked and not is_dialogue(row["chosen"]):
        return question_and_answer(row, asked, "chosen")
    turns = dialogue_turns(row["chosen"], "chosen", notes)
    return _framed(row, turns, notes) if turns else None


def question_and_answer(row: dict, asked: str, answered: str) -> Record | None:
    """What is asked, perhaps with a context below it, and what is answered: texts, or lists of messages."""
    _check_rivals(row, answered)
    notes: list[str] = []
    prompt, context = with_context(row, asked, notes)
    turns = exchange(prompt, _single(row[answered], answered), asked, answered, notes)
    if reasoning := first_filled(row, REASONING):
        *turns, last = turns
        turns.append(last._replace(content=thought(row[reasoning], last.content, reasoning)))
    record = _framed(row, turns, notes)
    return record and record._replace(context=context)


def _single(answer: object, name: str) -> object:
    """An answer that is a number as text, and one that stands alone in a list (SQuAD's, in an object)."""
    if isinstance(answer, dict) and isinstance(answer.get("text"), list):
        answer = answer["text"]
    if isinstance(answer, list | tuple) and answer and all(isinstance(one, str) for one in answer):
        if len(set(answer)) > 1:
            raise BadRecord(f"{name} holds several answers: keep the one that is meant")
        answer = answer[0]
    is_number = isinstance(answer, int | float) and not isinstance(answer, bool) and not is_empty(answer)
    return str(answer) if is_number else answer


def with_context(row: dict, asked: str, notes: list[str]) -> tuple[object, str]:
    """What is asked, with the contexts below it that the row holds beside it; and these contexts."""
    prompt = row[asked]
    names = [name for name in contexts_of(asked) if not is_empty(row.get(name))]
    if names and not isinstance(prompt, str):
        notes += [f"column {name} beside a list of messages: not read" for name in names]
        return prompt, ""
    texts = [checked_text(row[name], name).strip() for name in names]
    below = "\n\n".join(text for text in texts if text and text.lower() not in _NO_INPUT)
    return (join_context(checked_turn(prompt, asked), below) if below else prompt), below


def framed(row: dict, turns: list[Turn], notes: list[str]) -> list[Turn]:
    """The turns with what other columns put before them: a system text, and earlier turns."""
    if history := first_filled(row, HISTORY):
        earlier = turns_of(row[history], history, notes)
        first = 1 if turns and turns[0].role == "system" else 0
        turns = [*turns[:first], *earlier, *turns[first:]]
    if system := first_filled(row, SYSTEM):
        others = [name for name in SYSTEM if not is_empty(row.get(name)) and row[name] != row[system]]
        if others:
            raise BadRecord(f"{system} and {others[0]} hold different texts: keep the one that is meant")
        own = next((t.content for t in turns if t.role == "system" and not is_blank(t.content)), None)
        text = joined_parts(row[system], system)
        if own is None:
            return [Turn("system", text), *turns]
        if own != text:
            raise BadRecord(f"a column {system} beside another system message: keep the one that is meant")
    return turns


def _framed(row: dict, turns: list[Turn], notes: list[str]) -> Record | None:
    check_verdict(row, notes)
    return dialogue_of(framed(row, turns, notes), notes, "content" if "messages" in row else "a turn")


def _check_rivals(row: dict, answered: str) -> None:
    """Raise BadRecord where two columns hold answers that differ."""
    for other in ANSWERED:
        differs = answered in ANSWERED and other in row and row[other] != row[answered]
        if differs and not is_empty(row[other]):
            raise BadRecord(f"{answered} and {other} hold different answers: keep the one that is meant")


def verdict(column: str, value: object, judges: bool = True) -> bool | None:
    """Whether a row is to be learned, as a column says that may say so; None: it says nothing of it.

    Args:
        judges: whether a label of 0 or 1 is a verdict: beside a text it can be a class.
    """
    is_class = column == "label" and not judges and str(value).strip() in ("0", "1")
    return None if is_class else truth(value)


def check_verdict(row: dict, notes: list[str], columns: tuple[str, ...] = VERDICTS) -> None:
    """Raise NotToLearn where a row says so of itself (KTO's `label: false`, a weight of 0)."""
    for column in columns:
        if column not in row or is_empty(value := row[column]):
            continue
        said = verdict(column, value, judges="completion" in row)
        if said is None:
            notes.append(f"column {column}: not read, it does not say whether the row is to be learned")
        elif not said:
            raise NotToLearn(f"{column} is {str(value).strip().lower()}")
