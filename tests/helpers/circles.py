"""Circles between the files of a package: those that need each other, also by late imports."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.helpers import lazy_faces

PACKAGE = Path(__file__).parents[2] / "newllm_lib"


def circles(package: Path = PACKAGE) -> list[list[str]]:
    """The circles of a package, each as the sorted names of its modules; none: an empty list.

    Every import counts, wherever it stands in a file, those for type checkers too. Importing `a.b.c` also
    runs `a/__init__.py` and `a/b/__init__.py`. Only what a file needs of the packages that it lies in itself
    does not count: an `__init__` is the face of the modules beside it, as of an operation and its kernels. A
    name that a lazy face (`newllm_lib.lazy`) loads is an import of the module that holds it.
    """
    files = _modules(package)
    graph = {name: _imports(name, path, files) for name, path in files.items()}
    return sorted(sorted(group) for group in _components(graph) if len(group) > 1)


def _modules(package: Path) -> dict[str, Path]:
    """Name to file of every module; a package by its own name."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def _imports(name: str, path: Path, files: dict[str, Path]) -> set[str]:
    """The modules of the package that a file imports, without its own package's face."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    wanted: set[str] = set()
    called: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            wanted.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                wanted.add(inner if inner in files else node.module)
                wanted.update(_behind_face(node.module, alias.name, files))
                called[alias.asname or alias.name] = inner
    for package, name_used in lazy_faces.used(tree, called):
        wanted.update(_behind_face(package, name_used, files))
    parents = {parent for module in wanted if module in files for parent in _parents(module)}
    own = {name, *_parents(name)}
    return {module for module in wanted | parents if module in files} - own


def _behind_face(package: str, name: str, files: dict[str, Path]) -> set[str]:
    """The module that a package's lazy face takes a name from, if it does."""
    face = files.get(package)
    if face is None or face.name != "__init__.py":
        return set()
    homes = lazy_faces.shown(face, package)
    return {homes[name]} & files.keys() if name in homes else set()


def _parents(name: str) -> list[str]:
    """`a.b.c` -> [`a`, `a.b`]."""
    parts = name.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))]


def _components(graph: dict[str, set[str]]) -> list[list[str]]:
    """Strongly connected components (Tarjan, 1972), without recursion."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    on_stack: set[str] = set()
    found: list[list[str]] = []
    for root in graph:
        if root in index:
            continue
        index[root] = low[root] = len(index)
        stack.append(root)
        on_stack.add(root)
        work = [(root, iter(sorted(graph[root])))]
        while work:
            node, following = work[-1]
            other = next(following, None)
            if other is None:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == index[node]:
                    group = []
                    while not group or group[-1] != node:
                        group.append(stack.pop())
                        on_stack.discard(group[-1])
                    found.append(group)
            elif other not in index:
                index[other] = low[other] = len(index)
                stack.append(other)
                on_stack.add(other)
                work.append((other, iter(sorted(graph[other]))))
            elif other in on_stack:
                low[node] = min(low[node], index[other])
    return found


if __name__ == "__main__":
    for circle in circles():
        print(" <-> ".join(circle))
