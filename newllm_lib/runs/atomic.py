"""Atomic writes: a file or a folder stands whole under its name, or what was there before does.

Everything is written under a temporary name beside its place, brought to the disk, and then renamed. A folder
gets a `MANIFEST.json` with the name and size of each of its files, so that a copy that lost something is seen
for what it is.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import json
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from newllm_lib.console import say
from newllm_lib.errors import NewLLMError
from newllm_lib.runs.ownership import (
    LEFTOVER,
    MANIFEST,
    MANIFESTS,
    MARK,
    foreign_in,
    manifest_path,
    mark_text,
    read_json,
    read_mark,
)
from newllm_lib.runs.processes import identity, is_alive

Explains = Callable[[Path], AbstractContextManager[None]]
_counter = itertools.count()
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CANNOT = (errno.EINVAL, errno.ENOTSUP)
_ALMOST_NOTHING = 32 * 2**20  # bytes: a disk with less is full for every practical purpose


def atomic_write_text(path: Path, text: str, durable: bool = True) -> None:
    """Replace `path` by `text` (UTF-8) in one step. See `atomic_write_bytes`."""
    atomic_write_bytes(path, text.encode("utf-8"), durable)


def atomic_write_bytes(path: Path, data: bytes, durable: bool = True, parents: bool = True) -> None:
    """Replace `path` by `data` in one step; see `staged_file`."""
    with staged_file(path, durable, parents) as staging, open(staging, "wb") as file:
        file.write(data)


def append_whole(path: Path, text: str) -> None:
    """Append lines to `path`, all or none of them."""
    with open(path, "ab") as file:
        before = file.tell()
        try:
            file.write(text.encode("utf-8"))
            file.flush()
        except OSError:
            os.truncate(path, before)
            raise


@contextmanager
def staged_file(
    path: Path, durable: bool = True, parents: bool = True, errors: Explains | None = None
) -> Iterator[Path]:
    """`with staged_file(path) as staging:` write it; at the end it becomes `path`, in one step.

    Args:
        durable: wait until the disk has it (False for what is rewritten all the time, as a run's status).
        parents: make missing folders (False below a place that may be unmounted: they would come to lie
            beneath it).
        errors: turns a disk's failures into one line (default: `explained`).

    Raises:
        NewLLMError: full or read-only disk, no permission; the old file is untouched, as after any error in
            the block.
    """
    path = Path(path)
    temporary = _beside(path, "tmp")
    try:
        with (errors or explained)(path):
            if parents:
                path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            if durable:
                sync(temporary)
            os.replace(temporary, path)
            if durable:
                sync(path.parent)
    except BaseException:
        with suppress(OSError):  # it may never have come to be
            temporary.unlink()
        raise


@contextmanager
def staged_directory(
    final: Path, parents: bool = True, what: str | None = None, ready: Callable[[], None] | None = None
) -> Iterator[Path]:
    """`with staged_directory(run / "best") as folder:` fill it; at the end it becomes `run/best`.

    Until then `run/best` is what it was; what lay in it that is not ours then lies in the new one. A link
    stays one: what it points to is replaced. An error in the block leaves nothing behind; a killed process
    leaves a hidden folder, which `clean_leftovers` removes. `parents` as for `staged_file`, `what` as for
    `ownership.foreign_in`; `ready` is called just before the folder gets its name.

    Raises:
        NewLLMError: full or read-only disk, no permission; what stood at `final` is untouched.
    """
    final = Path(final)
    final = Path(os.path.realpath(final)) if final.is_symlink() else final
    temporary = _beside(final, "tmp")
    try:
        with explained(final):
            temporary.mkdir(parents=parents)
            yield temporary
            write_manifest(temporary)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    with explained(final):
        try:
            if ready is not None:
                ready()
            old = _swap(temporary, final)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        sync(final.parent)
        if old is not None:
            _drop(old, final, what)


def mark_folder(folder: Path, what: str, run: str) -> None:
    """Mark a run's folder ("run"), or its copy's ("mirror"), unless it is; see `ownership.check_shared`."""
    if read_mark(folder) is None:
        atomic_write_text(Path(folder) / MARK, mark_text(what, run))


@contextmanager
def scratch_directory(place: Path) -> Iterator[Path]:
    """A hidden folder beside `place` within the block. `clean_leftovers` removes a killed process's.

    Raises:
        NewLLMError: full or read-only disk, no permission.
    """
    scratch = _beside(Path(place), "tmp")
    with explained(place):
        scratch.mkdir()
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def is_complete(directory: Path) -> bool:
    """Whether `directory` was finished by `staged_directory` and still holds every file at its full size."""
    return not missing_files(directory)


def missing_files(directory: Path) -> list[str]:
    """Names of files that `directory` should hold and does not, or not at their size.

    `["MANIFEST.json"]` if it was never finished.
    """
    directory = Path(directory)
    manifest = read_json(manifest_path(directory))
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict):
        return [MANIFEST]
    return [name for name, size in files.items() if _size_inside(directory, name) != size]


def remove_directory(directory: Path) -> None:
    """Delete a model's or checkpoint's folder; of a link the link. Files that are not ours stay.

    It is never half there under its name: it is renamed first; a kill leaves a hidden leftover.
    """
    directory = Path(directory)
    if directory.is_symlink():
        directory.unlink()
        return
    doomed = _beside(directory, "tmp")
    os.rename(directory, doomed)
    _drop(doomed, directory)


def replace_directory(directory: Path, final: Path) -> None:
    """Rename a finished folder; of what stood under the new name only what is not ours stays in it."""
    old = _move_aside_for(Path(directory), Path(final))
    if old is not None:
        _drop(old, Path(final))


@contextmanager
def mark_in(folder: Path) -> Iterator[str]:
    """A new hidden file's name in `folder`, which lives as long as the block runs.

    Raises:
        NewLLMError: full or read-only disk, no permission.
    """
    path = _beside(Path(folder) / "mark", "tmp")
    with explained(path):
        path.touch()
    try:
        yield path.name
    finally:
        path.unlink(missing_ok=True)


def put_beside(new: Path, final: Path, aside: Path) -> None:
    """Give the folder `new` the name `final`; what has that becomes `aside`. Nothing is deleted."""
    with explained(final):
        os.rename(final, aside)
        try:
            os.rename(new, final)
        except OSError:
            os.rename(aside, final)
            raise


def clean_leftovers(folder: Path) -> None:
    """Remove what killed processes left half-written in `folder`, and put back what they had moved aside.

    Call it with the run's lock held. Temporary names of living processes are left alone.
    """
    leftovers = [(path, match) for path in Path(folder).iterdir() if (match := LEFTOVER.match(path.name))]
    dead = [(p, m) for p, m in leftovers if not is_alive(int(m["pid"]), int(m["start"]))]
    # Killed between the two renames of `_move_aside_for`: the new folder, if whole, counts; else the old.
    for path, match in sorted(dead, key=lambda item: item[1]["kind"], reverse=True):
        final = path.with_name(match["name"])
        if path.is_dir() and not final.exists() and is_complete(path) and _moved_aside(final, dead):
            os.rename(path, final)
        elif match["kind"] == "old" and not final.exists():
            os.rename(path, final)
    for path, match in dead:
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)
        elif match["kind"] == "old" or manifest_path(path).exists():
            # it stood under its name, and may hold more than ours
            _drop(path, path.with_name(match["name"]))
        else:  # half-written
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn the failures of a disk into one line about `path` that says what to do.

    Raises:
        NewLLMError: instead of the OSError (or the error that torch or safetensors made of it).
    """
    try:
        yield
    except NewLLMError:
        raise
    except Exception as error:
        cause = _cause(error, Path(path))
        if cause is None:
            raise
        raise NewLLMError(cause) from error


_waiting: set[Path] = set()


@contextmanager
def may_wait(path: Path) -> Iterator[None]:
    """What is written in the block is not worth ending a run for: where the disk does not take it, this is
    said once, and whoever writes it tries again."""
    try:
        with explained(path):
            yield
    except (NewLLMError, OSError) as error:
        if path not in _waiting:
            cause = getattr(error.__cause__ or error, "strerror", None) or error
            say(f"  {path} could not be written ({cause}): it waits, and the run goes on")
        _waiting.add(path)
    else:
        if path in _waiting:
            say(f"  {path} is written again")
        _waiting.discard(path)


def _cause(error: Exception, path: Path) -> str | None:
    """The disk's trouble behind `error`, or None if it is something else."""
    place = _existing(path)
    number, torch_failed = _error_number(error, place)
    if number == errno.EDQUOT:
        return (
            f"Your quota is full: {path} could not be written; {_saved_beside(path)}. Delete files of yours "
            "on that disk, or choose another with --output_dir, and run it again."
        )
    if number in _FULL or (torch_failed and _free(place) < _ALMOST_NOTHING):
        return (
            f"The disk is full: {path} could not be written ({_free(place) / 2**20:.0f} MiB free); "
            f"{_saved_beside(path)}. Free space (old runs in checkpoints/, ~/.cache/newllm, "
            "~/.cache/huggingface) and run it again."
        )
    if number == errno.EROFS:
        return f"{path} could not be written: the disk is read-only. Choose another place with --output_dir."
    if number in (errno.EACCES, errno.EPERM):
        return (
            f"{path} could not be written: no permission. Choose another place with --output_dir, or mend "
            "its owner."
        )
    if number in (errno.ENOTDIR, errno.EEXIST):
        return (
            f"{path} could not be written: a file stands where a folder is needed. Move it away, or use "
            "--output_dir."
        )
    if torch_failed:
        return f"{path} could not be written: the disk failed; {_saved_beside(path)}. Run it again."
    return None


def _error_number(error: Exception, place: Path) -> tuple[int | None, bool]:
    """The system's number for what went wrong at `place`, and whether torch said that it could not write.

    Rust (safetensors) tells the number in words, and torch none: then the disk is asked.
    """
    if isinstance(error, OSError):
        return error.errno, False
    said = str(error)
    if found := re.search(r"\(os error (\d+)\)", said):
        return int(found[1]), False
    torchs = "PytorchStreamWriter" in said or "iostream error" in said
    if not torchs and ("inline_container" not in said or "StreamReader" in said):
        return (errno.ENOSPC if "No space left" in said else None), False
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(bytes(2**20))
            file.flush()
            os.fsync(file.fileno())
    except OSError as refused:
        return refused.errno, True
    return None, True


def _saved_beside(path: Path) -> str:
    """What of the run that `path` belongs to is whole, for a message."""
    places = [*path.parent.glob("checkpoint-*"), path.parent / "last", path.parent / "best"]
    saved = sorted((p for p in places if is_complete(p)), key=lambda p: p.stat().st_mtime)
    return f"the last save is intact ({saved[-1].name})" if saved else "nothing was saved yet"


def _beside(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}.{kind}-{identity()}-{next(_counter)}")


def _existing(path: Path) -> Path:
    """`path`, or the nearest folder above it that exists."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def _free(place: Path) -> int:
    return shutil.disk_usage(place).free


def _size_inside(directory: Path, name: str) -> int | None:
    """Size of a plain file below `directory`; None for all else (missing, a link, a name that climbs out)."""
    relative = Path(name)
    if relative.is_absolute() or ".." in relative.parts:
        return None
    try:
        entry = (directory / relative).lstat()
    except (OSError, ValueError):  # ValueError: a name with a null character
        return None
    return entry.st_size if stat.S_ISREG(entry.st_mode) else None


def write_manifest(directory: Path) -> None:
    """Sync every file, then write `MANIFEST.json`: it never lists bytes that could still be lost."""
    files = {}
    for name in MANIFESTS:  # of what this was copied from
        (directory / name).unlink(missing_ok=True)
    for path in sorted(p for p in directory.rglob("*") if p.is_file()):
        about = path.stat()
        if about.st_nlink == 1:  # a link's file was synced under its first name
            sync(path)
        files[path.relative_to(directory).as_posix()] = about.st_size
    with open(directory / MANIFEST, "w", encoding="utf-8") as manifest:
        json.dump({"files": files}, manifest, indent=1)
        manifest.flush()
        os.fsync(manifest.fileno())
    for folder in [*(p for p in directory.rglob("*") if p.is_dir()), directory]:
        sync(folder)


def _swap(temporary: Path, final: Path) -> Path | None:
    """Put a finished folder under its name; where what stood there is now (None: nothing did)."""
    if final.exists() and _exchange(temporary, final):
        return temporary
    return _move_aside_for(temporary, final)


def _move_aside_for(temporary: Path, final: Path) -> Path | None:
    old = _beside(final, "old") if final.exists() else None
    if old is not None:
        # killed after this line: clean_leftovers puts the new folder, or this one, in place
        os.rename(final, old)
    try:
        os.rename(temporary, final)
    except OSError:
        if old is not None:
            os.rename(old, final)
        raise
    return old


def _drop(doomed: Path, final: Path, what: str | None = None) -> None:
    """Delete a folder that stood at `final`; what is not ours in it goes (back) there.

    Where the disk does not let us, it stays under its hidden name, for `clean_leftovers`.
    """
    with suppress(OSError):
        for name in list(foreign_in(doomed, what)):
            place = final / name
            while os.path.lexists(place):
                place = place.with_name(f"{place.name}.kept")
            place.parent.mkdir(parents=True, exist_ok=True)
            os.rename(doomed / name, place)
        half_gone = _beside(final, "tmp")  # killed below, it must not be taken for what stood there
        os.rename(doomed, half_gone)
        for name in MANIFESTS:
            (half_gone / name).unlink(missing_ok=True)
        shutil.rmtree(half_gone, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step (Linux's renameat2); False where the system or the file system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    at_fdcwd, rename_exchange = -100, 2
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:  # a C library older than 2018
        return False
    return renameat2(at_fdcwd, os.fsencode(one), at_fdcwd, os.fsencode(other), rename_exchange) == 0


def _moved_aside(final: Path, dead: list) -> bool:
    return any(m["kind"] == "old" and m["name"] == final.name for _, m in dead)


def sync(path: Path) -> None:
    """Wait until the disk has a file, or which names a folder holds."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT or not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise  # not every file system (network folders) can sync a folder: the files are on the disk
    finally:
        os.close(descriptor)
