"""JSON and JSON Lines files, one value at a time: gigabytes need the memory of the largest value."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path

from newllm_lib.data.readers.base import LARGEST, parse_json
from newllm_lib.data.readers.textfiles import PIECE, decode_piece, open_data
from newllm_lib.data.schemas import COLUMNS
from newllm_lib.errors import NewLLMError


def read_json_lines(path: Path, encoding: str = "") -> Iterator[tuple[str, object]]:
    """(where, value) of each line of a .jsonl file; `ValueError` as value of a bad line.

    Raises:
        NewLLMError: a line is not UTF-8, or longer than 64 MiB; the file is not the gzip that its name says.
    """
    decoder, position = codecs.getincrementaldecoder("utf-8")("strict"), 0
    with open_data(path, encoding) as file:
        number = 0
        while line := file.readline(LARGEST):
            number += 1
            where = f"{path}, line {number}"
            if len(line) == LARGEST and not line.endswith(b"\n"):
                raise NewLLMError(
                    f"{where} is longer than {LARGEST >> 20} MiB: a .jsonl file holds one record a line."
                )
            text = decode_piece(decoder, line, position, path)
            position += len(line)
            if number == 1:
                text = text.removeprefix("\ufeff")
            if text.strip():
                yield where, parse_json(text)
        decode_piece(decoder, b"", position, path)


def read_json_values(path: Path, encoding: str = "") -> Iterator[tuple[str, object]]:
    """(where, value) of each element of a .json file's array, or of values in turn (JSON Lines). Of a file
    that is one object, the rows in it: `{"data": [...]}`, a list for each column, or a row under each key.

    Raises:
        NewLLMError: the file is not JSON (names about where) or not UTF-8.
    """
    reader = _JsonReader(path, encoding)
    values: Iterator[object]
    if reader.take("["):
        values = map(_as_row, _elements(reader))
    elif reader.skip(_BEFORE_ROWS):
        values = _elements(reader, in_object=True)
    else:
        values = _values(reader)
    for number, value in enumerate(values, 1):
        yield f"{path}, record {number}", value


def _elements(reader: _JsonReader, in_object: bool = False) -> Iterator[object]:
    """What is left of a list whose bracket is open, and of the object around it."""
    first = True
    while not reader.take("]"):
        if reader.at_end():
            reader.fail("the list is not closed: the file is cut off")
        if not first:
            reader.expect(",")
        first = False
        yield reader.value()
    if in_object:
        while not reader.take("}"):
            reader.expect(",")
            reader.value()
            reader.expect(":")
            reader.value()
    if not reader.at_end():
        reader.fail("there is more after the end of the list")


def _values(reader: _JsonReader) -> Iterator[object]:
    if reader.at_end():
        return
    value = reader.value()
    if isinstance(value, dict) and reader.at_end():
        yield from _rows_in(value)
        return
    yield value
    while not reader.at_end():
        yield reader.value()


_WRAPPERS = (
    "data",
    "rows",
    "train",
    "records",
    "examples",
    "items",
    "dataset",
    "instances",
    "documents",
    "texts",
)
# `{"version": "1.0", "data": [{`: rows that can be read one at a time
_BEFORE_ROWS = re.compile(
    r'\{\s*(?:"[^"\\]*"\s*:\s*(?:"[^"\\]*"|[-+.\deE]+|null|true|false)\s*,\s*)*'
    rf'"(?:{"|".join(_WRAPPERS)})"\s*:\s*\[\s*(?=\{{)'
)


def _rows_in(value: dict) -> Iterator[object]:
    """The rows of a file that is one object; the object itself where it is a row."""
    lists = {key: part for key, part in value.items() if isinstance(part, list) and part}
    known = {key: part for key, part in value.items() if key in COLUMNS and key not in _WRAPPERS}
    named = next((lists[key] for key in _WRAPPERS if key in lists), None)
    if named is not None and not known:
        return map(_as_row, named)
    if known and len(lists) == len(value) and len({len(part) for part in lists.values()}) == 1:
        if not any(isinstance(element, dict) for part in known.values() for element in part):
            return (dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True))
    inner = [part for part in value.values() if isinstance(part, dict)]
    if len(inner) == len(value) > 0:
        if known:  # pandas: {"text": {"0": "…", "1": "…"}}
            return ({key: part.get(number) for key, part in value.items()} for number in inner[0])
        return iter(inner)
    if len(lists) == 1 and not known:
        return map(_as_row, *lists.values())
    return iter([value])


def _as_row(value: object) -> object:
    """A text alone is a row of text."""
    return {"text": value} if isinstance(value, str) else value


def read_json_members(path: Path) -> Iterator[tuple[str, object]]:
    """(key, value) of each member of the one object in a .json file.

    Raises:
        NewLLMError: as above.
    """
    reader = _JsonReader(path)
    reader.expect("{")
    first = True
    while not reader.take("}"):
        if not first:
            reader.expect(",")
        first = False
        key = reader.value()
        reader.expect(":")
        yield str(key), reader.value()


class _JsonReader:
    """Reads a file's JSON values in order, holding one at a time."""

    def __init__(self, path: Path, encoding: str = ""):
        self.path, self.file = path, open_data(path, encoding)
        self.utf8, self.json = codecs.getincrementaldecoder("utf-8")("strict"), json.JSONDecoder()
        self.buffer, self.at, self.position, self.ended = "", 0, 0, False
        self._more()
        self.buffer = self.buffer.removeprefix("\ufeff")

    def _more(self, size: int = PIECE) -> None:
        piece = self.file.read(size)
        self.buffer = self.buffer[self.at :] + decode_piece(self.utf8, piece, self.position, self.path)
        self.at = 0
        self.position += len(piece)
        if not piece:
            self.ended = True
            self.file.close()

    def at_end(self) -> bool:
        """Skip white space; whether nothing follows."""
        while True:
            while self.at < len(self.buffer) and self.buffer[self.at] in " \t\r\n":
                self.at += 1
            if self.at < len(self.buffer):
                return False
            if self.ended:
                return True
            self._more()

    def take(self, character: str) -> bool:
        """Step over `character` if it comes next."""
        if self.at_end() or self.buffer[self.at] != character:
            return False
        self.at += 1
        return True

    def skip(self, pattern: re.Pattern[str]) -> bool:
        """Step over what `pattern` finds next, if it does."""
        match = None if self.at_end() else pattern.match(self.buffer, self.at)
        self.at = match.end() if match else self.at
        return match is not None

    def expect(self, character: str) -> None:
        if not self.take(character):
            self.fail("the file is cut off" if self.at_end() else f"a {character} is missing")

    def value(self) -> object:
        if self.at_end():
            self.fail("the file is cut off")
        while True:
            try:
                value, end = self.json.raw_decode(self.buffer, self.at)
                if end < len(self.buffer) or self.ended:  # a number at the end of the buffer may go on
                    self.at = end
                    return value
            except (ValueError, RecursionError):
                if self.ended or len(self.buffer) - self.at > LARGEST:
                    self.fail("this is not valid JSON, or cut off")
            # double what is held, so that a large value is not parsed anew for every piece
            self._more(max(PIECE, len(self.buffer) - self.at))

    def fail(self, problem: str) -> None:
        left = len(self.buffer[self.at :].encode("utf-8", "surrogatepass"))
        raise NewLLMError(
            f"{self.path} is broken near byte {self.position - left:,}: {problem}. "
            "A .json file holds a list of records, a .jsonl file one record a line."
        )
