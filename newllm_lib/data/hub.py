"""Reading data sets from the Hugging Face hub: row by row, patiently, and with errors that say what to do.

`huggingface_hub` and `datasets` retry a failing download of a file, but not a failing answer of the hub's API or a
connection that breaks while it answers, and take up to a minute to find out that there is no network. So there is a
quick look whether the hub can be reached at all, and a retry with back-off around everything. `datasets` is imported
here alone, when a hub set is used.
"""

from __future__ import annotations

import json
import re
import socket
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

from newllm_lib import console
from newllm_lib.data.cache import write_file
from newllm_lib.data.folder import SPLIT_NAMES
from newllm_lib.data.segments import DataFile, Segment, groups_in, read_group
from newllm_lib.errors import NewLLMError, UsageError

# what the hub's sets call their splits: also the halves for supervised fine-tuning of ultrachat_200k and its like
HUB_SPLIT_NAMES = {**SPLIT_NAMES, "train_sft": "train", "test_sft": "test"}
DELAYS = (1.0, 2.0, 4.0, 8.0)  # seconds between attempts
CONNECT_SECONDS = 5.0  # a hub that has not answered by then is not there
TRANSIENT = {408, 425, 429, 500, 502, 503, 504}
_HTTP_CLIENTS = {"httpx", "httpx2", "httpcore", "requests", "urllib3", "aiohttp"}
T = TypeVar("T")


class Asked(NamedTuple):
    """What is asked of the hub, in words for its user."""

    what: str  # "Data set owner/name"
    instead: str  # the way on without it


class HubUnreachable(NewLLMError):
    """The hub cannot be reached, or does not do its work at the moment."""

    def __init__(self, asked: Asked, cause: str):
        self.short = f"{asked.what}: {cause}"
        super().__init__(
            f"{asked.what} cannot be read from the Hugging Face hub ({cause}): "
            f"check the network and try again, or {asked.instead}."
        )


class HubName(NamedTuple):
    """A data set on the hub, written `owner/name`, `owner/name:config` or `owner/name:config@revision`."""

    repository: str
    config: str | None = None
    revision: str = "main"

    @classmethod
    def parse(cls, text: str) -> HubName | None:
        """None where `text` cannot be a hub id."""
        match = re.fullmatch(r"([\w.-]+/[\w.-]+)(?::([\w.-]+))?(?:@([\w./-]+))?", text)
        return cls(match[1], match[2], match[3] or "main") if match else None

    @property
    def asked(self) -> Asked:
        return Asked(f"Data set {self}", "name another id, or use files of your own with --data_dir FOLDER")

    def __str__(self) -> str:
        return self.repository + (f":{self.config}" if self.config else "")


class HubDataset:
    """The splits of one data set on the hub, at one commit.

    What is found out about it (commit, names of the splits) is noted in `memo`, so that data packed earlier can be
    used again without a network.

    Args:
        or_newest: take the newest commit, and say so, if the hub has no such revision (any more).
        split_names: what the set may call its splits, and what they are; of two names for one split the first here counts.
        commit: take this one, whatever the revision means by now.
    """

    def __init__(
        self, name: HubName, memo: Path, or_newest: bool = False, split_names: dict[str, str] = HUB_SPLIT_NAMES,
        commit: str = "",
    ):  # fmt: skip
        self.name, self.memo, self.split_names = name, memo, split_names
        self.or_newest, self.revision = or_newest and not commit, commit or name.revision
        self._loaded = None
        self.commit, self.splits = self._describe()
        self._files: dict[str, list[DataFile]] | None = None

    def _describe(self) -> tuple[str, dict[str, str]]:
        known = self._noted()
        if known and known[0] == self.revision:  # a commit never comes to mean something else
            return known
        try:
            commit = patiently(self._find_commit, self.name.asked)
            if known and known[0] != commit and self.revision == self.name.revision:
                console.say(f"Data set {self.name} has moved from commit {known[0][:8]} to {commit[:8]}.")
            splits = self._splits(commit)
        except HubUnreachable as problem:
            if not known:
                raise
            console.say(f"{problem.short}. Going on with its commit {known[0][:8]}, the last one seen.")
            return known
        write_file(self.memo, json.dumps({"commit": commit, "splits": splits}))
        return commit, splits

    def _noted(self) -> tuple[str, dict[str, str]] | None:
        try:
            noted = json.loads(self.memo.read_text(encoding="utf-8"))
            return str(noted["commit"]), dict(noted["splits"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def files(self, split: str) -> list[DataFile]:
        """The files of a split in order; noted too, since what they hold at one commit never changes."""
        if self._files is None:
            memo = self.memo.with_suffix(f".{self.commit}.files.json")
            try:
                self._files = {s: [DataFile(*f) for f in part] for s, part in json.loads(memo.read_text()).items()}
            except (OSError, ValueError, TypeError):
                self._files = patiently(self._list_files, self.name.asked)
                write_file(memo, json.dumps(self._files))
        return self._files[split]

    def _list_files(self) -> dict[str, list[DataFile]]:
        import datasets
        from huggingface_hub import HfFileSystem

        datasets.disable_progress_bars()
        hub = HfFileSystem()
        builder = datasets.load_dataset_builder(self.name.repository, self.name.config, revision=self.commit)
        places = builder.config.data_files or {}
        return {
            split: [DataFile(str(place), hub.info(str(place))["size"]) for place in places.get(name, [])]
            for split, name in self.splits.items()
        }

    def _find_commit(self) -> str:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import RevisionNotFoundError

        api, repository, revision = HfApi(), self.name.repository, self.revision
        try:
            return api.dataset_info(repository, revision=revision, timeout=30).sha
        except RevisionNotFoundError:
            if not self.or_newest:
                raise
        console.say(f"Data set {self.name} has no revision {revision[:8]} on this hub: taking the newest one.")
        return api.dataset_info(repository, timeout=30).sha

    def _load(self, commit: str):
        """The data set's splits as `datasets.IterableDatasetDict`; nothing but names is downloaded yet."""
        if self._loaded is None:
            import datasets

            datasets.disable_progress_bars()
            self._loaded = patiently(
                lambda: datasets.load_dataset(
                    self.name.repository, self.name.config, revision=commit, streaming=True
                ), self.name.asked,
            )  # fmt: skip
        return self._loaded

    def _splits(self, commit: str) -> dict[str, str]:
        names = list(self._load(commit))
        known = list(self.split_names)
        ours = sorted((n for n in names if n.lower() in known), key=lambda n: known.index(n.lower()), reverse=True)
        splits = {self.split_names[n.lower()]: n for n in ours}
        if "train" not in splits:
            raise UsageError(f"Data set {self.name} has no train split (it has {', '.join(names)}): name another id.")
        return splits

    def rows(self, split: str) -> Iterator[dict]:
        """The rows of a split in order. After a failure the reading goes on where it stopped."""
        done, failures = 0, 0
        stream = self._load(self.commit)[self.splits[split]]
        while True:
            try:
                for row in stream.skip(done) if done else stream:
                    yield row
                    done, failures = done + 1, 0
                return
            except Exception as error:
                explained = explain(error, self.name.asked)
                if failures == len(DELAYS) or not isinstance(explained, HubUnreachable):
                    raise explained from error
            _wait(DELAYS[failures], explained)
            failures += 1


class HubReader:
    """Reads pieces of the hub's files (`segments.Reader`); what fails is tried again."""

    def __init__(self, asked: Asked):
        self.asked = asked
        self.delays = DELAYS[:2]  # the hub's file system already tries again for half a minute

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

        return patiently(action, self.asked, self.delays)

    def row_groups(self, segment: Segment, columns: frozenset[str]) -> Iterator[list[dict]]:
        """A row group is held in memory as a whole."""
        from huggingface_hub import HfFileSystem
        from pyarrow.parquet import ParquetFile

        def opened() -> ParquetFile:
            return ParquetFile(HfFileSystem().open(segment.place, "rb"))

        groups = patiently(lambda: groups_in(opened(), segment), self.asked, self.delays)
        for group in groups:
            yield patiently(lambda group=group: read_group(opened(), group, columns), self.asked, self.delays)


def patiently(action: Callable[[], T], asked: Asked, delays: tuple[float, ...] = ()) -> T:
    """`action()`, tried again after failures that may pass: `DELAYS` or `delays` seconds later.

    Raises:
        NewLLMError: one line that names what was asked for, the cause and the way on.
    """
    delays = delays or DELAYS
    for delay in (*delays, None):
        try:
            check_reachable(asked)
            return action()
        except HubUnreachable:
            raise
        except Exception as error:
            explained = explain(error, asked)
            if delay is None or not isinstance(explained, HubUnreachable):
                raise explained from error
        _wait(delay, explained)
    raise AssertionError("unreachable")


def _wait(delay: float, problem: HubUnreachable) -> None:
    console.say(f"  {problem.short}; trying again in {delay:g} s")
    time.sleep(delay)


def check_reachable(asked: Asked) -> None:
    """Find out within seconds whether anything answers where the hub (or the proxy in front of it) should be.

    Raises:
        HubUnreachable: nothing does, or HF_HUB_OFFLINE is set.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise HubUnreachable(asked, "HF_HUB_OFFLINE is set")
    url = urllib.parse.urlsplit(constants.ENDPOINT)
    proxy = urllib.request.getproxies().get(url.scheme)
    if proxy and not urllib.request.proxy_bypass(url.hostname):
        url = urllib.parse.urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    port = url.port or (443 if url.scheme == "https" else 80)
    for last in (False, True):
        try:
            socket.create_connection((url.hostname, port), timeout=CONNECT_SECONDS).close()
            return
        except OSError as error:
            if last:
                raise HubUnreachable(asked, f"no connection to {url.hostname}: {error.strerror or error}") from error
        time.sleep(min(1.0, DELAYS[0]))


def explain(error: Exception, asked: Asked) -> NewLLMError:
    """The line for the user; `HubUnreachable` where trying again may help."""
    chain = _chain(error)
    for known in chain:
        if isinstance(known, NewLLMError):
            return known
    kinds = {type(e).__name__ for e in chain}
    status = next((s for s in (getattr(getattr(e, "response", None), "status_code", None) for e in chain) if s), None)
    text = " ".join(str(e) for e in chain)
    what, instead = asked
    if "GatedRepoError" in kinds or "is a gated" in text or status == 403:
        return NewLLMError(
            f"{what} is gated: accept its terms on its page on the hub and log in with `hf auth login`, or {instead}."
        )
    if "RevisionNotFoundError" in kinds:
        return UsageError(f"{what} has no such revision on the hub: {instead}.")
    if status in (401, 404) or kinds & {"RepositoryNotFoundError", "DatasetNotFoundError", "EntryNotFoundError"}:
        return UsageError(
            f"{what} is not on the hub, or it is private ({status or 404}): check the id, log in with `hf auth login`, "
            f"or {instead}."
        )
    if status in TRANSIENT:
        return HubUnreachable(asked, f"it answers {status}")
    if any(isinstance(e, ConnectionError | TimeoutError | socket.gaierror) or _is_http_client(e) for e in chain):
        return HubUnreachable(asked, f"the connection broke: {_one_line(error)}")
    if "Config name is missing" in text or "BuilderConfig" in text:
        return UsageError(f"{what}: {_one_line(error, 300)} Write the configuration after the id: owner/name:CONFIG.")
    if "scripts are no longer supported" in text:
        return UsageError(f"{what} is a script, which is no longer run: try its @refs/convert/parquet, or {instead}.")
    return NewLLMError(f"{what} cannot be loaded ({type(error).__name__}: {_one_line(error)}): {instead}.")


def _chain(error: BaseException | None) -> list[BaseException]:
    chain = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    return chain


def _is_http_client(error: BaseException) -> bool:
    return any(c.__module__.split(".")[0] in _HTTP_CLIENTS for c in type(error).__mro__)


def _one_line(error: Exception, length: int = 160) -> str:
    return " ".join(str(error).split())[:length] or type(error).__name__
