"""CONTRIBUTING.md: its rooms are those there are, and its two walks are short, name what exists, and are the
way that a run takes.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

from newllm_lib.cli import main
from newllm_lib.data import ahead
from tests.helpers.rooms import FLOORS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
TITLES = ("From `newllm train demo` to the saved checkpoint", "From a raw record to the loss")
TINY = "--num_layers 1 --hidden_size 16 --context_dim 16 --mlp_size 16 --max_seq_length 16 --batch_size 8"
SHORT = "--vocab_size 300 --max_steps 2 --max_samples 40 --sized_for cpu"


def section(title: str) -> str:
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def walk(title: str) -> list[tuple[str, list[str]]]:
    """(file, what to look at in it) of each line of the walk's table."""
    rows = re.findall(r"^\| \d+ \| `([^`]+)` \| ([^|]+) \|", section(title), re.MULTILINE)
    return [(file, re.findall(r"`([^`]+)`", names)) for file, names in rows]


def definition(file: str, name: str) -> ast.AST:
    """A function or class by its qualified name."""
    node: ast.AST = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    for part in name.split("."):
        (node,) = [child for child in ast.iter_child_nodes(node) if getattr(child, "name", None) == part]
    return node


@pytest.mark.parametrize("title", TITLES)
def test_a_walk_is_short_and_names_what_is_there(title):
    steps = walk(title)
    assert len(steps) == len(re.findall(r"^\| \d", section(title), re.MULTILINE))
    assert 5 <= len(steps) <= 8 and all(names for _, names in steps)
    for file, names in steps:
        for name in names:
            assert definition(file, name), f"{file}: {name}"


def test_a_run_comes_through_both_walks_in_their_order(tmp_path, monkeypatch):
    """The functions named first, in the order in which a run of the demo calls them for the first time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEWLLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NEWLLM_DEVICE", "cpu")
    monkeypatch.setattr(ahead, "start", lambda name, keys: None)  # prepared here, where calls are seen
    expected, places = {}, {}
    for title in TITLES:
        expected[title] = [(file, names[0]) for file, names in walk(title)]
        for file, name in expected[title]:
            node = definition(file, name)
            if isinstance(node, ast.ClassDef):
                node = definition(file, f"{name}.__init__")
            decorators = [d.lineno for d in node.decorator_list]  # its code begins with the first of them
            places[str(ROOT / file), min([node.lineno, *decorators])] = (file, name)
    called: dict[tuple[str, str], None] = {}

    def note(frame, event, argument):
        if event == "call":
            place = places.get((frame.f_code.co_filename, frame.f_code.co_firstlineno))
            if place is not None:
                called.setdefault(place)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        code = main(["train", "demo", *TINY.split(), *SHORT.split()])
    finally:
        sys.setprofile(before)
    assert code == 0
    for title in TITLES:
        assert [step for step in called if step in expected[title]] == expected[title]


def test_its_tree_has_all_rooms_in_the_order_of_imports():
    tree = re.search(r"```\nnewllm_lib/\n(.*?)^benchmarks/", section("The rooms"), re.MULTILINE | re.DOTALL)[
        1
    ]
    names = [
        name for line in tree.splitlines() for name in re.findall(r"[\w.]+/?", re.split(r" {2,}", line)[1])
    ]
    package = ROOT / "newllm_lib"
    assert all((package / name).exists() for name in names)
    rooms = [name.rstrip("/") for name in names if name.endswith("/") and name != "recipes/"]  # no code in it
    assert set(rooms) == {p.parent.name for p in package.glob("*/__init__.py")}
    floors = {room: floor for floor, row in enumerate(FLOORS) for room in row}
    assert rooms == sorted(rooms, key=floors.__getitem__)


def test_its_targets_and_links_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"(?:`|^)make ([a-z-]+)", PAGE, re.MULTILINE)) <= targets
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", PAGE):
        assert (ROOT / target).exists(), target
    for path in re.findall(r"(?:newllm_lib|tests|docs|benchmarks)/[\w/.-]+\.(?:py|md|csv)", PAGE):
        assert (ROOT / path).is_file(), path
