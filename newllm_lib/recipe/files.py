"""Reading recipe files."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from newllm_lib.errors import UsageError

_LARGEST = 2**20  # bytes
SHIPPED = Path(__file__).parents[1] / "recipes"
_PLACES = ("data_dir", "output_dir", "mirror_dir")
_NAMES_OR_PLACES = ("data", "tokenizer", "base", "from", "from_run", "teacher", "resume", "reward")
_NAMES = ("auto", "bpe", "gpt2", "last", "never", "words")  # those of no recipe that are never a folder's


def read_yaml(path: Path) -> dict:
    """A YAML file of `key: value` lines.

    Raises:
        UsageError: unreadable, or something else than such lines (names the line). A file with references
            (`*name`) is one: a few lines of them stand for more than any memory holds.
    """
    from newllm_lib.plain_yaml import NoYaml, load_yaml

    try:
        if path.exists() and not path.is_file():
            raise UsageError(f"{path} is no file (a folder, a pipe or a device): name a recipe's file.")
        with open(path, encoding="utf-8") as file:
            text = file.read(_LARGEST + 1)
        if len(text) > _LARGEST:
            raise NoYaml("holds more than a recipe's length")
        values = load_yaml(text)
    except ValueError as error:  # NoYaml among them; else it is no UTF-8
        why = str(error) if isinstance(error, NoYaml) else "is not readable as YAML"
        raise UsageError(f"{path} {why}: mend it, or start from `newllm recipes show demo`.") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from error
    if not isinstance(values, dict):
        raise UsageError(f"{path} must hold `key: value` lines; start from `newllm recipes show demo`.")
    return values


def read_record(path: Path) -> dict:
    """As `read_yaml`, of one run among others: a record that is none says nothing, and hinders nobody."""
    try:
        return read_yaml(path)
    except UsageError:
        return {}


def from_users_folder(key: str, value: object) -> object:
    """A key's value as colab_bootstrap.sh's caller meant it: that changes to the clone before it calls us."""
    started_in = os.environ.get("NEWLLM_STARTED_IN")
    if not started_in or not isinstance(value, str) or value.startswith("hf://"):
        return value
    path = os.path.join(started_in, os.path.expanduser(value))
    if key in _PLACES:
        return value if value.lower() in ("", "none", "null") else path
    is_name = not value or value in (*_NAMES, *shipped_recipes())
    file = path.rpartition(":")[0] if ".py:" in path else path
    return path if key in _NAMES_OR_PLACES and not is_name and os.path.exists(file) else value


def check_keys(values: dict, where: str, known: list[str]) -> None:
    """Raises: UsageError for a key that is not among `known`, with the nearest one."""
    if not isinstance(values, dict):
        raise UsageError(f"{where} must hold `key: value` lines.")
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1, 0.5)
            hint = f"did you mean {near[0]}?" if near else "`newllm recipes show demo` lists all keys"
            raise UsageError(f"Unknown key {key!r} in {where}: {hint}")


def shipped_recipes() -> dict[str, str]:
    """Names of the recipes that come with the package, each with its first comment line."""
    return {
        p.stem: p.read_text(encoding="utf-8").split("\n", 1)[0].lstrip("# ")
        for p in sorted(SHIPPED.glob("*.yaml"))
    }
