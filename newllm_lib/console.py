"""How the package speaks to its user: plain lines, flushed at once, so that a log can be followed."""

from __future__ import annotations

import sys
import time
import unicodedata
from pathlib import Path

# Characters that turn the direction of writing: what is read is then not what stands there.
_DIRECTIONS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
_to_stderr = False
_log_path: Path | None = None
_muted = False


def use_stderr(enabled: bool = True) -> None:
    """Send messages to standard error (for `--json`, where standard output carries the result alone)."""
    global _to_stderr
    _to_stderr = enabled


def also_to(path: Path | None) -> None:
    """Append every following message to `path` too (a run's `train.log`); None stops that."""
    global _log_path
    _log_path = path


def mute(enabled: bool = True) -> None:
    """Say nothing from now on: of several processes that do one thing, one speaks."""
    global _muted
    _muted = enabled


def printable(text: str, keep: str = "\n\t") -> str:
    """`text` with what a terminal would obey (control characters, other directions of writing) made visible,
    as in `\\u001b[2J`: it may come from another's run. JSON stays JSON. Where lines are kept, a carriage
    return ends one.
    """
    if "\n" in keep:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return "".join(c if c in keep or not _is_obeyed(c) else f"\\u{ord(c):04x}" for c in text)


def _is_obeyed(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in _DIRECTIONS


def say(text: str = "") -> None:
    """Print one message (to the terminal and to the log file, if one is set), as `printable` makes it."""
    if _muted:
        return
    text = printable(text)
    stream = sys.stderr if _to_stderr else sys.stdout
    print(text, file=stream, flush=True)
    if _log_path is not None:
        try:
            with open(_log_path, "a", encoding="utf-8") as log:
                log.write(text + "\n")
        except OSError as error:  # a full disk must not end a run for a line of its log
            path = _log_path
            also_to(None)
            print(
                f"{path} cannot be written ({error.strerror}): the log goes on here only.",
                file=sys.stderr,
                flush=True,
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
