"""JSON and JSON Lines files, one value at a time: gigabytes need the memory of the largest value."""

from __future__ import annotations

import codecs
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from newllm_lib.data.readers.base import LARGEST, SPLIT_NAMES, parse_json
from newllm_lib.data.readers.textfiles import PIECE, decode_piece, open_data
from newllm_lib.data.schemas import COLUMNS, NEEDED
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
            text = text.removeprefix("\ufeff")  # also in the middle, where files were put together
            if text.strip():
                yield where, parse_json(text)
        decode_piece(decoder, b"", position, path)


def is_a_row_a_line(path: Path, encoding: str = "") -> bool:
    """Whether a .jsonl file is what its name says, as far as its beginning tells; else it holds a list,
    values over several lines, or several in one.
    """
    with open_data(path, encoding) as file:
        head = file.read(PIECE).decode("utf-8", "replace").removeprefix("\ufeff").lstrip()
    line = head.partition("\n")[0].strip()
    try:
        value, end = json.JSONDecoder().raw_decode(head)
    except (ValueError, RecursionError):
        return True  # what is wrong with the line, its reader says
    if line[end:].strip() or end > len(line):
        return False
    is_list = isinstance(value, list) and not head[end:].strip()
    return not (is_list and value and isinstance(value[0], dict) and not COLUMNS.isdisjoint(value[0]))


def read_json_values(
    path: Path, encoding: str = "", notes: Counter[str] | None = None
) -> Iterator[tuple[str, object]]:
    """(where, value) of each element of a .json file's array, or of values in turn (JSON Lines). Of a file
    that is one object, the rows in it: `{"data": [...]}`, a list for each column, or a row under each key.

    Args:
        notes: where it is counted which keys beside the rows are not read.

    Raises:
        NewLLMError: the file is not JSON (names about where), not UTF-8, or holds several splits.
    """
    reader, beside = _JsonReader(path, encoding), dict[str, object]()
    values: Iterator[object]
    if reader.take("["):
        values = map(_as_row, _elements(reader))
    elif before := reader.skip(_BEFORE_ROWS):
        beside.update(json.loads(before[1].rstrip(", \t\r\n") + "}"))
        values = _elements(reader, beside)
    else:
        values = _values(reader, beside)
    for number, value in enumerate(values, 1):
        yield f"{path}, record {number}", value
    for key, value in beside.items():
        if key.lower() in SPLIT_NAMES and isinstance(value, list | dict):
            raise NewLLMError(
                f"{path} holds a split of its own under {key!r}: write each split to a file of its name, "
                f"such as train{path.suffix} and {SPLIT_NAMES[key.lower()]}{path.suffix}."
            )
        if notes is not None and value not in (None, "", [], {}):
            notes[f"key {key} beside the rows: not read"] += 1


def _elements(reader: _JsonReader, beside: dict[str, object] | None = None) -> Iterator[object]:
    """What is left of a list whose bracket is open, and of the object around it (its keys: to `beside`)."""
    first = True
    while not reader.take("]"):
        if reader.at_end():
            reader.fail("the list is not closed: the file is cut off")
        if not first:
            reader.expect(",")
            if reader.take("]"):  # a comma behind the last one
                break
        first = False
        yield reader.value()
    if beside is not None:
        while not reader.take("}"):
            reader.expect(",")
            key = str(reader.value())
            reader.expect(":")
            beside[key] = reader.value()
    if not reader.at_end():
        reader.fail("there is more after the end of the list")


def _values(reader: _JsonReader, beside: dict[str, object]) -> Iterator[object]:
    if reader.at_end():
        return
    value = reader.value()
    if isinstance(value, dict) and reader.at_end():
        yield from _rows_in(value, beside)
        return
    yield value
    while not reader.at_end():
        if not reader.take(",") or not reader.at_end():
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
    r'(\{\s*(?:"[^"\\]*"\s*:\s*(?:"[^"\\]*"|[-+.\deE]+|null|true|false)\s*,\s*)*)'
    rf'"(?:{"|".join(_WRAPPERS)})"\s*:\s*\[\s*(?=\{{)'
)


def _rows_in(value: dict, beside: dict[str, object]) -> Iterator[object]:
    """The rows of a file that is one object; itself where it is a row. Other keys go to `beside`."""
    lists = {key: part for key, part in value.items() if isinstance(part, list) and part}
    known = {key: part for key, part in value.items() if key in COLUMNS and key not in _WRAPPERS}
    columns = value.get("columns")
    if isinstance(columns, list) and isinstance(value.get("data"), list):  # pandas' orient="split"
        return (dict(zip(columns, row, strict=False)) for row in value["data"] if isinstance(row, list))
    named = next((key for key in _WRAPPERS if key in lists), None)
    if named is not None and not known:
        beside.update({key: part for key, part in value.items() if key != named})
        return map(_as_row, lists[named])
    if len(lists) == len(value) > 1 and not known and all(_is_dialogue(part) for part in lists.values()):
        return iter(lists.values())  # each under its number
    if known and len(lists) == len(value) and len({len(part) for part in lists.values()}) == 1:
        if not any(isinstance(element, dict) for part in known.values() for element in part):
            return (dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True))
    inner = [part for part in value.values() if isinstance(part, dict)]
    if len(inner) == len(value) > 0:
        if known:  # pandas: {"text": {"0": "…", "1": "…"}}
            return ({key: part.get(number) for key, part in value.items()} for number in inner[0])
        return iter(inner)
    if len(lists) == 1 and (not known or _are_rows(*lists.values())):
        beside.update({key: part for key, part in value.items() if key not in lists})
        return map(_as_row, *lists.values())
    return iter([value])


def _as_row(value: object) -> object:
    """A text alone is a row of text."""
    return {"text": value} if isinstance(value, str) else value


def _are_rows(part: list) -> bool:
    return all(isinstance(row, dict) and not NEEDED.isdisjoint(row) for row in part) and not _is_dialogue(
        part
    )


def _is_dialogue(part: list) -> bool:
    return all(isinstance(turn, dict) and not {"role", "from"}.isdisjoint(turn) for turn in part)


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

    def skip(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        """Step over what `pattern` finds next, if it does."""
        match = None if self.at_end() else pattern.match(self.buffer, self.at)
        self.at = match.end() if match else self.at
        return match

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
        if self.buffer.startswith(("//", "/*", "#"), self.at):
            problem = "there is a comment, which JSON has none of"
        left = len(self.buffer[self.at :].encode("utf-8", "surrogatepass"))
        raise NewLLMError(
            f"{self.path} is broken near byte {self.position - left:,}: {problem}. "
            "A .json file holds a list of records, a .jsonl file one record a line."
        )
