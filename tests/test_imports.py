"""Imports go one way, heavy packages load when they are used, and each foreign world has one door."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import lazy_faces
from tests.helpers.circles import circles
from tests.helpers.reading_size import reading_size
from tests.helpers.rooms import FLOORS

PACKAGE = Path(__file__).parents[1] / "newllm_lib"
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
_UNKNOWN = {  # what these rooms know nothing of, though the floors would let them
    "recipe": ("newllm_lib.runs.", "torch."),
    "models": ("newllm_lib.runs.", "newllm_lib.recipe."),
}
DOORS = {  # who may know these packages
    "trl": ("training/preferences/dpo_task.py", "training/sft/sft_task.py", "training/trl/trainers.py"),
    "google.colab": ("colab/",),
    "IPython": ("colab/",),
    "fastapi": ("serve/",),
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


def test_models_know_no_recipe_and_one_file_of_the_recipe_knows_runs():
    found = [
        (path.relative_to(PACKAGE).as_posix(), module.removeprefix("newllm_lib."))
        for path in files()
        for module, _ in imports(path)
        if path.name != "init_from.py" and f"{module}.".startswith(_UNKNOWN.get(room_of(path), ()))
    ]
    assert found == [("recipe/loading.py", "runs.check_plain_name")]  # what a folder may be called


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


def test_no_files_need_each_other():
    """Late imports, names behind lazy faces and imports for type checkers included."""
    assert not circles(), "\n".join(" <-> ".join(circle) for circle in circles())


def test_the_test_sees_a_circle_behind_a_lazy_face(tmp_path):
    package = tmp_path / "house"
    (package / "room").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "room" / "__init__.py").write_text("names = attach(__name__, __file__)")
    (package / "room" / "__init__.pyi").write_text("from house.room.one import One as One")
    (package / "room" / "one.py").write_text("def late():\n    from house import two")
    (package / "two.py").write_text("from house import room\n\ndef make():\n    return room.One()")
    assert circles(package) == [["house.room.one", "house.two"]]


@pytest.mark.parametrize(
    "module, options, files, statements",
    [
        ("training.run", {}, 115, 8200),
        ("training.run", {"late": True}, 229, 15964),
        ("models", {}, 75, 3300),
        ("models", {"late": True}, 130, 7732),
        ("models.new_llm", {"alone": True}, 35, 1450),
    ],
)
def test_so_much_is_read_at_most(module, options, files, statements):
    """To follow a training run or a model: files and statements of ours that importing it brings in."""
    found = reading_size(f"newllm_lib.{module}", **options)
    assert found[0] <= files and found[1] <= statements, found


def test_a_lazy_face_shows_what_its_modules_have():
    """What it names is there, and none of it is hidden by a module of the package that has the same name."""
    wrong = []
    for face in PACKAGE.rglob("__init__.py"):
        package = ".".join(face.relative_to(PACKAGE.parent).parent.parts)
        for name, module in lazy_faces.shown(face, package).items():
            file = PACKAGE.parent.joinpath(*module.split(".")).with_suffix(".py")
            beside = face.with_name(name).is_dir() or face.with_name(f"{name}.py").is_file()
            if module == f"{package}.{name}":  # a module that is a name itself
                wrong += [] if beside else [f"{package}: {name}"]
            elif beside or not file.is_file() or name not in defined(file):
                wrong.append(f"{package}: {name} of {module}")
    assert not wrong, "\n".join(wrong)


def defined(file: Path) -> set[str]:
    """Names that a module defines itself, at its top."""
    names = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)}
    return names


def test_few_functions_take_nine_arguments():
    """`self` counts; Triton's kernels do not."""
    many = [
        f"{path.relative_to(PACKAGE)}:{node.lineno} {node.name}"
        for path in files()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
        and not any("jit" in ast.unparse(decorator) for decorator in node.decorator_list)
        and sum(isinstance(argument, ast.arg) for argument in ast.walk(node.args)) >= 9
    ]
    assert len(many) <= 10, "\n".join(many)


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


def test_no_test_imports_another_test():
    """What two of them need moves to tests/helpers."""
    tests, wrong = Path(__file__).parent, []
    for path in tests.rglob("*.py"):
        for module, line in imports(path):
            name, *below = module.split(".")
            if name == "tests" and path.relative_to(tests).parts[:2] != ("notebooks", "colab"):
                place = tests.joinpath(*below)
                found = any(p.with_suffix(".py").is_file() for p in (place, place.parent))
                if below[0] != "helpers" or not found:
                    wrong.append(f"{path.relative_to(tests)}:{line}: {module}")
    assert not wrong, f"import from tests/helpers instead: {wrong}"
