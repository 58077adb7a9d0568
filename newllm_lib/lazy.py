"""A run imports only what it needs: names that are loaded when they are first used, and modules left out."""

from __future__ import annotations

import ast
import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


def attach(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """What a package's `__init__` needs to show names that it has not loaded, as in scientific-python's
    `lazy_loader`: `__getattr__, __dir__, __all__ = attach(__name__, __file__)`. Type checkers and editors
    read the same stub.

    Args:
        package: its name.
        file: its `__init__.py`. The `__init__.pyi` beside it says by absolute imports what is shown: names of
            modules, and modules of the package itself. No name may be called as another module of it is.
    """
    homes: dict[str, str] = {}
    for statement in ast.parse(Path(file).with_suffix(".pyi").read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.ImportFrom):
            homes |= {alias.name: str(statement.module) for alias in statement.names}
    names = sorted(homes)

    def getattr_(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        if homes[name] == package:
            return importlib.import_module(f"{package}.{name}")
        return getattr(importlib.import_module(homes[name]), name)

    return getattr_, lambda: names, names


@contextlib.contextmanager
def without(module: str) -> Iterator[None]:
    """Within it a module that is not imported yet seems not to be installed.

    transformers imports `sklearn` where it is installed, and SciPy with it, for assisted decoding, a tenth of
    what training imports; what it once has not found it does not look for again.
    """
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]  # as of a package that is not there
    try:
        yield
    finally:
        del sys.modules[module]
