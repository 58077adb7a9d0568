"""Keeps a run's copy in a repository of the hub up to date (`hub_copy` says what that is)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from newllm_lib.errors import NewLLMError, UsageError
from newllm_lib.hub import Asked, HubUnreachable, explain, patiently
from newllm_lib.runs.atomic import is_complete, scratch_directory
from newllm_lib.runs.mirror.copy import SUMS, signature, sums_of
from newllm_lib.runs.mirror.hub_copy import HubCopy, repository_of
from newllm_lib.runs.mirror.owner import Superseded, read_record, write_record
from newllm_lib.runs.ownership import LOCAL_FILES, MARK, RUN_FILES, is_part
from newllm_lib.runs.run import Run, checkpoint_step, link_or_copy


class HubMirror:
    """Keeps the copy of `run` in a repository up to date (as `Mirror` does in a folder)."""

    small_files_every = 300.0  # seconds: the hub allows some 100 commits an hour

    def __init__(self, run: Run, place: str):
        self.run, self.there = run, HubCopy(place, run.name)
        self.where = self.there.where
        self._copied: dict[str, tuple | None] = {}  # name -> what was committed under it

    def copy(self) -> None:
        """Bring the copy up to date.

        Raises:
            NewLLMError: one line about the hub. What was there before still is.
            UsageError: no token. Superseded: another session writes it now.
        """
        try:
            self.there.look()
            if (read_record(self.run, self.where) or {"pending": True}).get(
                "pending"
            ):  # it could not be reached when the run began
                self.there.claim(self.run)
            if self._check()["continues"] or self.run.checkpoints():
                self._commit_what_changed()
        except (UsageError, Superseded):
            raise
        except Exception as error:  # whatever the hub's library passes on
            raise NewLLMError(self._explain(error)) from None

    def newest_step(self) -> int | None:
        newest = self.there.latest_checkpoint()
        return checkpoint_step(newest) if newest else None

    def is_due(self) -> bool:
        """Whether a folder of the run is not there yet."""
        return any(self._copied.get(folder.name) != signature(folder) for folder in self._folders())

    def _folders(self) -> list[Path]:
        """The run's whole folders. `last/` is a checkpoint's own, and is made again from it."""
        found = self.run.path.iterdir() if self.run.path.is_dir() else ()
        return [
            p
            for p in sorted(found)
            if is_part(p) and is_complete(p) and p.name != "last" and not p.name.startswith("superseded-")
        ]

    def _check(self) -> dict:
        """What this run's folder knows of the copy. Raises Superseded: another session has claimed it."""
        record, owner = read_record(self.run, self.where) or {}, self.there.owner()
        if owner.get("life") != record.get("life"):
            raise Superseded(
                f"{self.where} is written by another session now, on {owner.get('host')} since "
                f"{owner.get('start')}: this one copies no more. Start the run here again to take it over."
            )
        return record

    def _sums(self, folder: str) -> dict[str, str] | None:
        """The SHA-256 of each file of a folder there; None: it is not there."""
        if f"{folder}/{SUMS}" not in self.there.files:
            return None
        return json.loads(self.there.fetch(f"{folder}/{SUMS}").read_text(encoding="utf-8"))

    def _commit_what_changed(self) -> None:
        record = read_record(self.run, self.where) or {}
        with scratch_directory(self.run.path / "upload") as scratch:
            added: dict[str, bytes | Path] = {}
            kept, now = {MARK}, {}
            for folder in self._folders():
                now[folder.name], names = signature(folder), self._held(folder, scratch / folder.name)
                if names is None:  # training replaced it meanwhile: next time
                    return
                kept |= {f"{folder.name}/{name}" for name in names}
                added |= {
                    f"{folder.name}/{n}": scratch / folder.name / n for n in names if self._is_new(folder)
                }
            for file in self._small_files():
                now[file.name] = (file.stat().st_mtime_ns, file.stat().st_size)
                kept.add(file.name)
                if self._copied.get(file.name) != now[file.name] or file.name not in self.there.files:
                    shutil.copyfile(file, scratch / file.name)
                    added[file.name] = scratch / file.name
            gone = [name for name in self.there.files - kept if self._may_go(name, record)]
            if added or gone:
                newest = self.run.latest_checkpoint()
                self.there.change(added, gone, f"{self.run.name}: {newest.name if newest else 'begun'}")
            self._copied = now
        if not record["continues"]:
            write_record(self.run, self.where, record | {"continues": True})

    def _held(self, folder: Path, place: Path) -> list[str] | None:
        """Names of a folder's files, which are held under `place` for a commit that may take minutes, with
        their sums; None: it is being replaced."""
        before = signature(folder)
        try:
            if not self._is_new(folder):
                return [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()] + [SUMS]
            shutil.copytree(folder, place, copy_function=lambda a, b: link_or_copy(Path(a), Path(b)))
            sums = sums_of(place)
        except FileNotFoundError:
            return None
        (place / SUMS).write_text(json.dumps(sums, indent=1), encoding="utf-8")
        if before is None or signature(folder) != before:
            return None
        if self._sums(folder.name) == sums:  # an earlier life of this run brought it
            self._copied[folder.name] = before
        return [p.relative_to(place).as_posix() for p in place.rglob("*") if p.is_file()]

    def _is_new(self, folder: Path) -> bool:
        return self._copied.get(folder.name, ()) != signature(folder)

    def _small_files(self) -> list[Path]:
        names = RUN_FILES - set(LOCAL_FILES)
        return [
            p
            for p in sorted(self.run.path.iterdir())
            if p.name in names and p.is_file() and not p.is_symlink()
        ]

    def _may_go(self, name: str, record: dict) -> bool:
        """Whether a file there goes: of a folder that ours replaces, of an older checkpoint, or of a copy
        that is another session's. A checkpoint newer than ours stays."""
        folder, slash, _ = name.partition("/")
        if not record["continues"]:
            return True
        if not slash or not folder.startswith("checkpoint-"):
            return bool(slash)
        newest = self.run.latest_checkpoint()
        return newest is not None and checkpoint_step(Path(folder)) <= checkpoint_step(newest)

    def _explain(self, error: Exception) -> str:
        """One line: what is wrong, what is safe."""
        status = getattr(getattr(error, "response", None), "status_code", None)
        newest = self.newest_step()
        safe = (
            f"the copy of step {newest} there is whole"
            if newest is not None
            else "no checkpoint is there yet"
        )
        if status in (401, 403):
            return (
                f"The hub refuses {self.where} ({status}); {safe}. Give HF_TOKEN a token with write access."
            )
        if status == 412:
            return f"{self.where} was changed by somebody else; {safe}. It is looked at again."
        problem = explain(error, Asked(self.where, "wait"))
        cause = problem.short if isinstance(problem, HubUnreachable) else f"{self.where}: {_line(error)}"
        return f"{cause}; {safe}. Copying goes on by itself."


def saved_on_hub(place: str) -> list[str]:
    """Names of the runs in a repository. Raises: NewLLMError."""
    from huggingface_hub import HfApi

    asked = Asked(place, "give --from another place")
    files = patiently(lambda: HfApi().list_repo_files(repository_of(place)), asked)
    return sorted({name.split("/")[0] for name in files if name.count("/") > 1})


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
