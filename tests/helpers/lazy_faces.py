"""Names that a package's face loads when they are used (`newllm_lib.lazy.attach`), read from its source."""

from __future__ import annotations

import ast


def shown(tree: ast.Module, package: str) -> dict[str, str]:
    """Name -> dotted module that holds it, of a package's `__init__`; empty if its face is not lazy."""
    for node in tree.body:
        call = node.value if isinstance(node, ast.Assign) else None
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "attach":
            given = {word.arg: ast.literal_eval(word.value) for word in call.keywords}
            homes = {name: name for name in given.get("submodules", ())}
            for module, names in given.get("submod_attrs", {}).items():
                homes |= dict.fromkeys(names, module)
            return {name: f"{package}.{module}" for name, module in homes.items()}
    return {}


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
