"""Imports go one way, heavy packages load when they are used, and each foreign world has one door."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "newllm_lib"
# Each room may use itself and those in the rows above it.
FLOORS = (
    ("errors", "pip_report", "preload"),
    ("console", "device", "removed"),
    ("runs",),
    ("recipe",),
    ("ops",),
    ("layers",),
    ("models", "data"),
    ("checkpoints",),
    ("generation",),
    ("evaluation",),
    ("export",),
    ("training",),
    ("colab", "cli"),
    ("__main__",),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
DOORS = {  # who may know these packages
    "trl": ("training/dpo/dpo_task.py",),
    "google.colab": ("colab/",),
    "IPython": ("colab/",),
    "ipywidgets": ("colab/",),
    "benchmarks": (),  # which are not installed: `newllm bench` opens their folder by its path
}


def imports(path: Path) -> list[tuple[str, int]]:
    """(module, line) of every import in a file, wherever it stands; `from a import b` counts as a.b."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            found += [(f"{node.module}.{alias.name}", node.lineno) for alias in node.names]
    return found


def files() -> list[Path]:
    return sorted(p for p in PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def back_edges(path: Path, text_imports: list[tuple[str, int]]) -> list[str]:
    room, wrong = room_of(path), []
    for module, line in text_imports:
        parts = module.split(".")
        if parts[0] != "newllm_lib" or parts[1] not in FLOOR:  # `from newllm_lib import __version__`
            continue
        other = parts[1]
        if other != room and FLOOR[other] >= FLOOR[room]:
            wrong.append(f"{path.relative_to(PACKAGE.parent)}:{line}: {room} must not import {other}")
    return wrong


def test_imports_go_one_way():
    wrong = [
        edge for path in files() if room_of(path) != "__init__" for edge in back_edges(path, imports(path))
    ]
    assert not wrong, "\n".join(wrong)


def test_every_room_has_a_floor():
    rooms = {room_of(p) for p in files()} - {"__init__"}
    assert rooms <= FLOOR.keys(), f"say in FLOORS where {rooms - FLOOR.keys()} stand"


def test_the_test_sees_a_back_edge():
    path = PACKAGE / "models" / "new_llm.py"
    assert back_edges(path, [("newllm_lib.training.run", 1)]) and not back_edges(
        path, [("newllm_lib.layers.x", 1)]
    )
    assert back_edges(PACKAGE / "runs" / "run.py", [("newllm_lib.recipe.Recipe", 1)])


@pytest.mark.parametrize("foreign", DOORS)
def test_a_foreign_package_has_one_door(foreign):
    wrong = [
        f"{path.relative_to(PACKAGE)}:{line} imports {module}"
        for path in files()
        for module, line in imports(path)
        if f"{module}.".startswith(f"{foreign}.")
        and not path.relative_to(PACKAGE).as_posix().startswith(DOORS[foreign])
    ]
    assert not wrong, "\n".join(wrong)


def test_every_folder_is_a_package():
    """A folder without __init__.py would be left out of an installed package."""
    folders = {p.parent for p in files()}
    assert not [str(f) for f in folders if not (f / "__init__.py").is_file()]


def test_importing_the_package_takes_less_than_a_second_and_loads_nothing_heavy():
    code = (
        "import sys, time; start = time.perf_counter(); import newllm_lib; seconds = time.perf_counter() - "
        "start\nheavy = {'torch', 'transformers', 'datasets', 'numpy', 'matplotlib', 'trl', 'peft', "
        "'huggingface_hub'}\nassert not heavy & set(sys.modules), heavy & set(sys.modules)\nassert seconds < "
        "1, seconds"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("module", ["errors", "console", "device", "recipe", "runs", "cli"])
def test_the_ground_floor_loads_no_torch(module):
    code = (
        f"import sys, newllm_lib.{module}; assert not {{'torch', 'transformers', 'datasets'}} & "
        "set(sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
