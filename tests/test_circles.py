"""The finder of circles sees each kind of import, and no circle where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.circles import circles


@pytest.fixture
def package(tmp_path):
    """package(**files): a package `house`; `room__door="..."` is house/room/door.py."""

    def make(**files: str) -> Path:
        root = tmp_path / "house"
        for name, text in files.items():
            path = root.joinpath(*name.split("__")).with_suffix(".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            for folder in (root, path.parent):
                if not (folder / "__init__.py").exists():
                    (folder / "__init__.py").write_text("")
        return root

    return make


def test_a_chain_is_no_circle(package):
    assert circles(package(a="import house.b", b="from house.c import x", c="import os")) == []


def test_two_that_need_each_other_and_three_in_a_row(package):
    found = circles(
        package(
            a="from house.b import x",
            b="from house import a",
            c="import house.d",
            d="import house.e",
            e="from house.c import y",
            f="from house.a import x",
        )
    )
    assert found == [["house.a", "house.b"], ["house.c", "house.d", "house.e"]]


@pytest.mark.parametrize(
    "late",
    [
        "def f():\n    from house.a import x",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import house.a",
    ],
    ids=["in a function", "for a type checker"],
)
def test_a_late_import_counts(package, late):
    assert circles(package(a="import house.b", b=late)) == [["house.a", "house.b"]]


def test_a_circle_by_way_of_another_rooms_face(package):
    root = package(
        room__part="from house.other import x", other="from house.room.kernel import y", room__kernel=""
    )
    (root / "room" / "__init__.py").write_text("from house.room.part import z")
    assert circles(root) == [["house.other", "house.room", "house.room.part"]]


def test_a_packages_face_and_its_own_modules_are_none(package):
    root = package(room__kernel="from house.room import size")
    (root / "room" / "__init__.py").write_text("from house.room.kernel import run\nsize = 3")
    assert circles(root) == []


def test_a_long_chain_needs_no_deep_stack(package):
    files = {f"m{i}": f"import house.m{i + 1}" for i in range(1500)}
    assert circles(package(**files, m1500="import house.m0")) == [sorted(f"house.m{i}" for i in range(1501))]
