"""Data sets of the Hugging Face hub, streamed at one commit: nothing is kept but what is packed.

`datasets` is imported here alone, when a hub set is used.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from newllm_lib import console, hub
from newllm_lib.data.cache import key_hash, write_file
from newllm_lib.data.readers.base import (
    HUB_SPLIT_NAMES,
    DataFile,
    DatasetInfo,
    FileReader,
    HubName,
    Segment,
    Source,
    in_segments,
)
from newllm_lib.data.readers.parquetfiles import groups_in, read_group
from newllm_lib.data.records import Record
from newllm_lib.data.schemas import parse_row
from newllm_lib.errors import UsageError

if TYPE_CHECKING:
    from datasets import IterableDatasetDict
    from pyarrow.parquet import ParquetFile


class HubSource(Source):
    """The splits of one data set on the hub, at one commit.

    What is found out about it (commit, names of the splits) is noted in the cache, so that data packed
    earlier can be used again without a network.

    Args:
        parse: how a row becomes a record; default: by the columns that it has.
        or_newest: take the newest commit, and say so, if the hub has no such revision (any more).
        commit: take this one, whatever the revision means by now.
        split_names: what the set may call its splits, and what they are; of two names for one split the first
            here counts.

    Raises:
        NewLLMError: the hub cannot be reached, or has no such data set.
    """

    layout = "records"  # part of the fingerprint: what is made of the rows

    def __init__(
        self,
        name: HubName,
        cache: Path,
        parse: Callable[[object], Record | None] = parse_row,
        or_newest: bool = False,
        commit: str = "",
        split_names: dict[str, str] = HUB_SPLIT_NAMES,
    ):
        self.name, self.parse, self.split_names = name, parse, split_names
        self.or_newest, self.revision = or_newest and not commit, commit or name.revision
        noted = {"revision": name.revision} | (
            {} if split_names is HUB_SPLIT_NAMES else {"splits": split_names}
        )
        self._memo = (
            cache / "hub" / f"{str(name).replace('/', '--').replace(':', '--')}-{key_hash(noted)}.json"
        )
        self._loaded: IterableDatasetDict | None = None
        self._files: dict[str, list[DataFile]] | None = None
        self.commit, self._names = self._describe()
        self.splits = self._names.keys()
        self.title = f"{name} (commit {self.commit[:8]})"

    @classmethod
    def of(cls, info: DatasetInfo, cache: Path, commit: str) -> Source:
        # a commit may be gone where the set was copied to; a branch is not the newest commit
        or_newest = re.fullmatch("[0-9a-f]{40}", info.revision) is not None
        name = HubName.parse(f"{info.home}@{info.revision}")
        assert name is not None  # our own table names sets of the hub
        return cls(name, cache, info.schema.record if info.schema else parse_row, or_newest, commit)

    def fingerprint(self, split: str) -> str:
        return f"{self.name}@{self.commit}/{self._names[split]}/{self.layout}"

    def rows(self, split: str, columns: frozenset[str] | None = None) -> Iterator[tuple[str, object]]:
        """As `Source.rows`. After a failure the reading goes on where it stopped."""
        done, failures = 0, 0
        stream = self._load(self.commit)[self._names[split]]
        while True:
            try:
                for row in stream.skip(done) if done else stream:
                    yield f"{self.name}, {split} row {done + 1}", row
                    done, failures = done + 1, 0
                return
            except Exception as error:
                explained = hub.explain(error, self._asked)
                if failures == len(hub.DELAYS) or not isinstance(explained, hub.HubUnreachable):
                    raise explained from error
            hub.wait(hub.DELAYS[failures], explained)
            failures += 1

    def files(self, split: str) -> list[DataFile] | None:
        """As `Source.files`; noted too, since what they hold at one commit never changes."""
        if self._files is None:
            memo = self._memo.with_suffix(f".{self.commit}.files.json")
            try:
                self._files = {
                    s: [DataFile(*f) for f in part] for s, part in json.loads(memo.read_text()).items()
                }
            except (OSError, ValueError, TypeError):
                self._files = hub.patiently(self._list_files, self._asked)
                write_file(memo, json.dumps(self._files))
        return in_segments(self._files[split])

    @property
    def _asked(self) -> hub.Asked:
        """How it is named where the hub does not give it."""
        return hub.Asked(
            f"Data set {self.name}", "name another id, or use files of your own with --data_dir FOLDER"
        )

    def reader(self) -> FileReader:
        return HubReader(self._asked)

    def _describe(self) -> tuple[str, dict[str, str]]:
        """The commit, and what the set itself calls each of its splits."""
        known = self._noted()
        if known and known[0] == self.revision:  # a commit never comes to mean something else
            return known
        try:
            commit = hub.patiently(self._find_commit, self._asked)
            if known and known[0] != commit and self.revision == self.name.revision:
                console.say(f"Data set {self.name} has moved from commit {known[0][:8]} to {commit[:8]}.")
            splits = self._find_splits(commit)
        except hub.HubUnreachable as problem:
            if not known:
                raise
            console.say(f"{problem.short}. Going on with its commit {known[0][:8]}, the last one seen.")
            return known
        write_file(self._memo, json.dumps({"commit": commit, "splits": splits}))
        return commit, splits

    def _noted(self) -> tuple[str, dict[str, str]] | None:
        try:
            noted = json.loads(self._memo.read_text(encoding="utf-8"))
            return str(noted["commit"]), dict(noted["splits"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _find_commit(self) -> str:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import RevisionNotFoundError

        api, repository, revision = HfApi(), self.name.repository, self.revision
        try:
            return api.dataset_info(repository, revision=revision, timeout=30).sha
        except RevisionNotFoundError:
            if not self.or_newest:
                raise
        console.say(
            f"Data set {self.name} has no revision {revision[:8]} on this hub: taking the newest one."
        )
        return api.dataset_info(repository, timeout=30).sha

    def _find_splits(self, commit: str) -> dict[str, str]:
        names = list(self._load(commit))
        known = list(self.split_names)
        ours = sorted(
            (n for n in names if n.lower() in known), key=lambda n: known.index(n.lower()), reverse=True
        )
        splits = {self.split_names[n.lower()]: n for n in ours}
        if "train" not in splits:
            raise UsageError(
                f"Data set {self.name} has no train split (it has {', '.join(names)}): name another id."
            )
        return splits

    def _load(self, commit: str) -> IterableDatasetDict:
        """The splits as `datasets` streams them; nothing but names is downloaded yet."""
        if self._loaded is None:
            import datasets

            datasets.disable_progress_bars()
            repository, config = self.name.repository, self.name.config
            self._loaded = hub.patiently(
                lambda: datasets.load_dataset(repository, config, revision=commit, streaming=True),
                self._asked,
            )
        return self._loaded

    def _list_files(self) -> dict[str, list[DataFile]]:
        import datasets
        from huggingface_hub import HfFileSystem

        datasets.disable_progress_bars()
        system = HfFileSystem()
        builder = datasets.load_dataset_builder(self.name.repository, self.name.config, revision=self.commit)
        places = builder.config.data_files or {}
        return {
            split: [DataFile(str(place), system.info(str(place))["size"]) for place in places.get(name, [])]
            for split, name in self._names.items()
        }


class HubReader:
    """Reads pieces of the hub's files; what fails is tried again."""

    def __init__(self, asked: hub.Asked):
        self.asked = asked
        self.delays = hub.DELAYS[:2]  # the hub's file system already tries again for half a minute

    def read(self, place: str, begin: int, end: int) -> bytes:
        from huggingface_hub import HfFileSystem

        def action() -> bytes:
            # without a cache exactly these bytes are asked for
            with HfFileSystem().open(place, "rb", cache_type="none") as file:
                file.seek(begin)
                data = file.read(end - begin)
                if len(data) < min(end, file.size) - begin:
                    raise ConnectionError("the answer was cut short")
                return data

        return hub.patiently(action, self.asked, self.delays)

    def row_groups(self, segment: Segment, columns: frozenset[str] | None) -> Iterator[list[dict]]:
        """A row group is held in memory as a whole."""
        from huggingface_hub import HfFileSystem
        from pyarrow.parquet import ParquetFile

        def opened() -> ParquetFile:
            return ParquetFile(HfFileSystem().open(segment.place, "rb"))

        groups = hub.patiently(lambda: groups_in(opened(), segment), self.asked, self.delays)
        for group in groups:
            read = partial(lambda group: read_group(opened(), group, columns), group)
            yield hub.patiently(read, self.asked, self.delays)

    def columns_beside(self, segment: Segment, columns: frozenset[str]) -> dict[str, int]:
        """None: who takes a set of the hub by its name has not made its columns."""
        return {}
