"""Asking the Hugging Face hub: patiently, and with errors that say what to do.

`huggingface_hub` and `datasets` retry a failing download of a file, but not a failing answer of the hub's API
or a connection that breaks while it answers, and take up to a minute to find out that there is no network. So
there is a quick look whether the hub can be reached at all, and a retry with back-off around everything.
"""

from __future__ import annotations

import socket
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from newllm_lib import console
from newllm_lib.errors import NewLLMError, UsageError

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
        wait(delay, explained)
    raise AssertionError("unreachable")


def wait(delay: float, problem: HubUnreachable) -> None:
    """Say what failed, and when it is tried again."""
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
                raise HubUnreachable(
                    asked, f"no connection to {url.hostname}: {error.strerror or error}"
                ) from error
        time.sleep(min(1.0, DELAYS[0]))


def explain(error: Exception, asked: Asked) -> NewLLMError:
    """The line for the user; `HubUnreachable` where trying again may help."""
    chain = _chain(error)
    for known in chain:
        if isinstance(known, NewLLMError):
            return known
    kinds = {type(e).__name__ for e in chain}
    status = next(
        (s for s in (getattr(getattr(e, "response", None), "status_code", None) for e in chain) if s), None
    )
    text = " ".join(str(e) for e in chain)
    what, instead = asked
    if "GatedRepoError" in kinds or "is a gated" in text or status == 403:
        return NewLLMError(
            f"{what} is gated: accept its terms on its page on the hub and give a token of yours (`hf auth "
            f"login`, or HF_TOKEN, in Colab a secret), or {instead}."
        )
    if "HFValidationError" in kinds:
        return UsageError(f"{what}: the hub knows no such name. Write it as OWNER/NAME, or {instead}.")
    if "RevisionNotFoundError" in kinds:
        return UsageError(f"{what} has no such revision on the hub: {instead}.")
    if status in (401, 404) or kinds & {
        "RepositoryNotFoundError",
        "DatasetNotFoundError",
        "EntryNotFoundError",
    }:
        return UsageError(
            f"{what} is not on the hub, or it is private ({status or 404}): check the id, log in with `hf "
            f"auth login`, or {instead}."
        )
    if status in TRANSIENT:
        return HubUnreachable(asked, f"it answers {status}")
    if any(
        isinstance(e, ConnectionError | TimeoutError | socket.gaierror) or _is_http_client(e) for e in chain
    ):
        return HubUnreachable(asked, f"the connection broke: {_one_line(error)}")
    if "Config name is missing" in text or "BuilderConfig" in text:
        return UsageError(
            f"{what}: {_one_line(error, 300)} Write the configuration after the id: owner/name:CONFIG."
        )
    if "scripts are no longer supported" in text:
        return UsageError(
            f"{what} is a script, which is no longer run: try its @refs/convert/parquet, or {instead}."
        )
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
