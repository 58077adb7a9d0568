"""Packages whose names are loaded when they are first used, so that a run imports only what it needs."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any


def attach(
    package: str, submodules: Iterable[str] = (), submod_attrs: Mapping[str, Iterable[str]] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """What a package's `__init__` needs to show names that it has not loaded, as in scientific-python's
    `lazy_loader`: `__getattr__, __dir__, __all__ = attach(__name__, ...)`.

    Args:
        package: its name.
        submodules: modules of it that are names of it themselves.
        submod_attrs: module (with dots, where it lies deeper) -> names that the package shows of it. None may
            be called as a module of the package is.
    """
    homes = {name: module for module, names in (submod_attrs or {}).items() for name in names}
    modules = set(submodules)
    names = sorted(modules | homes.keys())

    def getattr_(name: str) -> object:
        if name in modules:
            return importlib.import_module(f"{package}.{name}")
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{homes[name]}"), name)

    return getattr_, lambda: names, names
