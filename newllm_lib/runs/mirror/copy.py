"""Copies that are what was copied: every byte is read back and compared before the copy gets its name."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

from newllm_lib.errors import NewLLMError
from newllm_lib.runs.atomic import is_complete, staged_directory, staged_file
from newllm_lib.runs.ownership import MANIFESTS, manifest_path, read_json

SUMS = "SUMS.json"  # in a copied folder: the SHA-256 of each of its files
_BLOCK = 4 * 2**20


class Replaced(Exception):
    """The source changed while it was copied; nothing was kept of the copy."""


class DamagedCopy(NewLLMError):
    """What was read back is not what was written."""


def copy_folder(
    source: Path,
    target: Path,
    check: dict[str, str] | None = None,
    ready: Callable[[], None] | None = None,
) -> None:
    """Copy a finished folder atomically (see `staged_directory`) to `target`.

    Args:
        check: SHA-256 that the source's files must have (for bringing a copy back). Without it the copy gets
            a `SUMS.json` with those of its files.
        ready: called just before the copy gets its name; what it raises leaves what stood there.

    Raises:
        Replaced: training put another folder in its place meanwhile. DamagedCopy: read back, it has other
        bytes.
        NewLLMError: the disk is full, read-only or gone.
    """
    before, sums = signature(source), {}
    with staged_directory(target, parents=False, ready=ready) as staging:
        for file in _files(source):
            name = file.relative_to(source).as_posix()
            (staging / name).parent.mkdir(parents=True, exist_ok=True)
            sums[name] = _copy_file(file, staging / name)
            if check is not None and check.get(name, sums[name]) != sums[name]:
                raise DamagedCopy(f"{file} is damaged: its bytes are not those that were saved there.")
        if check is None:
            (staging / SUMS).write_text(json.dumps(sums, indent=1), encoding="utf-8")
        if signature(source) != before or not is_complete(source):
            raise Replaced(source)


def copy_plain(source: Path, target: Path, ready: Callable[[], None] | None = None) -> None:
    """Copy one file in one step. `ready` and errors as for `copy_folder`; `Replaced` if it is gone."""
    with staged_file(target, parents=False) as staging:
        _copy_file(source, staging)
        if ready is not None:
            ready()


def signature(folder: Path) -> tuple | None:
    """Differs between two folders that had one name one after the other; None if never finished."""
    try:
        found, manifest = folder.stat(), manifest_path(folder).stat()
    except OSError:
        return None
    return found.st_ino, manifest.st_ino, manifest.st_mtime_ns, manifest.st_size


def recorded_sums(folder: Path) -> dict[str, str] | None:
    """What `SUMS.json` of a copy says; None where there is none to read."""
    sums = read_json(folder / SUMS)
    return sums if isinstance(sums, dict) else None


def sums_of(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file of a finished folder."""
    return {file.relative_to(folder).as_posix(): file_sum(file) for file in _files(folder)}


def file_sum(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _files(folder: Path) -> list[Path]:
    kept = (p for p in sorted(folder.rglob("*")) if p.is_file() and not p.is_symlink())
    return [p for p in kept if p.name not in (*MANIFESTS, SUMS) or p.parent != folder]


def _copy_file(source: Path, target: Path) -> str:
    digest = hashlib.sha256()
    try:
        read = open(source, "rb")
    except FileNotFoundError:
        raise Replaced(source) from None
    with read, open(target, "wb") as write:
        while block := read.read(_BLOCK):
            digest.update(block)
            write.write(block)
        write.flush()
        os.fsync(write.fileno())
        if hasattr(os, "posix_fadvise"):  # so that it is read back from the disk, not from memory
            os.posix_fadvise(write.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    _compare(target, digest.hexdigest())
    return digest.hexdigest()


def _compare(target: Path, expected: str) -> None:
    if file_sum(target) != expected:
        raise DamagedCopy(f"{target} came out with other bytes than were written: it was not kept.")
