"""A run's folder in a second place, such as Google Drive, kept up to date while it trains.

What stands there is always enough to continue: small files first, then the best model, then the checkpoints,
newest first, each under its name only when its bytes were read back and compared. Old checkpoints go when
newer ones are whole there; those that are newer than the run's own never. What is there is of one session
(`owner`): another's is set aside under a free name when ours is whole beside it.
"""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

from newllm_lib.errors import NewLLMError, UsageError
from newllm_lib.runs.atomic import (
    atomic_write_bytes,
    clean_leftovers,
    is_complete,
    put_beside,
    remove_directory,
    scratch_directory,
)
from newllm_lib.runs.mirror.copy import Replaced, copy_folder, copy_plain, recorded_sums, signature, sums_of
from newllm_lib.runs.mirror.owner import CopyOwner, Superseded
from newllm_lib.runs.ownership import LOCAL_FILES, MARK, RUN_FILES, free_name, is_part
from newllm_lib.runs.run import Run, checkpoint_step

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_GONE = (errno.ENOTCONN, errno.ENODEV, errno.ESTALE, errno.EHOSTDOWN, errno.ETIMEDOUT)
_RESERVE = 2**20  # bytes left free for the small files


def _room(number: int, folder: Path) -> str:
    return "your quota" if number == errno.EDQUOT else f"{_free(folder) / 2**20:,.1f} MiB free"


class Mirror:
    """Copies `run` to `folder/<its name>`, again and again; remembers what is there already."""

    small_files_every = 30.0  # seconds: log and metrics grow all the time

    def __init__(self, run: Run, folder: Path | str):
        self.run, self.folder = run, Path(folder)
        self.target = Run(self.folder / run.name)
        self.where = str(self.target.path)
        self.owner = CopyOwner(run, self.target)
        self._copied: dict[str, tuple | None] = {}  # name -> signature of what was copied
        self._elsewhere = self._is_another_disk()

    def copy(self) -> None:
        """Bring the copy up to date.

        Raises:
            NewLLMError: one line about the place: full, read-only, gone, or it returned other bytes than were
                written. What was whole there before still is.
            UsageError: what lies there is no copy of a run. Superseded: another session writes it now.
        """
        try:
            self._check_place()
            self.owner.take_place()
            if not self.owner.is_known:
                self.owner.claim()
            self.owner.check()
            if self.owner.continues:
                clean_leftovers(self.target.path)
                self._bring_up_to_date()
            elif self.run.checkpoints():  # only what can be continued takes the place of what can
                self._start_over()
        except (UsageError, Superseded):
            raise
        except (OSError, NewLLMError) as error:
            raise NewLLMError(self._explain(error)) from error

    def _bring_up_to_date(self) -> None:
        # Listed before the small files are read: metrics.jsonl then covers every copied checkpoint.
        checkpoints, others = list(reversed(self.run.checkpoints())), self._other_folders()
        self._copy_small_files()
        newest = all([self._copy_folder(folder) for folder in (*others, *checkpoints[:1])])
        if newest:  # the older ones are a luxury
            self._drop_all_but(checkpoints)
            for folder in checkpoints[1:]:
                self._copy_if_it_fits(folder)

    def _start_over(self) -> None:
        """Copy all beside what another session left there, and then give that a free name."""
        place, known = self.target, self._copied
        for hidden in filter(self.owner.is_left_behind, list(self.folder.iterdir())):
            shutil.rmtree(hidden, ignore_errors=True)
        with scratch_directory(place.path) as fresh:
            self.target, self._copied = Run(fresh), {}
            atomic_write_bytes(fresh / MARK, (place.path / MARK).read_bytes())
            try:
                self._bring_up_to_date()
                if self.newest_step() is None:  # training replaced it meanwhile: next time
                    return
                self.owner.check()
                put_beside(fresh, place.path, Path(free_name(place.path)))
                known = self._copied
            finally:
                self.target, self._copied = place, known
        self.owner.adopt()

    def is_due(self) -> bool:
        """Whether a folder of the run is not there yet."""
        folders = (*self._other_folders(), *self.run.checkpoints())
        return any(self._copied.get(folder.name) != signature(folder) for folder in folders)

    def newest_step(self) -> int | None:
        """The step that the copy can be continued from."""
        newest = self.target.latest_checkpoint()
        return checkpoint_step(newest) if newest else None

    def _check_place(self) -> None:
        """Never make the folder: below an unmounted Drive it would come to lie on this machine's own disk."""
        if not self.folder.is_dir() or (self._elsewhere and not self._is_another_disk()):
            raise FileNotFoundError(errno.ENOTCONN, "not there")

    def _is_another_disk(self) -> bool:
        try:
            return self.folder.stat().st_dev != self.run.path.stat().st_dev
        except OSError:
            return False

    def _other_folders(self) -> list[Path]:
        """The run's finished folders that are no checkpoints: `best/`, `last/` unless it is one's copy."""
        found = []
        for folder in sorted(self.run.path.iterdir()) if self.run.path.is_dir() else ():
            if (
                not is_part(folder)
                or folder.name.startswith(("checkpoint-", "superseded-"))
                or not is_complete(folder)
            ):
                continue
            if folder != self.run.last or not self._is_a_checkpoints_own(folder):
                found.append(folder)
        return found

    def _is_a_checkpoints_own(self, last: Path) -> bool:
        newest, weights = self.run.latest_checkpoint(), "model.safetensors"
        try:
            return newest is not None and (last / weights).samefile(newest / weights)
        except OSError:
            return False

    def _copy_small_files(self) -> None:
        for file in sorted(self.run.path.iterdir()):
            if (
                file.is_symlink()
                or not file.is_file()
                or file.name not in RUN_FILES
                or file.name in LOCAL_FILES
            ):
                continue
            try:
                found = file.stat()
                is_now = (found.st_ino, found.st_mtime_ns, found.st_size)
                if self._copied.get(file.name) != is_now or not (self.target.path / file.name).is_file():
                    copy_plain(file, self.target.path / file.name, self.owner.check)
                    self._copied[file.name] = is_now
            except (FileNotFoundError, Replaced):
                if not self.target.path.is_dir():
                    raise

    def _copy_folder(self, folder: Path) -> bool:
        """Copy it unless it is there; False if training replaced or dropped it meanwhile."""
        copy, is_now = self.target.path / folder.name, signature(folder)
        if self._copied.get(folder.name) == is_now and is_complete(copy):
            return True
        try:
            known = folder.name in self._copied or not is_complete(copy)
            # equal: an earlier life of this run copied it
            if known or recorded_sums(copy) != sums_of(folder):
                self._make_room(folder)
                copy_folder(folder, copy, ready=self.owner.check)
        except (Replaced, FileNotFoundError):
            if not self.target.path.is_dir():
                raise
            return False
        self._copied[folder.name] = is_now
        return True

    def _copy_if_it_fits(self, folder: Path) -> None:
        try:
            if self._room_for(folder) >= 0 or is_complete(self.target.path / folder.name):
                self._copy_folder(folder)
        except FileNotFoundError:
            if not self.target.path.is_dir():
                raise
        else:
            self._copied[folder.name] = signature(folder)

    def _room_for(self, folder: Path) -> int:
        """Bytes that are left when `folder` is copied; negative if it does not fit."""
        need = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        return _free(self.folder) - need - _RESERVE

    def _make_room(self, folder: Path) -> None:
        """Drop old checkpoints there, never the newest, until `folder` fits.

        Raises:
            OSError: it does not fit all the same.
        """
        for old in self.target.checkpoints()[:-1]:
            if self._room_for(folder) >= 0:
                return
            self._drop(old)
        if self._room_for(folder) < 0:
            raise OSError(errno.ENOSPC, f"no room for {folder.name}")

    def _drop_all_but(self, checkpoints: list[Path]) -> None:
        """Args: checkpoints: the run's, newest first. What is newer than that stays."""
        kept = {folder.name for folder in checkpoints}
        for old in self.target.checkpoints() if kept else ():
            if old.name not in kept and checkpoint_step(old) < checkpoint_step(checkpoints[0]):
                self._drop(old)

    def _drop(self, old: Path) -> None:
        self.owner.check()
        remove_directory(old)

    def _explain(self, error: Exception) -> str:
        """One line: what is wrong there, what is safe, what to do."""
        cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
        number = cause.errno if isinstance(cause, OSError) else None
        if not self.folder.is_dir() or (self._elsewhere and not self._is_another_disk()) or number in _GONE:
            return (
                f"{self.folder} is gone (was Drive unmounted?): mount it again, and copying goes on by "
                "itself."
            )
        newest = self.newest_step()
        there = (
            f"the copy of step {newest} there is whole"
            if newest is not None
            else "no checkpoint is there yet"
        )
        if number in _FULL:
            return (
                f"{self.folder} is full ({_room(number, self.folder)}); {there}. Delete old "
                "runs there (on Drive empty the bin too), and copying goes on by itself."
            )
        if number == errno.EROFS:
            return f"{self.folder} is read-only; {there}. Mount it again so that it can be written."
        if number in (errno.EACCES, errno.EPERM):
            return f"{self.folder} cannot be written (no permission); {there}. Choose another --mirror_dir."
        return (
            f"{self.run.name} could not be copied to {self.folder} "
            f"({str(error).strip() or type(error).__name__}); {there}."
        )


def _free(folder: Path) -> int:
    return shutil.disk_usage(folder).free
