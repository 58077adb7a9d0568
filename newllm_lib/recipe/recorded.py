"""The record of a run, `recipe.yaml` in its folder, read as the version meant it that wrote it."""

from __future__ import annotations

from pathlib import Path

from newllm_lib.recipe.aliases import resolve_keys
from newllm_lib.recipe.files import check_keys

_FIRST = "0.1.0"  # it wrote every key, and no version
_WRITTEN_BY_FIRST = {"recipe", "run_name", "resume", "output_dir"}
# Where a default changes, or a key comes whose default is not what was before it: the version that brings
# this, and the values before it, the oldest version first.
_DEFAULTS_BEFORE: dict[str, dict] = {"0.2.1": {"evals_per_epoch": 1, "eval_tokens": None}}


def is_record(values: dict) -> bool:
    """Whether a YAML file is the record of a run, not a recipe that a person wrote."""
    return "version" in values or values.keys() >= _WRITTEN_BY_FIRST


def as_of_today(values: dict, path: Path, known: list[str]) -> dict:
    """A record's values by today's keys.

    Args:
        known: today's keys. One that the record does not have takes the default of the version that wrote it.

    Raises:
        UsageError: a key that is gone and did something, or one that no version knows.
    """
    values = resolve_keys(values, str(path))
    version = _number(str(values.pop("version", _FIRST)))
    check_keys(values, str(path), known)
    for since, before in _DEFAULTS_BEFORE.items():
        if version < _number(since):
            values = {**before, **values}
    return values


def _number(version: str) -> tuple[int, ...]:
    """(0, 2, 0) of "0.2.0" and of "0.2.0.dev1"."""
    return tuple(int(part[:9]) for part in version.split(".")[:3] if part.isdecimal())
