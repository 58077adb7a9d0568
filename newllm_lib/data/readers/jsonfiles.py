"""JSON and JSON Lines files, one value at a time: gigabytes need the memory of the largest value."""

from __future__ import annotations

import codecs
import contextlib
import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from newllm_lib.data.readers.textfiles import PIECE, decode_piece, open_data
from newllm_lib.errors import NewLLMError

LARGEST = 64 << 20  # characters in one value: more is no record, and must not fill the memory


def read_json_lines(path: Path) -> Iterator[tuple[str, object]]:
    """(where, value) of each line of a .jsonl or .jsonl.gz file; `ValueError` as value of a bad line.

    Raises:
        NewLLMError: a line is not UTF-8, or longer than 64 MiB; the file is not the gzip that its name says.
    """
    decoder, position = codecs.getincrementaldecoder("utf-8")("strict"), 0
    with _unpacked(path) as file:
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


@contextlib.contextmanager
def _unpacked(path: Path) -> Iterator[IO[bytes]]:
    with open_data(path) as file:
        if path.suffix.lower() != ".gz":
            yield file
            return
        try:
            with gzip.open(file) as unpacked:
                yield unpacked
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise NewLLMError(f"{path} cannot be unpacked ({error}): is it whole?") from error


def parse_json(text: str) -> object:
    """The value of a line, or a `ValueError` that says it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return ValueError("not valid JSON")


def read_json_values(path: Path) -> Iterator[tuple[str, object]]:
    """(where, value) of each element of a .json file's array, or of values in turn (JSON Lines).

    Raises:
        NewLLMError: the file is not JSON (names about where) or not UTF-8.
    """
    reader = _JsonReader(path)
    in_array = reader.take("[")
    number = 0
    while not reader.at_end():
        if in_array and reader.take("]"):
            break
        if in_array and number:
            reader.expect(",")
        number += 1
        yield f"{path}, record {number}", reader.value()
    else:
        if in_array:
            reader.fail("the list is not closed: the file is cut off")
    if not reader.at_end():
        reader.fail("there is more after the end of the list")


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

    def __init__(self, path: Path):
        self.path, self.file = path, open_data(path)
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
