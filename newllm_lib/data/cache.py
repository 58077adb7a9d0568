"""Prepared data on disk: written under a temporary name, renamed when whole, checked before use.

An entry is a folder named by a hash of everything it was made from, so a stale entry is never found; its
`meta.json` records the size and checksum of every file, so a damaged one is never used, and which readers
made it, so that what a mended reader reads otherwise is made again. Two processes that prepare the same data
wait for each other where the file system can lock, and otherwise work under names of their own, the first to
finish being kept.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from newllm_lib import console
from newllm_lib.errors import NewLLMError
from newllm_lib.runs.atomic import staged_file, sync

try:
    import fcntl
except ImportError:  # not on Windows: there the temporary names alone keep processes apart
    fcntl = None  # type: ignore[assignment]

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
META = "meta.json"
# what of this package decides which text and which roles come out of the same files
_READING = (
    *("readers/*.py", "columns.py", "records.py", "schemas.py", "turns.py", "written_turns.py"),
    *("splits.py", "templates.py", "encoder.py", "foreign_turns.py"),
)


def cache_root(folder: str | os.PathLike | None = None) -> Path:
    """Where prepared data is kept: `folder`, else $NEWLLM_CACHE, else ~/.cache/newllm."""
    if place := folder or os.environ.get("NEWLLM_CACHE"):
        return Path(place).expanduser()
    try:
        return Path.home() / ".cache" / "newllm"
    except RuntimeError:  # a user without a home
        return Path(tempfile.gettempdir()) / f"newllm-{os.getuid()}" / "cache"


def key_hash(parts: dict) -> str:
    """A short name that is the same if and only if `parts` are."""
    canonical = json.dumps(parts, sort_keys=True, ensure_ascii=False).encode("utf-8")
    return hashlib.blake2b(canonical, digest_size=10).hexdigest()


@contextlib.contextmanager
def plain_write_errors(place: Path) -> Iterator[None]:
    """Turn a failure to write at `place` into one line for the user.

    Raises:
        NewLLMError: the disk is full, or `place` may not be written.
    """
    try:
        yield
    except Exception as error:
        remedy = "set NEWLLM_CACHE to a folder on another disk"
        number = _error_number(error)
        if number in FULL:
            full = "Your quota" if number == errno.EDQUOT else "The disk"
            raise NewLLMError(
                f"{full} is full: {place} cannot be written. Free some space, or {remedy}."
            ) from error
        if number in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise NewLLMError(f"{place} cannot be written ({os.strerror(number)}): {remedy}.") from error
        raise


def _error_number(error: Exception) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    # tokenizers and safetensors, being Rust, tell it in words
    said = re.search(r"\(os error (\d+)\)", str(error))
    return int(said[1]) if said else None


@lru_cache
def readers_hash() -> str:
    """Changes with the code that reads data."""
    digest = hashlib.blake2b(digest_size=10)
    for path in sorted(path for pattern in _READING for path in Path(__file__).parent.glob(pattern)):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def read_meta(entry: Path) -> dict | None:
    """The meta of a whole entry; None if it is missing, half-written, damaged, or made by other readers."""
    try:
        meta = json.loads((entry / META).read_text(encoding="utf-8"))
        files = meta["files"].items()
        known = meta["readers"] == readers_hash()
        known = known and all((entry / name).stat().st_size == file["bytes"] for name, file in files)
        if known and all(checksum(entry / name) == file["crc32"] for name, file in files):
            return meta
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return None


def checksum(path: Path) -> int:
    """CRC-32 of a file."""
    value = 0
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            value = zlib.crc32(piece, value)
    return value


@contextlib.contextmanager
def locked(entry: Path, silent: bool = False) -> Iterator[bool]:
    """Hold the entry's lock, waiting for another process. Yields False where there are no locks."""
    if fcntl is None:
        yield False
        return
    with plain_write_errors(entry.parent):
        entry.parent.mkdir(parents=True, exist_ok=True)
        lock = open(entry.with_name(entry.name + ".lock"), "w")
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not silent:
                console.say("Another process is preparing this data; waiting for it.")
            fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError:  # Drive and some network folders
        lock.close()
        yield False
        return
    with lock:
        yield True


class Staging:
    """A folder that becomes the cache entry `entry` on `commit`, and vanishes on `abandon`."""

    def __init__(self, entry: Path):
        self.entry = entry
        with plain_write_errors(entry.parent):
            entry.parent.mkdir(parents=True, exist_ok=True)
            self.path = Path(tempfile.mkdtemp(prefix=f".{entry.name}.", suffix=".tmp", dir=entry.parent))

    def commit(self, **meta) -> dict:
        """Write meta.json, force everything to the disk and rename; an entry made meanwhile is kept."""
        with plain_write_errors(self.entry.parent):
            files = {}
            for path in sorted(p for p in self.path.iterdir() if p.is_file()):
                files[path.name] = {"bytes": path.stat().st_size, "crc32": checksum(path)}
                sync(path)
            meta = {**meta, "readers": readers_hash(), "files": files}
            write_file(self.path / META, json.dumps(meta, indent=1, ensure_ascii=False))
            if self.entry.exists() and read_meta(self.entry) is None:
                shutil.rmtree(self.entry, ignore_errors=True)  # damaged: it is replaced
            try:
                os.rename(self.path, self.entry)
                sync(self.entry.parent)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or read_meta(self.entry) is None:
                    raise
                self.abandon()
        return meta

    def abandon(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


def sweep(entry: Path) -> None:
    """Remove what a killed process left of this entry. Only for the holder of its lock."""
    for leftover in entry.parent.glob(f".{entry.name}.*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)


def write_file(path: Path, text: str) -> None:
    """Write a small file whole or not at all."""
    with staged_file(path, errors=plain_write_errors) as staging:
        staging.write_text(text, encoding="utf-8")
