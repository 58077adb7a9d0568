"""How much one reads to understand a module: the files of ours that it imports, and their statements.

Statements (`ast.stmt` nodes) do not change with formatting; lines do. What imports what is read from the
source: nothing runs. A name taken from a lazy face (`newllm_lib.lazy`) brings in the module that holds it;
`package.name` in a function does so where late imports count.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

from tests.helpers import lazy_faces

ROOT = Path(__file__).parents[2]
PACKAGE = "newllm_lib"
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


def reading_size(module: str, late: bool = False, alone: bool = False) -> tuple[int, int]:
    """Files and statements of ours that importing `module` brings in, itself and the packages around it
    included.

    Args:
        module: dotted, as "newllm_lib.models".
        late: follow imports inside functions too.
        alone: without a package's face (`__init__.py`) where a file of that package imports its neighbour:
            what one reads of a module for itself, where importing it runs all that its package shows to
            others.
    """
    files = reached(module, late, alone)
    return len(files), sum(statements(file) for file in files)


def reached(module: str, late: bool = False, alone: bool = False) -> set[Path]:
    """The files behind `reading_size`."""
    found = set(_files(module)[-1:] if alone else _files(module))
    waiting = list(found)
    while waiting:
        file = waiting.pop()
        for name in imported(file, late):
            new = {other for other in _files(name) if not (alone and _is_face_around(other, file))} - found
            found |= new
            waiting += new
    return found


def _is_face_around(face: Path, file: Path) -> bool:
    return face.name == "__init__.py" and face.parent in file.parents


@functools.cache
def statements(file: Path) -> int:
    return sum(isinstance(node, ast.stmt) for node in ast.walk(_tree(file)))


@functools.cache
def imported(file: Path, late: bool = False) -> tuple[str, ...]:
    """Dotted names of our modules and packages that the file imports; without `late` those that importing it
    runs.
    """
    names, called = [], {}
    for node in _imports(_tree(file), late):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
            continue
        for alias in node.names:
            name = f"{node.module}.{alias.name}"
            names += [node.module, name, *_behind_face(node.module, alias.name)]
            called[alias.asname or alias.name] = name
    for package, name in lazy_faces.used(_tree(file), called) if late else ():
        names += _behind_face(package, name)
    return tuple(name for name in names if name.split(".")[0] == PACKAGE)


def _behind_face(package: str, name: str) -> list[str]:
    """The module that a package's lazy face takes a name from, if it does."""
    if package.split(".")[0] != PACKAGE:
        return []
    face = ROOT.joinpath(*package.split("."), "__init__.py")
    homes = lazy_faces.shown(face, package)
    return [homes[name]] if name in homes else []


def _imports(node: ast.AST, late: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child
        elif late or not (isinstance(child, _FUNCTIONS) or _is_for_type_checkers(child)):
            yield from _imports(child, late)


def _is_for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def _files(name: str) -> list[Path]:
    """The files that importing a dotted name runs: its packages' and its own; a name that is no module adds
    none.
    """
    parts, found = name.split("."), []
    for count in range(1, len(parts) + 1):
        place = ROOT.joinpath(*parts[:count])
        file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
        if file.exists():
            found.append(file)
    return found


@functools.cache
def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))
