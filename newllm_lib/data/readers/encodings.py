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
_NULS = 0.2  # of the bytes: text of letters in UTF-16 has a NUL in every second
_FEW = 0.2  # of the bytes are no ASCII: a western language
# the wider name of an encoding, which reads both
_SAME = {"euc_jis_2004": "euc_jp", "euc_jisx0213": "euc_jp", "shift_jis": "cp932", "big5hkscs": "big5"}
_SAME |= {"shift_jis_2004": "cp932", "shift_jisx0213": "cp932", "gbk": "gb18030", "gb2312": "gb18030"}
_SAME |= {"euc_kr": "cp949", "johab": "cp949"}
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
    if _wide(head):
        return "it has a NUL in every second byte or more"
    return "it has the escapes of ISO-2022-JP" if _ISO_2022_JP.search(head) else ""


def _wide(head: bytes) -> str:
    """UTF-16 or UTF-32 without a mark, by where its NULs are; empty: neither."""
    head = head[: len(head) // 4 * 4]
    if not head or head.count(0) < _NULS * len(head):
        return ""
    at = [head[place::4].count(0) / (len(head) // 4) for place in range(4)]
    if at[2] > 0.9 and at[3] > 0.9:
        return "utf_32_le"
    if at[0] > 0.9 and at[1] > 0.9:
        return "utf_32_be"
    return "utf_16_le" if at[1] + at[3] > at[0] + at[2] else "utf_16_be"


def candidates(head: bytes, most: int = 3) -> list[str]:
    """Python's names of the encodings that the bytes can be in, the likeliest first."""
    marked = next((name for mark, name in _MARKS.items() if head.startswith(mark)), "") or _wide(head)
    if marked:
        return [marked]
    if _ISO_2022_JP.search(head):
        return ["iso2022_jp"]
    from charset_normalizer import from_bytes

    # whole lines: half a character at the end would rule out the right one
    whole = head[: head.rfind(b"\n") + 1] if b"\n" in head[1:] and len(head) >= HEAD else head
    found = [_SAME.get(match.encoding, match.encoding) for match in from_bytes(whole)]
    if sum(byte > 0x7F for byte in head) < _FEW * len(head):
        found = [name for name in ("cp1252", "latin_1") if _decodes(whole, name)][:1] + found
    return list(dict.fromkeys(name for name in found if name not in ("utf_8", "ascii")))[:most]


def _decodes(data: bytes, name: str) -> bool:
    try:
        data.decode(name)
    except UnicodeDecodeError:
        return False
    return True


def wrong_encoding(path: Path, problem: str, head: bytes) -> NewLLMError:
    """The line for a file that is not UTF-8: what it may be, and what to type."""
    names = candidates(head)
    if not names:
        return NewLLMError(
            f"{path} is not UTF-8: {problem}, and it is no encoding that is known: is it a text file? "
            "(--encoding NAME reads another.)"
        )
    first, *others = names
    perhaps = f" (or {', '.join(map(in_words, others))})" if others else ""
    iconv = _ICONV.get(first, first.upper())
    return NewLLMError(
        f"{path} is not UTF-8: {problem}. It looks like {in_words(first)}{perhaps}: read it with --encoding "
        f"{first.replace('_', '-')}, or convert it: iconv -f {iconv} -t UTF-8 '{path.name}' > "
        f"converted{path.suffix}"
    )


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
