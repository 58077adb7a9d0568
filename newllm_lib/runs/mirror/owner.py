"""Whose copy it is: of several sessions with one copy, the one that started last writes it.

The copy's mark says who: its `owner` has a life (of one run's folder, on one machine, since it last booted),
host and start. A session claims the copy when it starts; one that slept meanwhile finds another's life there
before it renames or deletes anything, and stops. (Within that one rename another may still come in between: a
Drive has no locks.) What a session has of each copy stands in the mark of its run, under `copies`.
"""

from __future__ import annotations

import os
import socket
import time
import uuid
from datetime import datetime, timezone
from pathlib import Path

from newllm_lib.console import duration
from newllm_lib.errors import NewLLMError
from newllm_lib.runs.atomic import atomic_write_bytes, explained, mark_folder
from newllm_lib.runs.mirror.copy import recorded_sums
from newllm_lib.runs.ownership import LEFTOVER, MARK, check_shared, mark_text, read_mark
from newllm_lib.runs.processes import is_alive
from newllm_lib.runs.run import Run, checkpoint_step


class Superseded(NewLLMError):
    """Another session, started later, writes this copy."""


class CopyOwner:
    """What `run` has to do with the copy in `copy`, which may not be there yet."""

    def __init__(self, run: Run, copy: Run):
        self.run, self.copy, self._me = run, copy, this_machine(run)

    @property
    def is_known(self) -> bool:
        """Whether this run's folder has claimed the copy, and is not to claim it anew."""
        return not (self._record() or {"pending": True}).get("pending")

    @property
    def continues(self) -> bool:
        """Whether what is in the copy is an earlier state of this run: else it is another session's."""
        record = self._record()
        return record is not None and record["continues"]

    def take_place(self) -> None:
        """Make the copy's folder and mark it; what is not ours there is refused before any write."""
        if read_mark(self.copy.path) is None:
            check_shared(self.copy.path, "mirror", "--mirror_dir")
            self.copy.path.mkdir(exist_ok=True)
            mark_folder(self.copy.path, "mirror", self.run.name)

    def postpone(self) -> None:
        """The copy is to be claimed, as soon as it can be written."""
        record = self._record()
        self._write_record(record and record | {"pending": True})

    def claim(self) -> str:
        """Make the copy, whose folder is there and marked, this run's to write; whose it was ("" if ours)."""
        mark, record, before = read_mark(self.copy.path) or {}, self._record(), _owner(self.copy.path)
        there, here = self.copy.latest_checkpoint(), self.run.latest_checkpoint()
        further = there is not None and (here is None or checkpoint_step(there) > checkpoint_step(here))
        if record and (record["life"] != before.get("life") or not self._is_unchanged(record)):
            record = None  # of an earlier time
        continues = not further and (record["continues"] if record else not before)
        if there is None and not self.copy.best.is_dir():
            continues = True
        if not record or not self._is_mine(record):
            record = self._me | {"life": uuid.uuid4().hex}
            record["start"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
            text = mark_text("mirror", self.run.name, mark.get("since"), owner=record)
            atomic_write_bytes(self.copy.path / MARK, text.encode(), parents=False)
        self._write_record({**record, "continues": continues, "pending": False})
        if not before or self._is_mine(before):
            return ""
        renewed = self.copy.status_path  # with every copy
        seen = time.time() - renewed.stat().st_mtime if renewed.is_file() else 0.0
        heard = f", heard of {duration(max(0.0, seen))} ago" if seen else ""
        return f"{before.get('host')} (since {before.get('start')}{heard})"

    def adopt(self) -> None:
        """The run has just been brought back from the copy."""
        if owner := _owner(self.copy.path):
            claimed = self._record() is not None
            self._write_record({**owner, "continues": True, "seen": self._state(), "pending": not claimed})

    def check(self) -> None:
        """Raise Superseded unless the copy is this run's to write."""
        record, owner = self._record(), _owner(self.copy.path)
        if owner and (record is None or owner.get("life") != record["life"] or not self._is_mine(record)):
            raise Superseded(
                f"{self.copy.path} is written by another session now, on {owner.get('host')} since "
                f"{owner.get('start')}: this one copies no more. Start the run here again to take it over."
            )

    def is_left_behind(self, folder: Path) -> bool:
        """Whether a hidden folder beside the copy is what a killed process of this run was filling."""
        match, owner = LEFTOVER.match(folder.name), _owner(folder)
        if match is None or match["name"] != self.run.name:
            return False
        here = all(owner.get(key) == self._me[key] for key in ("host", "path"))
        gone = owner.get("boot") != self._me["boot"] or not is_alive(int(match["pid"]), int(match["start"]))
        return here and gone

    def _is_unchanged(self, record: dict) -> bool:
        """Whether only this run's folder has written the copy since the record."""
        here = all(record.get(key) == self._me[key] for key in ("host", "path"))
        return here or record.get("seen") == self._state()

    def _state(self) -> list:
        """What tells whether another session has written the copy since: its newest step, its best model."""
        newest = self.copy.latest_checkpoint()
        return [newest and newest.name, recorded_sums(self.copy.best)]

    def _is_mine(self, record: dict) -> bool:
        return self._me.items() <= record.items()

    def _record(self) -> dict | None:
        return read_record(self.run, str(self.copy.path.absolute()))

    def _write_record(self, record: dict | None) -> None:
        write_record(self.run, str(self.copy.path.absolute()), record)


def read_record(run: Run, place: str) -> dict | None:
    """What the run's own mark says of its copy in a place."""
    found = _records(run).get(place)
    return found if isinstance(found, dict) and {"life", "continues"} <= set(found) else None


def write_record(run: Run, place: str, record: dict | None) -> None:
    """Let the run's own mark say so."""
    since, records = (read_mark(run.path) or {}).get("since"), _records(run)
    text = mark_text("run", run.name, since, copies=records | {place: record})
    atomic_write_bytes(run.path / MARK, text.encode(), parents=False)


def _records(run: Run) -> dict:
    found = (read_mark(run.path) or {}).get("copies")
    return found if isinstance(found, dict) else {}


def claim_copy(run: Run, folder: Path) -> str:
    """Make the copy in `folder` this run's to write; whose it was, in words, if another session's.

    Raises:
        NewLLMError: it cannot be written now; it is claimed as soon as it can.
        UsageError: what lies there is no copy of a run.
    """
    owner = CopyOwner(run, Run(folder / run.name))
    owner.postpone()
    with explained(owner.copy.path):
        owner.take_place()
        return owner.claim()


def _owner(copy: Path) -> dict:
    owner = (read_mark(copy) or {}).get("owner")
    return owner if isinstance(owner, dict) else {}


def this_machine(run: Run) -> dict:
    """A run's folder on one machine, since that last booted."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return {
        "host": socket.gethostname(),
        "boot": boot.read_text().strip() if boot.is_file() else "",
        "path": os.path.realpath(run.path),
    }
