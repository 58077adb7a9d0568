"""What the rows of known data sets look like, and how each becomes a record of messages (or of text).

A row becomes a record by the first of `SCHEMAS` whose columns all hold something, or by the one that its
data set names (`datasets`); a new kind of row is one more entry there. The turns in a column are read by
`turns`. What is decided on the way is noted for the report.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial
from typing import Any, NamedTuple, TypeVar

from newllm_lib.data.records import BadRecord, FileReport, NotToLearn, Record, RowStats
from newllm_lib.data.templates import join_context, split_at_markers, written_turns
from newllm_lib.data.turns import (
    REASONING,
    Turn,
    alternating,
    as_turns,
    checked_text,
    checked_turn,
    dialogue_of,
    dialogue_turns,
    exchange,
    first_filled,
    is_blank,
    is_dialogue,
    is_empty,
    thought,
    truth,
    turns_of,
    without_ends,
)

END_OF_UTTERANCE = "__eou__"  # DailyDialog's text files: one dialogue a line, this after each turn
# Columns beside a dialogue's own: a system text, earlier turns, what was thought before the answer.
SYSTEM = ("system", "system_prompt", "system_message", "systemprompt")
HISTORY = ("history",)
CONTEXTS = ("context", "input")  # what stands below a question
ASKED = ("instruction", "prompt", "question", "query", "input", "user", "human")
ANSWERED = ("response", "output", "completion", "answer", "assistant")
# Columns that say whether a whole row is to be learned.
VERDICTS = ("label", "kto_tag", "weight", "loss_weight", "train")
BESIDE = (*SYSTEM, *HISTORY, *VERDICTS)  # read beside every dialogue
_MOST_KINDS = 1000  # sets of columns that are counted: rows that all differ are no table
# Other names of columns, in small letters, where a row has none of the usual ones.
_OTHER_NAMES = {
    **dict.fromkeys(("content", "document", "body", "article", "story", "passage"), "text"),
    **dict.fromkeys(("sentence", "paragraph", "abstract", "code", "lyrics", "raw_content"), "text"),
    **dict.fromkeys(("raw_text", "full_text", "text_content", "本文", "テキスト", "文本"), "text"),
    **dict.fromkeys(("q", "problem", "request", "message", "inputs", "input_text"), "question"),
    **dict.fromkeys(("user_message", "質問", "問題", "问题"), "question"),
    **dict.fromkeys(("指示", "指令"), "instruction"),
    **dict.fromkeys(("a", "answers", "solution", "reply", "target", "targets", "target_text"), "answer"),
    **dict.fromkeys(("assistant_message", "bot", "gpt", "回答", "応答", "答え", "答案", "回复"), "answer"),
    **dict.fromkeys(("chat", "turns", "dialogs", "会話"), "conversation"),
    **dict.fromkeys(("入力", "输入"), "input"),
    **dict.fromkeys(("出力", "输出"), "output"),
}
_NO_INPUT = ("<noinput>", "noinput", "no input")  # Alpaca's
T = TypeVar("T")


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
    schema, names = recognised(filled(row))
    if schema is None:
        schema, names = recognised(tuple(row))  # which says what is empty
    if schema is not None:
        return schema.parse({names.get(c, c): value for c, value in row.items()} if names else row)
    firsts = dict.fromkeys(known.needs[0] for known in SCHEMAS)
    for first in firsts:
        if first in row:
            wanted = dict.fromkeys(s.needs[1] for s in SCHEMAS if s.needs[0] == first)
            raise BadRecord(f"{first} without {' or '.join(wanted)}")
    raise BadRecord(f"no column {' or '.join(COMMON)} (it has {_columns(row)})")


@lru_cache(maxsize=_MOST_KINDS)
def recognised(columns: tuple[str, ...]) -> tuple[Schema | None, dict[str, str]]:
    """What rows with these columns are, and the usual name of each column that has another: in any case; by
    `_OTHER_NAMES` only where there is no schema without. Of two for one name the first counts, and none for
    one that is there already.
    """
    schema, found = schema_of(columns), dict[str, str]()
    for column in columns:
        usual = usual_name(column)
        if schema is not None and usual != str(column).strip().lower():
            continue
        if usual != column and usual not in columns and usual not in found.values():
            found[column] = usual
    return schema or schema_of(tuple([found.get(column, column) for column in columns])), found


def usual_name(column: str) -> str:
    """The name in `COLUMNS` that a column stands for; its own where there is none."""
    small = str(column).strip().lower()
    usual = small if small in COLUMNS else _OTHER_NAMES.get(small, "")
    return column if column in COLUMNS or not usual else usual


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
            row = _unnested(row, file)
            try:
                record = parse(row)
            except BadRecord as reason:
                tally.leave_out(reason, where)
                continue
            if record is not None:
                tally.accept()
                if record.notes:
                    file.notes.update(record.notes)
                texts = split_at_markers(record.text) if isinstance(record, Record) and record.text else ()
                if isinstance(record, Record):
                    roles[tuple([role for role, _ in record.messages])] += 1
                columns = filled(row) if isinstance(row, dict) else ("messages",)
                if columns in kinds or len(kinds) < _MOST_KINDS:
                    kinds[columns] += 1
                if len(texts) == 1 and texts[0] == record.text or not texts:
                    yield record
                    continue
                file.notes["markers such as <|endoftext|> part the text of a row"] += 1
                yield from (record._replace(text=text) for text in texts)
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


def _unnested(row: object, file: FileReport) -> object:
    """A row whose columns lie one level down (`{"row_idx": 0, "row": {…}}`), with those beside it."""
    if not isinstance(row, dict) or not (COLUMNS.isdisjoint(row) or isinstance(row.get("data"), dict)):
        return row
    inner = [k for k, part in row.items() if isinstance(part, dict) and not COLUMNS.isdisjoint(part)]
    if len(inner) != 1:
        return row
    file.notes[f"rows lie one level down, in {inner[0]}"] += 1
    return {**{name: value for name, value in row.items() if name != inner[0]}, **row[inner[0]]}


def filled(row: dict) -> tuple[str, ...]:
    """The columns of a row that hold something: parquet, pandas and tables that were put together write null
    or NaN where there is nothing.
    """
    return tuple([name for name, value in row.items() if not is_empty(value)])


@lru_cache(maxsize=_MOST_KINDS)
def schema_of(columns: tuple[str, ...]) -> Schema | None:
    """The first of `SCHEMAS` that needs no other columns than these."""
    return next((schema for schema in SCHEMAS if all(need in columns for need in schema.needs)), None)


def _described(parse: Callable, columns: tuple[str, ...]) -> tuple[str, list[str]]:
    owner = getattr(parse, "__self__", None)
    schema, names = recognised(columns) if parse is parse_row else (None, {})
    if isinstance(owner, Schema):
        schema = owner
    if schema is None:
        return "", []
    known = schema.needs + schema.takes
    return str(schema), [column for column in columns if names.get(column, column) in known]


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
    text = checked_text(text, "text")
    if ends_utterance(text):
        return dialogue_of(alternating(text.rstrip().removesuffix(END_OF_UTTERANCE).split(END_OF_UTTERANCE)))
    if written := written_turns(text):
        return dialogue_of(*as_turns(written))
    notes: list[str] = []
    text = without_ends(text, notes)
    marks = dict.fromkeys(_FOREIGN.findall(text)) if "<|" in text else ()
    if len(marks) > 1:
        notes.append(f"{' and '.join(list(marks)[:2])} in a text that is no dialogue: learned as letters")
    return Record(text, notes=tuple(notes))


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
COUNSEL = Schema(("context", "response"), BESIDE, partial(_exchange, asked="context", answered="response"))
DOLLY = _PAIRED["instruction", "response"]
ALPACA = _PAIRED["instruction", "output"]
COMPLETION = _PAIRED["prompt", "completion"]
CHOSEN = Schema(("chosen",), (*ASKED, *BESIDE), _chosen, "the chosen answers of preference pairs")
TEXT = Schema(("text",), (), _text, "plain text")
_LISTS = (MESSAGES, CONVERSATIONS, CONVERSATION, CONTENTS)
_OTHERS = (CHOSEN, DIALOG, DIALOGUE, UTTERANCES, TEXT, ULTRACHAT)
SCHEMAS = (*_LISTS, DOLLY, ALPACA, COMPLETION, *_OTHERS, *_PAIRED.values(), COUNSEL)
COMMON = ("messages", "instruction", "prompt", "question", "text")  # named where there is none
_FOREIGN = re.compile(r"<\|\w+\|>")  # control tokens of other tokenizers
COLUMNS = frozenset(column for schema in SCHEMAS for column in schema.needs + schema.takes)


def with_context(row: dict, asked: str) -> tuple[object, str]:
    """What is asked, with the context below it that the row holds beside it; and that context."""
    prompt = row[asked]
    name = first_filled(row, [name for name in CONTEXTS if name != asked])
    if name is None or not isinstance(prompt, str):
        return prompt, ""
    below = checked_text(row[name], name).strip()
    if below.lower() in _NO_INPUT:
        return prompt, ""
    return join_context(checked_turn(prompt, asked), below), below


def framed(row: dict, turns: list[Turn], notes: list[str]) -> list[Turn]:
    """The turns with what other columns put before them: a system text, and earlier turns."""
    if history := first_filled(row, HISTORY):
        earlier = turns_of(row[history], history, notes)
        first = 1 if turns and turns[0].role == "system" else 0
        turns = [*turns[:first], *earlier, *turns[first:]]
    if system := first_filled(row, SYSTEM):
        own = next((t.content for t in turns if t.role == "system" and not is_blank(t.content)), None)
        if own is None:
            return [Turn("system", row[system]), *turns]
        if own != row[system]:
            raise BadRecord(f"a column {system} beside another system message: keep the one that is meant")
    return turns


def _framed(row: dict, turns: list[Turn], notes: list[str]) -> Record | None:
    _check_verdict(row, notes)
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


def _check_verdict(row: dict, notes: list[str]) -> None:
    """Raise NotToLearn where a row says so of itself (KTO's `label: false`, a weight of 0)."""
    for column in VERDICTS:
        if column not in row or is_empty(value := row[column]):
            continue
        said = verdict(column, value, judges="completion" in row)
        if said is None:
            notes.append(f"column {column}: not read, it does not say whether the row is to be learned")
        elif not said:
            raise NotToLearn(f"{column} is {str(value).strip().lower()}")
