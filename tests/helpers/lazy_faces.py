"""Names that a package's face loads when they are used (`newllm_lib.lazy.attach`), read from its stub."""

from __future__ import annotations

import ast
from pathlib import Path


def shown(face: Path, package: str) -> dict[str, str]:
    """Name -> dotted module that holds it, of a package's `__init__.py`; empty if its face is not lazy."""
    stub = face.with_suffix(".pyi")
    if not stub.is_file():
        return {}
    imports = ast.walk(ast.parse(stub.read_text(encoding="utf-8")))
    return {
        alias.name: f"{package}.{alias.name}" if node.module == package else node.module
        for node in imports
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def used(tree: ast.AST, packages: dict[str, str]) -> set[tuple[str, str]]:
    """(package, name) of every `package.name` in a file's code.

    Args:
        packages: how the file calls packages that it has imported -> their dotted names.
    """
    return {
        (packages[node.value.id], node.attr)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in packages
    }
