"""What the rows of known data sets look like, and how each becomes a record of messages (or of text).

A row becomes a record by the first of `SCHEMAS` whose columns all hold something, or by the one that its
data set names (`datasets`); a new kind of row is one more entry there. The turns in a column are read by
`turns`. What is decided on the way is noted for the report.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial
from typing import Any, NamedTuple, TypeVar

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
from newllm_lib.data.records import BadRecord, EmptyRecord, FileReport, Record, RowStats, is_empty
from newllm_lib.data.templates import split_at_markers

BESIDE = (*SYSTEM, *HISTORY, *VERDICTS)  # read beside every dialogue
_MOST_KINDS = 1000  # sets of columns that are counted: rows that all differ are no table
# Other names of columns, in small letters, where a row has none of the usual ones.
_OTHER_NAMES = {
    **dict.fromkeys(("content", "document", "body", "article", "story", "passage"), "text"),
    **dict.fromkeys(("sentence", "paragraph", "abstract", "code", "lyrics", "raw_content"), "text"),
    **dict.fromkeys(("raw_text", "full_text", "text_content", "本文", "テキスト", "文本"), "text"),
    **dict.fromkeys(("q", "problem", "request", "message", "inputs", "input_text"), "question"),
    **dict.fromkeys(("user_message", "質問", "問題", "问题", "질문"), "question"),
    **dict.fromkeys(("frage", "pregunta", "domanda", "pergunta", "вопрос"), "question"),
    **dict.fromkeys(("antwort", "respuesta", "réponse", "risposta", "resposta", "ответ"), "answer"),
    **dict.fromkeys(("generation", "답변"), "answer"),
    **dict.fromkeys(("指示", "指令"), "instruction"),
    **dict.fromkeys(("a", "answers", "solution", "reply", "target", "targets", "target_text"), "answer"),
    **dict.fromkeys(("assistant_message", "bot", "gpt", "回答", "応答", "答え", "答案", "回复"), "answer"),
    **dict.fromkeys(("chat", "turns", "dialogs", "会話"), "conversation"),
    **dict.fromkeys(("入力", "输入"), "input"),
    **dict.fromkeys(("出力", "输出"), "output"),
}
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
    kind = BadRecord if filled(row) else EmptyRecord
    raise kind(f"no column {' or '.join(COMMON)} (it has {_columns(row)})")


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
    """The name in `COLUMNS` that a column stands for; its own where there is none. One of `_OTHER_NAMES` is
    another name also when a schema has such a column: else a new set would take it from all others.
    """
    small = str(column).strip().lower()
    return _OTHER_NAMES.get(small) or (small if small in COLUMNS else column)


def parse_rows(
    rows: Iterable[tuple[str, object]],
    stats: RowStats,
    parse: Callable[[Any], Any] = parse_row,
    describe: Callable[[tuple[str, ...]], tuple[str, list[str]]] | None = None,
) -> Iterator[Any]:
    """What `parse` makes of (where, row) pairs; bad rows go to `stats`, rows without text are passed over.

    Args:
        describe: what rows with these columns are taken for, and which of the columns `parse` reads; default:
            as the schema that reads them says.
    """
    file = stats.file
    kinds: Counter[Any] = Counter()
    roles: Counter[tuple[str, ...]] = Counter()
    try:
        for where, row in rows:
            if isinstance(row, ValueError):
                stats.reject(str(row), where)
                continue
            row = _unnested(row, file)
            try:
                record = parse(row)
            except BadRecord as reason:
                stats.leave_out(reason, where)
                continue
            if record is not None:
                stats.accept()
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
    if not isinstance(row, dict) or not (NEEDED.isdisjoint(row) or isinstance(row.get("data"), dict)):
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


def _converted(row: dict, by: str, **how: str) -> Record | None:
    """A row as a record, by a function of `readers.conversions`, which only who reads rows has to know."""
    return _conversion(by)(row, **how)


@lru_cache
def _conversion(name: str) -> Callable[..., Record | None]:
    from newllm_lib.data import readers

    return getattr(readers, name)


def _paired(asked: str, answered: str) -> Schema:
    """Rows with a column that asks and one that answers."""
    takes = (*contexts_of(asked), *REASONING, *BESIDE)
    parse = partial(_converted, by="question_and_answer", asked=asked, answered=answered)
    return Schema((asked, answered), takes, parse)


# each goes to other processes: so `parse` is a function of this file, or a `partial` of one
MESSAGES, CONVERSATIONS, CONVERSATION, CONTENTS, DIALOG, DIALOGUE, UTTERANCES, ULTRACHAT = (
    Schema((column,), BESIDE, partial(_converted, by="list_of_turns", column=column), name)
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
_PAIRED = {(asked, answered): _paired(asked, answered) for asked in ASKED for answered in ANSWERED}
COUNSEL = _paired("context", "response")
DOLLY = _PAIRED["instruction", "response"]
ALPACA = _PAIRED["instruction", "output"]
COMPLETION = _PAIRED["prompt", "completion"]
CHOSEN = Schema(
    ("chosen",),
    (*ASKED, *BESIDE),
    partial(_converted, by="chosen_answer"),
    "the chosen answers of preference pairs",
)
TEXT = Schema(("text",), ("role", *WEIGHTS), partial(_converted, by="plain_text"), "plain text")
_LISTS = (MESSAGES, CONVERSATIONS, CONVERSATION, CONTENTS)
_OTHERS = (CHOSEN, DIALOG, DIALOGUE, UTTERANCES, TEXT, ULTRACHAT)
SCHEMAS = (*_LISTS, DOLLY, ALPACA, COMPLETION, *_OTHERS, *_PAIRED.values(), COUNSEL)
COMMON = ("messages", "instruction", "prompt", "question", "text")  # named where there is none
NEEDED = frozenset(column for schema in SCHEMAS for column in schema.needs)
COLUMNS = NEEDED | frozenset(column for schema in SCHEMAS for column in schema.takes)
