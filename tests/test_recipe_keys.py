"""The page of the recipe's keys: each has a reason, each reason its source, and the page is as it would be
written."""

from __future__ import annotations

import csv
import runpy
from dataclasses import fields
from pathlib import Path

from newllm_lib.recipe import Recipe

ROOT = Path(__file__).parents[1]
PAGE = runpy.run_path(str(ROOT / "docs/reference/recipe_keys.py"))


def test_each_key_has_a_reason_whose_source_is_there():
    assert list(PAGE["WHY"]) == [f.name for f in fields(Recipe)]
    with open(ROOT / "benchmarks/results.csv", encoding="utf-8", newline="") as file:
        benchmarks = {row["benchmark"] for row in csv.DictReader(file)}
    for key, (why, source) in PAGE["WHY"].items():
        assert why, key
        if source.endswith(".md"):
            assert (ROOT / "docs/reference" / source).is_file(), key
        else:
            assert not source or source in benchmarks, key
        assert source or not why.startswith("measured"), key


def test_the_page_is_as_the_recipe_says():
    page = ROOT / "docs/reference/recipe-keys.md"
    assert page.read_text(encoding="utf-8") == PAGE["render"](), "run docs/reference/recipe_keys.py"
