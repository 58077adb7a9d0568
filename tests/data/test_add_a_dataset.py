"""docs/guides/add-a-dataset.md followed step by step, in a copy of the clone."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/guides/add-a-dataset.md").read_text(encoding="utf-8")


@pytest.fixture
def clone(tmp_path) -> Path:
    for name in ("newllm_lib", "tests", "pyproject.toml"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    return tmp_path


def code(language: str, title: str = "") -> str:
    """The page's one block of code in a language, for a file."""
    ((indent, block),) = re.findall(
        rf"^( *)```{language}{title}\n(.*?)^\1```", PAGE, re.MULTILINE | re.DOTALL
    )
    return "".join(line.removeprefix(indent) for line in block.splitlines(keepends=True))


def insert(clone: Path, path: str, before: str) -> None:
    """Write the page's block for a file into it, above a line."""
    text = (clone / path).read_text(encoding="utf-8")
    assert text.count(before) == 1
    block = code("python", f' title="{path}"')
    (clone / path).write_text(text.replace(before, block + before), encoding="utf-8")


def replace(path: Path, pattern: str, new: str) -> None:
    text, count = re.subn(pattern, new, path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert count == 1
    path.write_text(text, encoding="utf-8")


def test_the_page_leads_to_a_set_whose_every_turn_is_packed(clone):
    assert 5 <= len(re.findall(r"^\d+\. ", PAGE, re.MULTILINE)) <= 10
    schemas, sets = clone / "newllm_lib/data/schemas.py", clone / "tests/helpers/dialogue_sets.py"
    insert(clone, "newllm_lib/data/schemas.py", "SCHEMAS = (")
    replace(schemas, r"^(SCHEMAS = .*)\)$", r"\1, TRIVIA)")
    insert(clone, "newllm_lib/data/datasets.py", '    "alpaca_ja": DatasetInfo(')
    insert(clone, "tests/helpers/dialogue_sets.py", "class WithBranches(Handler):")
    replace(sets, r"^(DIALOGUE_SETS = \([^)]*?),?\s*\)$", r'\1, "trivia")')
    recipe, command = (part.strip() for part in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL))
    subprocess.run(["bash", "-ec", recipe], cwd=clone, check=True)
    environment = os.environ | {"PYTHONPATH": str(clone)}
    ended = subprocess.run(
        ["bash", "-ec", command.replace("python", sys.executable, 1)],
        cwd=clone,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout
    assert " 3 passed" in ended.stdout
    listed = subprocess.run(
        [sys.executable, "-m", "newllm_lib", "recipes"],
        cwd=clone,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert re.search(r"trivia\s+Trivia, questions with short answers", listed.stdout)
    # `reply`, a column of the new set, is still another name for an answer in all others
    row = {"question": "Who?", "reply": "I."}
    others = f"from newllm_lib.data.schemas import parse_row; print(parse_row({row}))"
    shown = subprocess.run(
        [sys.executable, "-c", others],
        cwd=clone,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Who?" in shown.stdout and "I." in shown.stdout
