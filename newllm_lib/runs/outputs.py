"""Folders and files that a command writes where the user says: only what is ours there is replaced."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from newllm_lib.errors import UsageError
from newllm_lib.runs.atomic import atomic_write_text, staged_directory
from newllm_lib.runs.ownership import (
    MARK,
    foreign_in,
    free_name,
    kind_of,
    mark_text,
    read_mark,
    real_folder,
    top_of,
)


def replaceable(folder: Path, what: str, flag: str) -> Path:
    """The place of a folder that is to be written whole: `folder`, or what it is a link to.

    Args:
        what: "export" or "mixture".
        flag: how the user named the folder.

    Raises:
        UsageError: something lies there that is not ours (names it, and a free name); or it is the current
            folder, a file or a link to nothing.
    """
    path = real_folder(folder, flag)
    if not path.is_dir():
        return path
    first = next(foreign_in(path, what), None)
    if first is not None:
        raise UsageError(
            f"{folder} holds {top_of(first)}, which no {kind_of(what)} of ours wrote: nothing was changed. "
            f"Give another {flag}, e.g. {free_name(folder)}."
        )
    if path == Path.cwd() or path in Path.cwd().parents:
        raise UsageError(
            f"{folder} is the folder you are in, and would be replaced: give {flag} a folder in it, e.g. "
            f"{what}."
        )
    return path


def check_file(path: Path, flag: str, is_ours: Callable[[str], bool]) -> None:
    """Refuse a file that stands where one of ours shall be written, unless it looks like ours.

    Args:
        is_ours: tells it from the beginning of the file's text.

    Raises:
        UsageError: names a free name.
    """
    if not os.path.lexists(path):
        return
    try:
        with open(path, encoding="utf-8") as file:
            if is_ours(file.read(2**16)):
                return
    except (OSError, ValueError):  # a folder, a link to nothing, no text
        pass
    raise UsageError(
        f"{path} is there and is not what would be written: it stays. Give another {flag}, e.g. "
        f"{free_name(path)}."
    )


def check_picture(path: Path, flag: str) -> None:
    """Refuse what stands where a picture shall be written, unless matplotlib drew it, as ours are.

    Raises:
        UsageError: names a free name.
    """
    if path.is_file():
        with open(path, "rb") as file:
            if b"Matplotlib" in file.read(1000):
                return
    check_file(path, flag, lambda text: False)


@contextmanager
def owned_directory(folder: Path, what: str, flag: str, run: str | None = None) -> Iterator[Path]:
    """`staged_directory` for a user's folder: refused where others' files lie, marked as ours.

    Args:
        what: "export" or "mixture".
        flag: how the user named the folder.
        run: what it was made of.

    Raises:
        UsageError: see `replaceable`.
        NewLLMError: as for `staged_directory`.
    """
    final = replaceable(folder, what, flag)
    before = read_mark(final)
    with staged_directory(final, what=what) as staging:
        yield staging
        files = sorted(p.relative_to(staging).as_posix() for p in staging.rglob("*") if p.is_file())
        text = mark_text(what, run, before.get("since") if before else None, files)
        (staging / MARK).write_text(text, encoding="utf-8")
        replaceable(folder, what, flag)  # while it was filled, something may have been put there


def add_to_mark(folder: Path, *names: str) -> None:
    """Say in the mark of an export or a mixture, if it has one, that these files in it are ours, too."""
    mark = read_mark(folder)
    if mark is None:
        return
    files = sorted({*mark["files"], *names})
    atomic_write_text(folder / MARK, mark_text(mark["what"], mark["run"], mark["since"], files))
