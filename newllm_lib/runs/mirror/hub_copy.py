"""A run's second copy in a repository of the Hugging Face hub: `--mirror_dir hf://OWNER/NAME`.

A folder there is what a folder on Drive is. All that changed is one commit, made on top of the one that was
looked at. So what is there is whole, and of two sessions the one that started first learns that the copy is
the other's before it changes anything. What another session left is replaced when ours can be continued; the
repository's history keeps it.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import uuid
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from newllm_lib.errors import UsageError
from newllm_lib.hub import Asked, HubUnreachable, patiently
from newllm_lib.runs.mirror.owner import read_record, this_machine, write_record
from newllm_lib.runs.mirror.restore import bring_all, is_ahead
from newllm_lib.runs.ownership import MARK, mark_text, read_mark
from newllm_lib.runs.run import HUB, Run, checkpoint_step


class HubCopy(Run):
    """The copy of a run in a repository, as its newest commit has it.

    Its `path` is a folder here with the copy's small files, as far as they were fetched.
    """

    def __init__(self, place: str, name: str):
        """
        Raises:
            UsageError: the place is no repository, or no token is given.
        """
        self._folder = tempfile.TemporaryDirectory(prefix="newllm_hub_")
        super().__init__(Path(self._folder.name) / name)
        self.repository, self.where = repository_of(place), f"{place.rstrip('/')}/{name}"
        self.commit: str | None = None
        self.files: frozenset[str] = frozenset()

    def look(self) -> HubCopy:
        """Find out what is there now.

        Raises:
            Whatever `huggingface_hub` does.
        """
        from huggingface_hub import HfApi
        from huggingface_hub.errors import RepositoryNotFoundError

        try:
            about = HfApi().repo_info(self.repository)
        except RepositoryNotFoundError:
            return self
        inside, names = f"{self.name}/", [file.rfilename for file in about.siblings or ()]
        self.commit = about.sha
        self.files = frozenset(name.removeprefix(inside) for name in names if name.startswith(inside))
        for name in {MARK, self.recipe_path.name, self.status_path.name} & self.files:
            self.fetch(name)
        return self

    def checkpoints(self) -> list[Path]:
        found = {name.partition("/")[0] for name in self.files if re.match(r"checkpoint-\d+/", name)}
        return sorted((self.path / name for name in found), key=checkpoint_step)

    def owner(self) -> dict:
        """Who writes it, by its mark."""
        found = (read_mark(self.path) or {}).get("owner") if MARK in self.files else None
        return found if isinstance(found, dict) else {}

    def fetch(self, name: str) -> Path:
        from huggingface_hub import hf_hub_download

        return Path(
            hf_hub_download(
                self.repository, f"{self.name}/{name}", revision=self.commit, local_dir=self.path.parent
            )
        )

    def bring_back(self, run: Run) -> None:
        """Make `run` what is here. A download that was cut off goes on where it was.

        Raises:
            NewLLMError: the hub cannot be reached, or what came is damaged or not to be trusted.
        """
        from huggingface_hub import snapshot_download

        folder = run.path.absolute().parent / f".{run.name}.from_hub"
        wanted = {"revision": self.commit, "allow_patterns": [f"{self.name}/*"], "local_dir": folder}
        asked = Asked(f"The copy {self.where}", "leave out --mirror_dir")
        patiently(lambda: snapshot_download(self.repository, **wanted), asked)
        bring_all(Run(folder / self.name), run)
        shutil.rmtree(folder)
        if owner := self.owner():
            write_record(run, self.where, owner | {"continues": True})

    def claim(self, run: Run) -> str:
        """Make it this run's to write, in a commit; who wrote it before, in words, if another session."""
        before, record = self.owner(), read_record(run, self.where) or {}
        write_record(run, self.where, {**record, "pending": True} if record else None)
        ours = bool(record) and record["life"] == before.get("life")
        if not (ours and this_machine(run).items() <= record.items()):
            start = datetime.now(timezone.utc).isoformat(timespec="seconds")
            continues = not self.files or (ours and record["continues"] and not is_ahead(self, run))
            record = this_machine(run) | {"life": uuid.uuid4().hex, "start": start, "continues": continues}
            mark = mark_text("mirror", run.name, owner=record).encode()
            self.change({MARK: mark}, [], f"{run.name}: written by {record['host']} from now on")
        write_record(run, self.where, {**record, "pending": False})
        return "" if ours or not before else f"{before.get('host')} (since {before.get('start')})"

    def change(self, added: dict[str, bytes | Path], gone: list[str], message: str) -> None:
        """One commit on top of what was looked at; the repository is made, private, if it is not there."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

        if self.commit is None:
            HfApi().create_repo(self.repository, private=True, exist_ok=True)
            self.look()
        operations: list[Any] = [CommitOperationDelete(f"{self.name}/{name}") for name in gone]
        operations += [CommitOperationAdd(f"{self.name}/{name}", content) for name, content in added.items()]
        HfApi().create_commit(self.repository, operations, commit_message=message, parent_commit=self.commit)
        self.look()


def repository_of(place: str) -> str:
    """`OWNER/NAME` of `hf://OWNER/NAME`.

    Raises:
        UsageError: it is none, or there is no token.
    """
    from huggingface_hub import get_token

    repository = place.removeprefix(HUB).strip("/")
    if repository.count("/") != 1:
        raise UsageError(f"{place}: give a repository of the hub as hf://OWNER/NAME.")
    if not get_token():
        raise UsageError(
            f"{place} needs a token with write access: set HF_TOKEN (in Colab: as a secret, under the key "
            "icon)."
        )
    return repository


def copy_on_hub(place: str, name: str, tell: Callable[[str], None]) -> HubCopy:
    """The copy as it is there now; where the hub cannot be reached, as if there were none.

    Raises:
        UsageError: no repository, no token, or a token that the hub refuses.
    """
    copy = HubCopy(place, name)
    try:
        patiently(copy.look, Asked(copy.where, "leave out --mirror_dir"))
    except HubUnreachable as error:
        tell(f"{error.short}: the run goes on here, and is copied when the hub can be reached again")
    return copy
