"""A plain text file as a stream of documents, and how its documents are parted.

By itself (`documents: auto`) they are what stands between markers such as `<|endoftext|>` or form feeds,
where there are some; else WikiText's articles where the file has ` = Title = ` headings, else blocks between
blank lines where there are enough of them, else lines. The first mebibyte decides. Markers are no text; but
for them the documents, put together, are the file byte for byte. Nothing longer than `LONGEST` is held in
memory: of a longer document the pieces continue each other, or (articles, blocks, lines) become documents.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import hashlib
import io
import itertools
import json
import lzma
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from newllm_lib.data.readers import encodings
from newllm_lib.data.readers.base import PLAIN, Reading, packing_of
from newllm_lib.data.records import Record
from newllm_lib.data.schemas import COLUMNS, usual_name
from newllm_lib.data.templates import MARKER
from newllm_lib.data.written_turns import written_turns
from newllm_lib.errors import NewLLMError, UsageError

PIECE = 1 << 20  # bytes read at a time
LONGEST = 1 << 20  # characters in one document

_HEADING = re.compile(r" ?= (?![ =])[^\n]*(?<![ =]) = ?\r?\n?")
# Markers that could be text elsewhere, alone on a line or around its sentence.
_ALONE = re.compile(
    r"^[ \t]*(?:</?s>|<(?:[be]os|sep|eod|eot|endoftext|/?doc(?:ument)?|doc [^>\n]*)>"
    r"|\[(?:[be]os|sep|cls|eod|doc)\]|<[|｜][\w ▁]+[|｜]>)[ \t]*\r?\n?$"
    r"|[ \t]*(?:</s>|<eos>|\[SEP\]|\[EOS\])[ \t]*\r?\n?$|^(?:<s>|<bos>|\[CLS\]|\[BOS\])[ \t]*",
    re.IGNORECASE,
)
# The same inside a line; `</s>` only where no `<s>` makes it HTML.
_INLINE = re.compile(
    r"(?:</s>|<eos>|\[EOS\]|<\|(?:im_end|eo[dt])\|>|<｜end▁of▁sentence｜>)[ \t]*(?:\r?\n)?", re.IGNORECASE
)
_SENTENCES = re.compile(r"[ \t]*</s>[ \t]*(?:<s>|\r?\n|$)[ \t]*|^<s>[ \t]*")  # <s>…</s><s>…</s>
_MOST_OFTEN = 0.1  # of the lines are one without letters, or a tag: it may part documents
_NO_WORDS = re.compile(r"\W+|<[^<>\n]{1,30}>|\[\w{1,20}\]")
_FORM_FEED = re.compile(r"[ \t]*\f(?:[ \t]*\r?\n)?")
_LONGEST_MARKER = 40  # characters
_ENDS_SENTENCE = re.compile(r"[.!?:;。！？…」』）)\]\"'”’»*]\s*$")
_FEW_BLOCKS = 20


class Parting(NamedTuple):
    """How the documents of a file are parted."""

    kind: str  # "articles", "blocks", "lines", "file" or "separator"
    words: str  # for the user
    separator: re.Pattern[str] | None = None
    as_ever: bool = True  # a version that knew no markers parted the file like that, too
    dialogues: bool = False  # each document is a dialogue, written as text


_WORDS = {
    "articles": "a document an article",
    "blocks": "a document a block between blank lines (--documents file: the whole file is one)",
    "lines": "a document a line (--documents file: the whole file is one)",
    "file": "the whole file is one document",
}
_ASKED = {"lines": "lines", "paragraphs": "blocks", "file": "file"}


def parting_of(path: Path, reading: Reading = PLAIN) -> Parting:
    """How the documents of a file are parted, by what is asked for and by its beginning.

    Raises:
        UsageError: separators are asked for, and there are none.
        NewLLMError: the file cannot be read.
    """
    with open_data(path, reading.encoding) as file:
        data = file.read(PIECE)
    head = data.decode("utf-8", errors="replace").removeprefix("\ufeff")
    if reading.documents == "auto":
        _check_is_text(path, head)
    parting = _parting(path, head, data, reading)
    if reading.documents == "file" or written_turns(head) is None:
        return parting
    first = next(_documents(head.splitlines(keepends=True), parting)).text or ""
    if written := written_turns(first):
        words = f"{parting.words}, each a dialogue written as text ({written[0]})"
        return parting._replace(words=words, as_ever=False, dialogues=True)
    if reading.documents == "auto":
        raise UsageError(
            f"{path} holds dialogues written as text, and nothing says where one ends: put a line "
            "<|endoftext|> between two of them to have their turns read, or learn it as it stands with "
            "--documents lines, paragraphs or file."
        )
    return parting


def _check_is_text(path: Path, head: str) -> None:
    """Raise UsageError where a text file holds rows: they would be learned with their brackets and names."""
    lines = [line.strip() for line in head[: 1 << 16].splitlines()[:2] if line.strip()]
    first = lines[0] if lines else ""
    kind, known = "", COLUMNS.intersection(map(usual_name, re.findall(r'[^",;\t]+', first)))
    if all(_is_json(line) for line in lines) and first.startswith("{"):
        kind = ".jsonl"
    elif re.match(r"\[\s*\{", head) or re.match(r'\{\s*"[^"\n]*"\s*:', head):
        kind = ".json"
    elif (
        len(known) > 1
        and len(re.findall(r"[^,;\t]+", first)) <= len(known) + 4
        and re.search("[,;\t]", first)
    ):
        kind = ".tsv" if "\t" in first else ".csv"
    if kind and first:
        name = path.name.removesuffix(path.suffix).removesuffix(kind) + kind
        raise UsageError(
            f"{path} holds rows, not text ({first[:40]} …): call it {name} to have "
            "them read, or learn it as it stands with --documents lines."
        )


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _parting(path: Path, head: str, data: bytes, reading: Reading) -> Parting:
    """As `parting_of`, without a look at what the documents are."""
    as_ever = document_kind(head) if not data.startswith(codecs.BOM_UTF8) else ""
    marker = _first_marker(path, head, reading, whole=len(data) < PIECE)
    if marker and reading.documents in ("auto", "separator", "file"):
        return Parting("separator", f"a document between two {marker}", MARKER, False)
    if reading.documents in _ASKED:
        kind = _ASKED[reading.documents]
        return Parting(kind, _WORDS[kind], as_ever=kind == as_ever)
    found = _separators(head)
    if found is None and reading.documents == "separator":
        found = _repeated_line(path, head)
    kind = document_kind(head)
    if kind == "blocks" and _is_a_list(head):
        kind = "lines"
    return found or Parting(kind, _WORDS[kind] + _perhaps_parted(head), as_ever=kind == as_ever)


def _perhaps_parted(head: str) -> str:
    """What is said of a line that may part documents, and is read as text."""
    if "\r" in head and "\n" not in head:
        return "; its lines end in CR alone and are read as one (tr '\\r' '\\n' makes lines of them)"
    marks = Counter(re.findall(r"<\|\w+\|>", head)).most_common(1)
    if marks and marks[0][1] > 2:
        return f"; {marks[0][1]:,} times {marks[0][0]}, learned as letters"
    lines = [line.strip() for line in head.splitlines() if line.strip()]
    often = Counter(line for line in lines if len(line) < 40 and _NO_WORDS.fullmatch(line)).most_common(1)
    if not often or often[0][1] < max(3, _MOST_OFTEN * len(lines)):
        return ""
    line, count = often[0]
    return f"; {count:,} lines are {line}, read as text (--documents separator: they part documents)"


def _separators(head: str) -> Parting | None:
    """Separators that could be text elsewhere: alone on a line, or form feeds."""
    if len(re.findall(r"</s>[ \t]*<s>", head)) > 1:
        return Parting("separator", "a document between two </s>", _SENTENCES, False)
    lines = re.findall(r"[^\n]*\n|[^\n]+", head)
    alone = Counter(match[0].strip() for line in lines for match in _ALONE.finditer(line))
    if alone.total() > 1:
        return Parting("separator", f"a document between two {alone.most_common(1)[0][0]}", _ALONE, False)
    inside = _INLINE.findall(head)
    if len(inside) > 2 and "<s>" not in head:
        return Parting("separator", f"a document between two {inside[0].strip()}", _INLINE, False)
    if all(part.strip() for part in head.partition("\f")[::2]):
        return Parting("separator", "a document between two form feeds", _FORM_FEED, False)
    return None


def _first_marker(path: Path, head: str, reading: Reading, whole: bool) -> str:
    """The first marker in the file, as it is spelled; empty: there is none."""
    pieces = [head] if whole else read_lines(path, reading.encoding)
    return next((match[0].strip() for piece in pieces if (match := MARKER.search(piece))), "")


def _repeated_line(path: Path, head: str) -> Parting:
    """The line without letters that is repeated most, as `###` or `* * *`."""
    lines = Counter(line.strip() for line in head.splitlines())
    found = [line for line, n in lines.most_common() if n > 1 and _NO_WORDS.fullmatch(line)]
    if not found:
        raise UsageError(
            f"--documents separator: {path} has no separator in its first mebibyte (<|endoftext|>, a form "
            "feed, a line such as ### that is repeated): use lines, paragraphs or file."
        )
    pattern = re.compile(rf"^[ \t]*{re.escape(found[0])}[ \t]*\r?\n?$")
    return Parting("separator", f"a document between two lines {found[0]}", pattern, False)


def _is_a_list(head: str) -> bool:
    """Whether a text of few blocks is a list of sentences, with a title above them, say: a document each."""
    lines = [line for line in head.splitlines() if line.strip()]
    blocks = len(re.findall(r"\n[ \t\r]*\n+(?=[^\n]*\S)", head.strip())) + 1
    ending = sum(bool(_ENDS_SENTENCE.search(line)) for line in lines)
    return blocks < _FEW_BLOCKS and len(lines) >= 3 * blocks and ending >= 0.6 * len(lines)


def read_text(path: Path, reading: Reading, parting: Parting) -> Iterator[Record]:
    """The documents of a text file, in order, without those that hold no text.

    Raises:
        NewLLMError: the file is not in its encoding (names the byte, and what to do) or cannot be read.
    """
    yield from _documents(read_lines(path, reading.encoding), parting)


def _documents(lines: Iterable[str], parting: Parting) -> Iterator[Record]:
    if parting.separator is not None:
        yield from _in_pieces(_between(lines, parting.separator))
    elif parting.kind == "file":
        yield from _in_pieces(lines)
    else:
        yield from map(Record, group_lines(lines, parting.kind))


def _between(lines: Iterable[str], separator: re.Pattern[str]) -> Iterator[str | None]:
    """The text between separators, None where one stands."""
    held = ""
    for line, following in _with_following(lines):
        line, held = held + line, ""
        if not line.endswith("\n") and following is not None:  # a piece of a very long line
            line, held = line[:-_LONGEST_MARKER], line[-_LONGEST_MARKER:]
        first, *rest = separator.split(line)
        yield first
        for part in rest:
            yield None
            yield part


def _in_pieces(parts: Iterable[str | None]) -> Iterator[Record]:
    """Documents, one ending at each None: a piece of at most `LONGEST` characters, and what continues it."""
    held: list[str] = []
    size, continues = 0, False
    for part in itertools.chain(parts, [None]):
        if part is None or size + len(part) > LONGEST:
            if _has_text(held):
                yield Record("".join(held), continues=continues)
            held, size, continues = [], 0, part is not None
        if part:
            held.append(part)
            size += len(part)


def group_lines(lines: Iterable[str], kind: str) -> Iterator[str]:
    """Join lines to documents: "articles", "blocks" or "lines". Blank lines end the one they follow."""
    starts = _STARTS[kind]
    document: list[str] = []
    size, previous_blank = 0, True
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
    for line, following in _with_following(head.strip("\r\n").split("\n")):
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


def read_lines(path: Path, encoding: str = "") -> Iterator[str]:
    """The file's lines with their breaks (only LF); one of over a mebibyte comes in pieces."""
    decoder, position = codecs.getincrementaldecoder("utf-8")("strict"), 0
    with open_data(path, encoding) as file:
        while True:
            piece = file.readline(PIECE)
            text = decode_piece(decoder, piece, position, path)
            text = text.removeprefix("\ufeff")  # also in the middle, where files were put together
            position += len(piece)
            if text:
                yield text
            if not piece:
                return


def decode_piece(decoder: codecs.IncrementalDecoder, piece: bytes, position: int, path: Path) -> str:
    """The next characters of a file; `position`: where `piece` begins; an empty piece ends the file.

    Raises:
        NewLLMError: naming the file, the offset of the first byte that is not UTF-8, and how to read the
        file.
    """
    held = len(decoder.getstate()[0])
    try:
        return decoder.decode(piece, final=not piece)
    except UnicodeDecodeError as error:
        offset = position - held + error.start
        problem = f"byte {offset:,} (0x{error.object[error.start]:02x}) cannot be read"
        with open_data(path) as file:
            file.read(max(0, offset - encodings.HEAD // 2))
            raise encodings.wrong_encoding(path, problem, file.read(encodings.HEAD)) from None


def check_encoding(path: Path, encoding: str) -> str:
    """The encoding to read a text file in: the one that was named, or UTF-8 ("") where the file is that.

    Raises:
        NewLLMError: none was named, and the file is in another.
    """
    with open_data(path) as file:
        head = file.read(encodings.HEAD)
    problem = encodings.not_as_it_seems(head)
    if encoding:
        plainly = not problem and not head.isascii() and encodings.is_utf8(head)
        return "" if plainly else encoding
    if problem:
        raise encodings.wrong_encoding(path, problem, head)
    return ""


def open_data(path: Path, encoding: str = "") -> BinaryIO:
    """Open a data file for reading bytes, unpacked, and in UTF-8 whatever its encoding. Failures, when it is
    opened or read, are one line for the user.

    Args:
        encoding: of the file; empty: its bytes as they are.
    """
    try:
        raw = open(path, "rb")
    except OSError as error:
        raise NewLLMError(f"{path} cannot be read: {error.strerror}.") from error
    if not encoding and not packing_of(path):
        return raw
    return io.BufferedReader(_Unpacked(raw, path, encoding), PIECE)


class _Unpacked(io.RawIOBase):
    """A file's text in UTF-8, or its bytes, unpacked on the way."""

    def __init__(self, raw: BinaryIO, path: Path, encoding: str):
        self.raw, self.path, self.encoding = raw, path, encoding
        self.file = _OPENERS[packing_of(path)](raw)
        self.decoder: Any = codecs.getincrementaldecoder(encoding)() if encoding else None
        self.rest, self.position, self.ended = b"", 0, False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.rest and not self.ended:
            piece = self._piece()
            self.ended = not piece
            self.rest = self._in_utf8(piece) if self.decoder else piece
        count = min(len(buffer), len(self.rest))
        buffer[:count], self.rest = self.rest[:count], self.rest[count:]
        return count

    def _piece(self) -> bytes:
        try:
            return self.file.read(1 << 16)
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise NewLLMError(f"{self.path} cannot be unpacked ({error}): is it whole?") from error

    def _in_utf8(self, piece: bytes) -> bytes:
        held = len(self.decoder.getstate()[0])
        try:
            text = self.decoder.decode(piece, final=not piece)
            self.position += len(piece)
            return text.encode("utf-8")
        except UnicodeError as error:
            offset = self.position - held + getattr(error, "start", 0)
            raise NewLLMError(
                f"{self.path} is not {encodings.in_words(self.encoding)}: byte {offset:,} cannot be read. "
                "Name another --encoding."
            ) from error

    def close(self) -> None:
        self.raw.close()
        super().close()


def _zstd(raw: BinaryIO) -> BinaryIO:
    import pyarrow

    return pyarrow.CompressedInputStream(pyarrow.PythonFile(raw), "zstd")


_OPENERS: dict[str, Callable[..., Any]] = {
    "": lambda raw: raw,
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _zstd,
}


def content_hash(paths: list[Path]) -> str:
    """A hash of the files' bytes (not of their names or times)."""
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        with open(path, "rb") as file:
            while piece := file.read(PIECE):
                digest.update(piece)
        digest.update(path.stat().st_size.to_bytes(8, "little"))
    return digest.hexdigest()
