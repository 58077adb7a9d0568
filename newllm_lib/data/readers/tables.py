"""CSV and TSV: a row at a time, whatever the size; values are text as it stands there."""

from __future__ import annotations

import ast
import csv
import io
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from newllm_lib.data.readers.base import LARGEST, kind_of
from newllm_lib.data.readers.textfiles import open_data, read_lines
from newllm_lib.data.schemas import COLUMNS, usual_name
from newllm_lib.errors import NewLLMError, UsageError

_DELIMITERS = ",;\t|"
_NOTHING = ("nan", "null", "<na>", "#n/a")  # as pandas reads them, too
_ELEMENTS = re.compile(r"\}\s*\n\s*\{")  # as numpy writes arrays of objects: without commas
_JUDGED = 200  # lines that tell how values are quoted
# columns of turns, which a table writes as text
_LISTS = frozenset(("messages", "conversations", "conversation", "history", "dialog", "dialogue", "turns"))
_LISTS |= {"utterances", "data", "prompt", "completion", "chosen", "rejected"}


def read_csv(path: Path, encoding: str = "") -> Iterator[tuple[str, object]]:
    """(where, row) of each line below the header; a line with other columns than it comes as a `ValueError`.

    Columns are parted by what parts the header into most that are known, else by commas (.tsv: tabs). Where
    a value of a column of turns is a list written as JSON or as Python, it is that list.

    Raises:
        NewLLMError: the file is not in its encoding, or a quotation mark in it stands where none can be.
    """
    csv.field_size_limit(LARGEST)
    number = 1
    try:
        with io.TextIOWrapper(open_data(path, encoding), encoding="utf-8-sig", newline="") as file:
            reader = _reader(path, file)
            names = _distinct(path, [name.strip() for name in next(reader, [])])
            for values in reader:
                where, number = f"{path}, line {number + 1}", reader.line_num
                if values == names:
                    yield where, ValueError("the header once more, as in tables put together")
                elif len(values) >= len(names) and not any(values[len(names) :]):
                    yield where, {name: _value(name, text) for name, text in zip(names, values, strict=False)}
                elif any(values):
                    problem = f"{len(values)} values below a header of {len(names)} columns"
                    yield where, ValueError(problem)
    except UnicodeDecodeError:
        for _ in read_lines(path, encoding):  # which raises the line for the user
            pass
    except csv.Error as error:
        raise NewLLMError(
            f"{path} cannot be read as a table after line {number:,} ({error}): a value with a quotation "
            'mark in it stands in quotation marks itself, and the mark is doubled ("").'
        ) from error


def _reader(path: Path, file: io.TextIOWrapper) -> Any:
    """The table's lines from the header on, by a `csv.reader`."""
    first = next((line for line in file if line.strip()), "")
    delimiter = _delimiter(path, first)
    if first.lower().startswith("sep="):  # Excel's
        first = file.readline()
    head = [first, *itertools.islice(file, _JUDGED)]
    how: dict[str, Any] = {"delimiter": delimiter, "strict": True}
    if first.count(delimiter) == first.count(delimiter + " ") > 0:  # `question, answer`
        how["skipinitialspace"] = True
    if kind_of(path) == ".tsv" and not _is_quoted(head, how):
        how["quoting"] = csv.QUOTE_NONE
    return csv.reader(itertools.chain(head, file), **how)


def _distinct(path: Path, names: list[str]) -> list[str]:
    """The names of columns, each once.

    Raises:
        UsageError: two columns that are read have one name.
    """
    for name in names:
        if names.count(name) > 1 and usual_name(name) in COLUMNS:
            raise UsageError(
                f"{path} has {names.count(name)} columns {name!r}: give all but one another name."
            )
    return [
        f"{name} ({i})" if name in names[:i] else name or f"column {i + 1}" for i, name in enumerate(names)
    ]


def _delimiter(path: Path, first: str) -> str:
    if first.lower().startswith("sep="):
        return first.strip("\r\n")[4:5] or ","
    usual = "\t" if kind_of(path) == ".tsv" else ","

    def known(delimiter: str) -> int:
        return len(COLUMNS.intersection(usual_name(part.strip(' "\r\n')) for part in first.split(delimiter)))

    # where none is known: what is there at all
    return max((usual, *_DELIMITERS), key=lambda d: (known(d), d == usual and d in first, first.count(d)))


def _is_quoted(lines: list[str], how: dict) -> bool:
    """Whether quotation marks around values are none of the text."""
    try:
        for _ in csv.reader(lines, **how):
            pass
    except csv.Error as error:
        return "unexpected end of data" in str(error) and len(lines) > _JUDGED
    return True


def _value(name: str, text: str) -> object:
    """Text, nothing where pandas wrote that, or in a column of turns the list that it spells."""
    if text.lower() in _NOTHING:
        return None
    if name.lower() not in _LISTS or not text.lstrip().startswith("[") or not text.rstrip().endswith("]"):
        return text
    for parse in (json.loads, ast.literal_eval):
        try:
            found = parse(_ELEMENTS.sub("},{", text))
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return found if isinstance(found, list) else text
    return text
