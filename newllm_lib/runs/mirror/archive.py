"""Bring a run back by a command: from where a mirror copied it to, or from a downloaded zip."""

from __future__ import annotations

import lzma
import shutil
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from newllm_lib.console import say
from newllm_lib.errors import NewLLMError, UsageError
from newllm_lib.hub import Asked, patiently
from newllm_lib.runs.atomic import (
    MANIFEST,
    clean_leftovers,
    explained,
    is_complete,
    mark_folder,
    missing_files,
    staged_directory,
)
from newllm_lib.runs.mirror.hub import saved_on_hub
from newllm_lib.runs.mirror.hub_copy import HubCopy
from newllm_lib.runs.mirror.restore import bring_back
from newllm_lib.runs.ownership import MARK, check_plain_name, check_shared
from newllm_lib.runs.run import HUB, Run
from newllm_lib.runs.security import check_checkpoint_dir, check_name

_LARGEST = 64 * 2**30  # bytes unpacked from a zip
_MOST = 10_000  # files in it
_RESERVE = 2**28  # bytes that stay free


def restore(name: str, folder: Path | str, into: Path | str = "checkpoints") -> Run:
    """Bring `folder/name` (or `folder/name.zip`, as `download` makes it) back to `into/name`; the same
    command continues it.

    Raises:
        UsageError: no such run there, or one of that name (or anything in its place) is here already.
            NewLLMError: damaged, or it holds what is not read from elsewhere (links, pickles, names that
            climb out).
    """
    check_plain_name(name, "RUN")
    if str(folder).startswith(HUB):
        return _restore_from_hub(name, str(folder), Run(Path(into) / name))
    folder, target = Path(folder), Run(Path(into) / name.removesuffix(".zip"))
    archive = folder / (name if name.endswith(".zip") else f"{name}.zip")
    _check_free(target, folder)
    if (folder / name).is_dir():
        _restore_folder(Run(folder / name), target)
    elif archive.is_file():
        _unpack(archive, target)
    else:
        there = ", ".join(saved(folder)) or "nothing"
        raise UsageError(f"There is no run {name!r} in {folder} (there is {there}).")
    return target


def saved(folder: Path | str) -> list[str]:
    """Names of the runs in `folder` (or on the hub) that can be brought back."""
    if str(folder).startswith(HUB):
        return saved_on_hub(str(folder))
    found = sorted(Path(folder).iterdir()) if Path(folder).is_dir() else []
    return [
        p.name
        for p in found
        if not p.name.startswith(".") and (Run(p).checkpoints() or is_complete(p / "best"))
    ]


def _restore_from_hub(name: str, place: str, target: Run) -> Run:
    copy = HubCopy(place, name)
    patiently(copy.look, Asked(copy.where, "give --from another place"))
    _check_free(target, place)
    if not copy.files:
        there = ", ".join(saved(place)) or "nothing"
        raise UsageError(f"There is no run {name!r} in {place} (there is {there}).")
    copy.bring_back(target)
    say(f"Restored {target.name} to {target.path}")
    return target


def _check_free(target: Run, folder: Path | str) -> None:
    """Raise UsageError where a run, or what is none of ours, is in the way."""
    if target.path.is_dir() and (target.checkpoints() or is_complete(target.best)):
        raise UsageError(
            f"{target.path} is here already and stays as it is: move it away to restore {target.name} from "
            f"{folder}."
        )
    check_shared(target.path, "run", "--into")


def _restore_folder(copy: Run, target: Run) -> None:
    clean_leftovers(copy.path)
    torn = [p for p in copy.path.iterdir() if p.is_dir() and p.name == "best" and not is_complete(p)]
    if not copy.checkpoints() and not is_complete(copy.best):
        lost = (
            ", ".join(f"{p.name}/{name}" for p in torn for name in missing_files(p)[:3])
            or "no whole checkpoint in it"
        )
        raise NewLLMError(f"{copy.path} is not whole ({lost}): it was not restored.")
    bring_back(copy, target)
    say(f"Restored {target.name} to {target.path}")


def _unpack(archive: Path, target: Run) -> None:
    """A zip of ours into a new run folder; nothing is written before every name in it was looked at."""
    if target.path.is_dir() and any(target.path.iterdir()):
        raise UsageError(
            f"{target.path} is here already and stays as it is: move it away to unpack {archive}."
        )
    try:
        with zipfile.ZipFile(archive) as packed:
            members = {member: _inside(member) for member in packed.infolist() if not member.is_dir()}
            _check_size(archive, target, members)
            with staged_directory(target.path) as staging:
                for member, path in members.items():
                    _unpack_member(packed, member, staging / path)
                check_checkpoint_dir(staging)
                if (staging / "best").is_dir() and not is_complete(staging / "best"):
                    raise NewLLMError(
                        f"{archive} is not whole (best/ lost "
                        f"{', '.join(missing_files(staging / 'best')[:3])})."
                    )
    except RuntimeError as error:  # so zipfile says that it is encrypted
        cause = str(error).partition(",")[0]
        raise NewLLMError(
            f"{archive} cannot be unpacked here ({cause}): make the zip without a password."
        ) from error
    except (
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
        EOFError,
        NotImplementedError,
        ValueError,
    ) as error:
        raise NewLLMError(f"{archive} is no readable zip ({error}): download it again.") from error
    for name in (MANIFEST, MARK):  # a run grows, only its parts are sealed; and the mark is not to be brought
        (target.path / name).unlink(missing_ok=True)
    mark_folder(target.path, "run", target.name)
    say(f"Unpacked {archive.name} to {target.path}: its best model, without checkpoints to continue from")


def _check_size(archive: Path, target: Run, members: dict) -> None:
    """Refuse what does not fit on the disk, and more files than any run has. Raises: NewLLMError."""
    size, place = sum(member.file_size for member in members), target.path.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if size > min(free - _RESERVE, _LARGEST) or len(members) > _MOST:
        raise NewLLMError(
            f"{archive} would unpack to {size / 2**20:,.0f} MiB in {len(members):,} files, and {place} has "
            f"{free / 2**20:,.0f} MiB free (at most {_LARGEST >> 30} GiB in {_MOST:,} files are): refused."
        )


def check_member(name: str) -> PurePosixPath:
    """The name of a file in an archive or a list, if it stays inside the folder it belongs to.

    Raises:
        NewLLMError: it is absolute or climbs out.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or not path.parts or ":" in path.parts[0] or "\0" in name:
        raise NewLLMError(f"{name!r} would be written outside its folder: the archive is refused.")
    return path


def _inside(member: zipfile.ZipInfo) -> Path:
    """Where a file of the archive goes, below the run's folder (its own first folder is the run's name)."""
    if stat.S_ISLNK(member.external_attr >> 16):
        raise NewLLMError(f"{member.filename!r} in the archive is a link: the archive is refused.")
    path = check_member(member.filename)
    check_name(path)
    return Path(*path.parts[1:]) if len(path.parts) > 1 else Path(path)


def _unpack_member(packed: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> None:
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with packed.open(member) as read, open(path, "wb") as write:
            shutil.copyfileobj(read, write, 2**20)
