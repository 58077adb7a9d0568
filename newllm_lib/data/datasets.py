"""The data sets that are known by name, and the source that a recipe's data comes from.

A new set is a line in `REGISTRY`, copied from its neighbour: see docs/guides/add-a-dataset.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from newllm_lib.data import readers, schemas
from newllm_lib.data.readers.base import DatasetInfo, HubName, Reading, Source
from newllm_lib.errors import UsageError

if TYPE_CHECKING:
    from newllm_lib.recipe import Recipe

REGISTRY = {
    "demo": DatasetInfo(
        title="ChitChat",
        home="chitchat-dataset",
        revision="0.9.0",
        licence="MIT",
        reader="ChitChatSource",
    ),
    "wikitext": DatasetInfo(
        title="WikiText-2",
        home="Salesforce/wikitext:wikitext-2-raw-v1",
        revision="b08601e04326c79dfdd32d625aee71d232d685c3",
        licence="CC BY-SA 3.0 and GFDL",
        reader="WikiTextSource",
    ),
    "tinystories": DatasetInfo(
        title="TinyStories",
        home="roneneldan/TinyStories",
        revision="main",
        licence="CDLA-Sharing-1.0",
        reader="HubSource",
    ),
    "dolly": DatasetInfo(
        title="Dolly-15k",
        home="databricks/databricks-dolly-15k",
        revision="bdd27f4d94b9c1f951818a7da7fd7aeea5dbff1a",
        licence="CC BY-SA 3.0",
        reader="HubSource",
        schema=schemas.DOLLY,
    ),
    "dailydialog": DatasetInfo(
        title="DailyDialog",
        home="li2017dailydialog/daily_dialog",
        # the set itself is a script; the hub keeps a converted copy on this branch
        revision="refs/convert/parquet",
        licence="CC BY-NC-SA 4.0",
        reader="HubSource",
        schema=schemas.DIALOG,
    ),
    "hh_rlhf": DatasetInfo(
        title="HH-RLHF",
        home="Anthropic/hh-rlhf",
        revision="09be8c5bbc57cb3887f3a9732ad6aa7ec602a1fa",
        licence="MIT",
        reader="HubSource",
        schema=schemas.CHOSEN,
    ),
    "ultrachat": DatasetInfo(
        title="UltraChat",
        home="stingning/ultrachat",
        revision="f220fe796ce3ed62fbe1681b45ce6cbc9c6cabe0",
        licence="MIT",
        reader="HubSource",
        schema=schemas.ULTRACHAT,
    ),
    "ultrachat_200k": DatasetInfo(
        title="UltraChat 200k",
        home="HuggingFaceH4/ultrachat_200k",
        revision="8049631c405ae6576f93f445c6b8166f76f5505a",
        licence="MIT",
        reader="HubSource",
        schema=schemas.MESSAGES,
    ),
    "code_alpaca": DatasetInfo(
        title="CodeAlpaca-20k",
        home="sahil2801/CodeAlpaca-20k",
        revision="main",
        licence="CC BY 4.0",
        reader="HubSource",
        schema=schemas.ALPACA,
    ),
    "dolly_ja": DatasetInfo(
        title="Dolly-15k in Japanese",
        home="kunishou/databricks-dolly-15k-ja",
        revision="f2b1a9fa32dc019a7c960367b2896e31c9f83f8e",
        licence="CC BY-SA 3.0",
        reader="HubSource",
        schema=schemas.ALPACA,
    ),
    "alpaca_ja": DatasetInfo(
        title="Alpaca in Japanese",
        home="fujiki/japanese_alpaca_data",
        revision="e6eaffc1b1e37df94808dc5473bb18873bf80eaa",
        licence="CC BY-NC-SA 4.0",
        reader="HubSource",
        schema=schemas.ALPACA,
    ),
}


def open_source(recipe: Recipe, cache: Path, commit: str = "") -> Source:
    """The source that a recipe names by `data_dir` or `data`.

    Args:
        commit: of the hub, to use instead of the newest: what a run was started with.

    Raises:
        UsageError: an unknown name, a folder that is not there, or files that are missing or ambiguous.
        NewLLMError: the hub cannot be reached, or a package is not installed.
    """
    place, reading = Path(recipe.data_dir or recipe.data).expanduser(), reading_of(recipe)
    if recipe.data_dir:
        return open_with("FolderSource", place, reading=reading)
    if recipe.data in REGISTRY:
        return REGISTRY[recipe.data].open(cache, commit)
    if place.is_file() or place.is_dir():
        paths = {"train": [place]} if place.is_file() else None
        return open_with("FolderSource", place, paths, reading=reading)
    name = HubName.parse(recipe.data)
    if name is None and place.exists():
        raise UsageError(
            f"--data {recipe.data} is neither a file nor a folder (a pipe, or a device): write what comes "
            "from it into a file first, and name that."
        )
    if name is None:
        raise UsageError(
            f"Unknown data {recipe.data!r}: use {', '.join(REGISTRY)}, a hub id such as owner/name or "
            "owner/name:config, or a file or folder of your own (there is none of this name)."
        )
    # WikiText in another configuration or revision
    is_wikitext = name.repository == REGISTRY["wikitext"].home.partition(":")[0]
    return open_with("WikiTextSource" if is_wikitext else "HubSource", name, cache, commit=commit)


def reading_of(recipe: Recipe) -> Reading:
    """How the recipe wants files of the user's to be read."""
    return Reading(getattr(recipe, "encoding", None) or "", getattr(recipe, "documents", "auto"))


def open_with(reader: str, *place: object, **how: object) -> Source:
    """A source by the name of its class in `readers`, as the registry has it."""
    return getattr(readers, reader)(*place, **how)
