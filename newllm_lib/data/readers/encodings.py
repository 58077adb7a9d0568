"""Which encoding a text file can be in. It is proposed in an error's line and read only when it is named.

`charset-normalizer` judges what is no UTF-8. What it cannot see is UTF-16 and UTF-32 without a mark (English
in them is valid UTF-8, with a NUL between two letters) and ISO-2022-JP (plain ASCII).
"""

from __future__ import annotations

import codecs
import re
from pathlib import Path

from newllm_lib.errors import NewLLMError, UsageError

HEAD = 1 << 16  # bytes that are judged
_MARKS = {  # the longer ones first: UTF-32's begins as UTF-16's
    codecs.BOM_UTF32_LE: "utf_32",
    codecs.BOM_UTF32_BE: "utf_32",
    codecs.BOM_UTF16_LE: "utf_16",
    codecs.BOM_UTF16_BE: "utf_16",
}
_ISO_2022_JP = re.compile(rb"\x1b\$[@B]")
_PACKED = {  # what a file is by its first bytes, whatever its name: what to do
    b"\x1f\x8b": "it is packed by gzip: add .gz to its name",
    b"BZh": "it is packed by bzip2: add .bz2 to its name",
    b"\xfd7zXZ": "it is packed by xz: add .xz to its name",
    b"\x28\xb5\x2f\xfd": "it is packed by zstd: add .zst to its name",
    b"PK\x03\x04": "it is a zip archive, or an office document: unpack it, or save its text",
    b"PAR1": "it is parquet: call it .parquet",
    b"%PDF": "it is a PDF: save its text",
    b"\xd0\xcf\x11\xe0": "it is an office document: save its text",
    b"SQLite": "it is a database: save a table as .csv",
}
# in text that was decoded wrongly, as a line break and a space with their bytes exchanged
_ODD = re.compile("[\x00-\x08\x0e-\x1a\x1c-\x1f\u0a00\u2000\ufffd\ue000-\uf8ff]")
_CONTROL = re.compile(rb"[\x01-\x08\x0e-\x1a\x1c-\x1f]")
_PLAIN = re.compile(r"[\t\n\r -~]")
_WIDE = ("utf_16_le", "utf_16_be", "utf_32_le", "utf_32_be")
_FEW = 0.2  # of the bytes are no ASCII: a western language
# the wider name of an encoding, which reads both
_SAME = {"euc_jis_2004": "euc_jp", "euc_jisx0213": "euc_jp", "shift_jis": "cp932", "big5hkscs": "big5"}
_SAME |= {"shift_jis_2004": "cp932", "shift_jisx0213": "cp932", "gbk": "gb18030", "gb2312": "gb18030"}
_SAME |= {"euc_kr": "cp949", "johab": "cp949", "cp1125": "cp866"}
_KNOWN_AS = {"cp932": "Shift-JIS", "gb18030": "GBK", "cp949": "EUC-KR", "latin_1": "ISO-8859-1"}
_ICONV = {"euc_jp": "EUC-JP", "latin_1": "ISO-8859-1", "iso2022_jp": "ISO-2022-JP", "koi8_r": "KOI8-R"}
_ICONV |= {f"utf_{n}": f"UTF-{n}" for n in (16, 32)}
_ICONV |= {f"utf_{n}_{end}": f"UTF-{n}{end.upper()}" for n in (16, 32) for end in ("le", "be")}


def is_utf8(head: bytes) -> bool:
    """Whether the beginning of a file is UTF-8 (its last character may be cut)."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return True


def not_as_it_seems(head: bytes) -> str:
    """What is wrong with bytes that would pass for UTF-8 and are another encoding's; empty: nothing."""
    for mark, name in _MARKS.items():
        if head.startswith(mark):
            return f"byte 0 (0x{head[0]:02x}) begins the mark of {_ICONV[name]}"
    for begin, what in _PACKED.items():
        if head.startswith(begin) and not (begin.isalpha() and 0 not in head and is_utf8(head)):
            return what
    if head.count(0) > 0.2 * len(head):
        return "it has a NUL in every second byte or more"
    if 0 in head:
        return f"byte {head.index(0):,} is a NUL"
    return "it has the escapes of ISO-2022-JP" if _ISO_2022_JP.search(head) else ""


def _wide(head: bytes) -> str:
    """UTF-16 or UTF-32 without a mark, by which of them decodes to text; empty: none, as 8-bit encodings
    have no NUL.
    """
    rest = head.replace(b"\0", b"")
    if 0 not in head or (len(rest) > 0.8 * len(head) and is_utf8(rest) and len(_CONTROL.findall(rest)) < 9):
        return ""
    whole = head[: len(head) // 4 * 4]
    texts = {name: whole.decode(name, "replace") for name in _WIDE}
    odd = {name: len(_ODD.findall(text)) for name, text in texts.items()}
    best = min(texts, key=lambda name: odd[name] - len(_PLAIN.findall(texts[name])))
    return best if odd[best] <= 0.01 * len(whole) else ""


def candidates(head: bytes, most: int = 3) -> list[str]:
    """Python's names of the encodings that the bytes can be in, the likeliest first."""
    marked = next((name for mark, name in _MARKS.items() if head.startswith(mark)), "") or _wide(head)
    if marked:
        return [marked]
    if 0 in head:
        return []
    if _ISO_2022_JP.search(head):
        return ["iso2022_jp"]
    from charset_normalizer import from_bytes

    # whole lines: half a character at the end would rule out the right one
    whole = head[: head.rfind(b"\n") + 1] if b"\n" in head[1:] and len(head) >= HEAD else head
    found = [_SAME.get(match.encoding, match.encoding) for match in from_bytes(whole)]
    if sum(byte > 0x7F for byte in head) < _FEW * len(head):
        western = min(("cp1252", "mac_roman"), key=lambda name: _misread(whole, name))
        found = [name for name in (western, "latin_1") if _decodes(whole, name)][:1] + found
    found = [name for name in ("cp932", "euc_jp") if _holds_kana(whole, name)] + found
    return list(dict.fromkeys(name for name in found if name not in ("utf_8", "ascii")))[:most]


def _misread(data: bytes, name: str) -> int:
    """How many capitals stand inside words, which is what small letters of another encoding become."""
    return len(re.findall(r"(?<=[a-z])(?![A-Z])[^\W\d_a-zà-öø-ÿ]", data.decode(name, "replace")))


def _holds_kana(data: bytes, name: str) -> bool:
    """Whether bytes decode to Japanese: a good part of it is kana, which other languages never become."""
    text = re.sub(r"[\x00-\x7f]", "", data.decode(name, "replace"))
    # half a character may stand at each end
    return text.count("\ufffd") < 3 and len(re.findall("[\u3041-\u30fc]", text)) > 0.2 * len(text)


def _decodes(data: bytes, name: str) -> bool:
    try:
        data.decode(name)
    except UnicodeDecodeError:
        return False
    return True


def wrong_encoding(path: Path, problem: str, head: bytes) -> NewLLMError:
    """The line for a file that is not UTF-8: what it may be, and what to type."""
    if problem.startswith("it is "):
        return NewLLMError(f"{path} is no text: {problem}.")
    if broken := _broken_bytes(head):
        return NewLLMError(
            f"{path} is UTF-8 but for {broken} broken bytes in this place: {problem}. Drop them: iconv -f "
            f"UTF-8 -t UTF-8 -c '{path.name}' > converted{path.suffix}"
        )
    names = candidates(head)
    if problem.endswith("is a NUL") and not names and is_utf8(head):
        return NewLLMError(
            f"{path} is no plain text: {problem}. If it is one none the less, take them out: "
            f"tr -d '\\000' < '{path.name}' > converted{path.suffix}"
        )
    if not names:
        return NewLLMError(
            f"{path} is not UTF-8: {problem}, and it is no encoding that is known: is it a text file? "
            "(--encoding NAME reads another.)"
        )
    first, *others = names
    perhaps = f" (or {', '.join(map(in_words, others))})" if others else ""
    iconv = _ICONV.get(first) or re.sub(r"^ISO8859_", "ISO-8859-", first.upper()).replace("KOI8_", "KOI8-")
    return NewLLMError(
        f"{path} is not UTF-8: {problem}. It looks like {in_words(first)}{perhaps}: read it with --encoding "
        f"{first.replace('_', '-')}, or convert it: iconv -f {iconv} -t UTF-8 '{path.name}' > "
        f"converted{path.suffix}"
    )


def _broken_bytes(head: bytes) -> int:
    """How many bytes of text that is else UTF-8, and not ASCII alone, are not; 0: it is something else."""
    text = head.decode("utf-8", "replace")
    broken = text.count("\ufffd")
    good = sum(char > "\x7f" for char in text) - broken
    return broken if 0 not in head and good > 20 * broken else 0


def in_words(name: str) -> str:
    """`CP932 (Shift-JIS)`."""
    known = f" ({_KNOWN_AS[name]})" if name in _KNOWN_AS else ""
    return _ICONV.get(name, name.upper()) + known


def checked_name(name: str) -> str:
    """Python's name of an encoding that a user named; empty for UTF-8.

    Raises:
        UsageError: there is none of this name.
    """
    try:
        found = codecs.lookup(name)
        "".encode(found.name)  # not one of bytes to bytes, such as hex
    except LookupError as error:
        raise UsageError(
            f"--encoding {name} is no encoding that Python knows: cp932 (Shift-JIS), euc-jp, gb18030, big5, "
            "cp949, cp1251, cp1252, utf-16 … are."
        ) from error
    return "" if found.name in ("utf-8", "utf-8-sig") else found.name.replace("-", "_")
