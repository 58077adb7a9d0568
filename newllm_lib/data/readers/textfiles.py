"""A plain text file as a stream of documents. Concatenated, they are the file, byte for byte.

The documents are WikiText's articles where the file has ` = Title = ` headings, else blocks between blank
lines where there are blank lines, else lines. Which of them is decided by the first mebibyte. Nothing longer
than `LONGEST` is held in memory: a longer document is cut (a file of several gigabytes without a line break
is read in bounded memory).
"""

from __future__ import annotations

import codecs
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from newllm_lib.errors import NewLLMError

PIECE = 1 << 20  # bytes read at a time
LONGEST = 1 << 20  # characters in one document

_HEADING = re.compile(r" ?= (?![ =])[^\n]*(?<![ =]) = ?\r?\n?")


def read_documents(path: Path) -> Iterator[str]:
    """The documents of a text file, in order.

    Raises:
        NewLLMError: the file is not UTF-8 (names the byte and how to convert it) or cannot be read.
    """
    with open_data(path) as file:
        head = file.read(PIECE)
    return group_lines(read_lines(path), document_kind(head.decode("utf-8", errors="replace")))


def group_lines(lines: Iterable[str], kind: str) -> Iterator[str]:
    """Join lines to documents: "articles", "blocks" or "lines". Blank lines end the one they follow."""
    starts = _STARTS[kind]
    document, size, previous_blank = [], 0, True
    for line, following in _with_following(lines):
        # False: this is the rest of a very long line
        whole_line = not document or document[-1].endswith("\n")
        begins = whole_line and starts(previous_blank, line, following) and _has_text(document)
        if begins or size + len(line) > LONGEST:
            if document:
                yield "".join(document)
            document, size = [], 0
        document.append(line)
        size += len(line)
        previous_blank = not line.strip()
    if document:
        yield "".join(document)


def _has_text(lines: list[str]) -> bool:
    # blank lines at the very beginning are no document: they belong to the first one
    return any(line.strip() for line in lines)


def _article_starts(previous_blank: bool, line: str, following: str | None) -> bool:
    # WikiText also has formulas like " = 1 and C = ": only a heading stands between blank lines
    return previous_blank and bool(_HEADING.fullmatch(line)) and not (following or "").strip()


def _block_starts(previous_blank: bool, line: str, following: str | None) -> bool:
    return previous_blank and bool(line.strip())


def _line_starts(previous_blank: bool, line: str, following: str | None) -> bool:
    return bool(line.strip())


_STARTS: dict[str, Callable[[bool, str, str | None], bool]] = {
    "articles": _article_starts,
    "blocks": _block_starts,
    "lines": _line_starts,
}


def document_kind(head: str) -> str:
    """What the documents of a file are, judged by its beginning: "articles", "blocks" or "lines"."""
    previous_blank = True
    blank_between = False
    for line, following in _with_following(head.strip("\n").split("\n")):
        if _article_starts(previous_blank, line, following):
            return "articles"
        previous_blank = not line.strip()
        blank_between = blank_between or (previous_blank and following is not None)
    return "blocks" if blank_between else "lines"


def _with_following(lines: Iterable[str]) -> Iterator[tuple[str, str | None]]:
    held = None
    for line in lines:
        if held is not None:
            yield held, line
        held = line
    if held is not None:
        yield held, None


def read_lines(path: Path) -> Iterator[str]:
    """The file's lines with their breaks (only LF); one of over a mebibyte comes in pieces."""
    decoder, position = codecs.getincrementaldecoder("utf-8")("strict"), 0
    with open_data(path) as file:
        while True:
            piece = file.readline(PIECE)
            text = decode_piece(decoder, piece, position, path)
            position += len(piece)
            if text:
                yield text
            if not piece:
                return


def decode_piece(decoder: codecs.IncrementalDecoder, piece: bytes, position: int, path: Path) -> str:
    """The next characters of a file; `position`: where `piece` begins; an empty piece ends the file.

    Raises:
        NewLLMError: naming the file, the offset of the first byte that is not UTF-8, and how to convert the
        file.
    """
    held = len(decoder.getstate()[0])
    try:
        return decoder.decode(piece, final=not piece)
    except UnicodeDecodeError as error:
        offset = position - held + error.start
        encoding = "UTF-16" if _starts_as_utf16(path) else "CP1252"
        raise NewLLMError(
            f"{path} is not UTF-8: byte {offset:,} (0x{error.object[error.start]:02x}) cannot be read. If it "
            f"is {encoding} text, convert it: iconv -f {encoding} -t UTF-8 '{path.name}' > "
            f"converted{path.suffix}"
        ) from None


def open_data(path: Path) -> BinaryIO:
    """Open a data file for reading bytes; a failure is one line for the user."""
    try:
        return open(path, "rb")
    except OSError as error:
        raise NewLLMError(f"{path} cannot be read: {error.strerror}.") from error


def content_hash(paths: list[Path]) -> str:
    """A hash of the files' bytes (not of their names or times)."""
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        with open_data(path) as file:
            while piece := file.read(PIECE):
                digest.update(piece)
        digest.update(path.stat().st_size.to_bytes(8, "little"))
    return digest.hexdigest()


def _starts_as_utf16(path: Path) -> bool:
    with open_data(path) as file:
        return file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
