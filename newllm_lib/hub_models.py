"""Files of models and tokenizers on the hub, fetched into its cache: text and safetensors alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from newllm_lib.hub import Asked, patiently
from newllm_lib.plain_yaml import NoYaml, load_yaml

TEXT_FILES = ("*.json", "*.txt", "*.jinja", "*.model", "*.tiktoken", "recipe.yaml", "README.md")
# The hub's own converter offers the weights of many a model as safetensors, in a pull request of its author.
_CONVERTER, _CONVERSION = "SFconvertbot", "Adding `safetensors` variant of this model"


def cached_snapshot(name: str, is_complete: Callable[[Path], bool]) -> Path | None:
    """The folder of a repository in the hub's cache, if all that is needed was downloaded before."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    for revision in ("main", *_cached_conversions(name)):
        try:
            folder = Path(snapshot_download(name, revision=revision, local_files_only=True))
        except (LocalEntryNotFoundError, HFValidationError, FileNotFoundError):
            continue
        if is_complete(folder):
            return folder
    return None


def fetch(name: str, patterns: Sequence[str], asked: Asked, revision: str = "main") -> Path:
    """Download what matches `patterns` at the top of a repository; returns the folder in the hub's cache.

    Raises:
        UsageError: the hub has no such model.
        NewLLMError: it is gated, or the hub cannot be reached.
    """
    from huggingface_hub import snapshot_download

    def download() -> Path:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=list(patterns),
                ignore_patterns=["*/*", "consolidated*"],
            )
        )

    return patiently(download, asked)


def list_files(name: str, asked: Asked) -> list[str]:
    """Names of all files of a repository. Raises: as `fetch`."""
    from huggingface_hub import HfApi

    return patiently(lambda: HfApi().list_repo_files(name), asked)


def converted_revision(name: str, asked: Asked) -> str | None:
    """Where the hub's converter offers the same weights as safetensors; None: nowhere. Raises: as `fetch`."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    def find() -> str | None:
        try:
            offers = HfApi().get_repo_discussions(
                repo_id=name, author=_CONVERTER, discussion_type="pull_request"
            )
            return next((offer.git_reference for offer in offers if offer.title == _CONVERSION), None)
        except HfHubHTTPError as error:
            if error.response.status_code in (403, 404, 410):  # a repository without discussions
                return None
            raise

    return patiently(find, asked)


def _cached_conversions(name: str) -> list[str]:
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.file_download import repo_folder_name

    try:
        repository = repo_folder_name(repo_id=name, repo_type="model")
    except HFValidationError:  # no name of the hub's
        return []
    folder = Path(constants.HF_HUB_CACHE) / repository / "refs" / "refs" / "pr"
    return [f"refs/pr/{path.name}" for path in sorted(folder.iterdir())] if folder.is_dir() else []


def licence_of(folder: Path) -> str | None:
    """The licence that the card in a model's folder names; None: it names none."""
    card = read_card(folder)
    return str(card.get("license_name") or card["license"]) if card.get("license") else None


def read_card(folder: Path) -> dict:
    """What stands before the text of a model's card, its README.md; empty where there is none to read."""
    card = folder / "README.md"
    if not card.is_file():
        return {}
    _, front, *_ = [*card.read_text(encoding="utf-8", errors="replace").split("---", 2), "", ""]
    try:
        known = load_yaml(front)
    except NoYaml:
        return {}
    return known if isinstance(known, dict) else {}
