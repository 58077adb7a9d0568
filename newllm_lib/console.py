"""How the package speaks to its user: plain lines, flushed at once, so that a log can be followed."""

from __future__ import annotations

import errno
import os
import sys
import time
import unicodedata
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from newllm_lib.errors import without_secrets

# Characters that turn the direction of writing: what is read is then not what stands there.
_DIRECTIONS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
_to_stderr = False
_log_path: Path | None = None
_muted = False
_needs_reader = True
_unwritten = ""  # of the log
_LONGEST_WAITING = 2**20  # characters


def use_stderr(enabled: bool = True) -> None:
    """Send messages to standard error (for `--json`, where standard output carries the result alone)."""
    global _to_stderr
    _to_stderr = enabled


def also_to(path: Path | None) -> None:
    """Append every following message to `path` too (a run's `train.log`); None stops that."""
    global _log_path, _unwritten
    _log_path, _unwritten = path, ""


def mute(enabled: bool = True) -> None:
    """Say nothing from now on: of several processes that do one thing, one speaks."""
    global _muted
    _muted = enabled


def printable(text: str, keep: str = "\n\t") -> str:
    """`text` with what a terminal would obey (control characters, other directions of writing) made visible,
    as in `\\u001b[2J`: it may come from another's run. Secrets are left out. JSON stays JSON. Where lines are
    kept, a carriage return ends one.
    """
    if "\n" in keep:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = without_secrets(text)
    return "".join(c if c in keep or not _is_obeyed(c) else f"\\u{ord(c):04x}" for c in text)


def _is_obeyed(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in _DIRECTIONS


def markdown_cell(text: str) -> str:
    """Text that cannot break a Markdown table or become a tag."""
    text = "".join(f"&#{ord(c)};" if c in "&<>|`*_" else c for c in text)
    return "<br>".join(text.splitlines()) or "(nothing)"


def go_on_without_reader() -> None:
    """From now on nothing ends because a pipe's reader, or the terminal, has left."""
    global _needs_reader
    _needs_reader = False


def say(text: str = "") -> None:
    """Print one message (to the terminal and to the log file, if one is set), as `printable` makes it.

    Raises:
        BrokenPipeError: its reader has left, and nothing else is to be done here (`go_on_without_reader`).
    """
    if _muted:
        return
    text = printable(text)
    show(text, sys.stderr if _to_stderr else sys.stdout)
    if _log_path is not None:
        _append(text + "\n")


def show(text: str, stream: TextIO | None) -> None:
    """Print to a stream that may be closed, full, or have nobody at its other end."""
    try:
        print(text, file=stream, flush=True)
    except (OSError, ValueError) as error:
        if isinstance(error, BrokenPipeError) and _needs_reader:
            raise
        number = getattr(error, "errno", None)
        if number in (errno.ENOSPC, errno.EDQUOT):  # its buffer is written when there is room again
            return
        silence(stream)


def silence(stream: TextIO | None) -> None:
    """Nothing more comes from a standard stream, whoever writes to it."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # type: ignore[union-attr]


def _append(text: str) -> None:
    """To the log file; what a full disk does not take is written with a later message."""
    global _unwritten
    first, _unwritten = not _unwritten, (_unwritten + text)[-_LONGEST_WAITING:]
    try:
        with open(_log_path, "a", encoding="utf-8") as log:  # type: ignore[arg-type]
            log.write(_unwritten)
        _unwritten = ""
    except OSError as error:
        if first:
            show(
                f"{_log_path} cannot be written ({error.strerror}): it waits, and is caught up with.",
                sys.stderr,
            )


def duration(seconds: float) -> str:
    """`seconds` as a person says it: `8 s`, `3.5 min`, `2.1 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def count(number: float) -> str:
    """`number` in short: `950`, `1.2k`, `3.4M`, `1.5B`."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.0f}"


def quiet_libraries() -> None:
    """No progress bars of transformers' own: they redraw themselves, and fill a log file with fragments."""
    from transformers.utils import logging

    logging.disable_progress_bar()


class Progress:
    """Progress of a long step as plain lines, at most one every `every` seconds, with the time left.

    Lines, not a bar that redraws itself: they survive in a log file and read the same in a terminal and a
    notebook.
    """

    def __init__(self, label: str, total: float | None = None, unit: str = "", every: float = 5.0):
        self.label, self.total, self.unit, self.every = label, total, unit, every
        self.start = self.last = time.monotonic()

    def update(self, done: float) -> None:
        now = time.monotonic()
        if now - self.last < self.every:
            return
        self.last = now
        parts = [self.label]
        if self.total:
            parts[0] += f" {min(100.0, 100 * done / self.total):.0f}%"
        parts.append(f"{count(done)} {self.unit}".strip())
        if self.total and done:
            parts.append(f"{duration((now - self.start) * (self.total - done) / done)} left")
        say("  " + " | ".join(parts))

    def close(self, text: str | None = None) -> None:
        if text:
            say(f"  {text} ({duration(time.monotonic() - self.start)})")
