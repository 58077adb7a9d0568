"""Reading recipe files."""

from __future__ import annotations

import difflib
from pathlib import Path

from newllm_lib.errors import UsageError

_LARGEST = 2**20  # bytes
SHIPPED = Path(__file__).parents[1] / "recipes"


def read_yaml(path: Path) -> dict:
    """A YAML file of `key: value` lines.

    Raises:
        UsageError: unreadable, or something else than such lines (names the line). A file with references
            (`*name`) is one: a few lines of them stand for more than any memory holds.
    """
    import yaml

    try:
        if path.exists() and not path.is_file():
            raise UsageError(f"{path} is no file (a folder, a pipe or a device): name a recipe's file.")
        with open(path, encoding="utf-8") as file:
            text = file.read(_LARGEST + 1)
        aliases = [e for e in yaml.parse(text) if isinstance(e, yaml.AliasEvent)] if "*" in text else []
        if aliases or len(text) > _LARGEST:
            what = f"a reference (*{aliases[0].anchor})" if aliases else "more than a recipe's length"
            raise UsageError(f"{path} holds {what}, which no recipe needs: write its values out.")
        values = yaml.safe_load(text)
    except RecursionError:
        raise UsageError(f"{path} is nested too deeply for a recipe: mend it.") from None
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" (line {mark.line + 1})" if mark else ""
        raise UsageError(
            f"{path} is not readable as YAML{line}: mend it, or start from `newllm recipes show demo`."
        ) from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from error
    if not isinstance(values, dict):
        raise UsageError(f"{path} must hold `key: value` lines; start from `newllm recipes show demo`.")
    return values


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
