"""What is published: one version, links that work elsewhere, workflows that name what exists."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from newllm_lib import __version__

ROOT = Path(__file__).parents[1]


def test_one_version():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"] == __version__
    assert f"## [{__version__}]" in (changelog := (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")) or (
        f"## [Unreleased] ({__version__})" in changelog
    )


def test_the_readme_of_the_index_has_no_relative_link():
    program = (
        "import re, setuptools; setuptools.setup = lambda **keys: print(keys['long_description']); "
        "exec(compile(open('setup.py').read(), 'setup.py', 'exec'), {'__file__': 'setup.py'})"
    )
    shown = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    targets = re.findall(r"\]\(([^)]+)\)", shown)
    assert targets and all(target.startswith(("https://", "#")) for target in targets)


@pytest.mark.parametrize("path", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda path: path.name)
def test_workflows_and_forms_are_yaml_and_call_what_exists(path):
    text = path.read_text(encoding="utf-8")
    assert isinstance(yaml.safe_load(text), dict)
    targets = set(
        re.findall(r"^([a-z][\w.-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    )
    assert set(re.findall(r"\bmake ([a-z-]+)", text)) <= targets
    for file in re.findall(r"tests/[\w/]+\.py", text):
        assert (ROOT / file).exists(), file


def test_docstrings_describe_one_parameter_a_line_and_none_that_is_not_there():
    """What the documentation site's strict build asks for."""
    wrong = []
    for file in sorted((ROOT / "newllm_lib").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                found = re.search(r"\nArgs:\n((?: .*\n?|\n)+)", ast.get_docstring(node) or "")
                names = re.findall(r"^    (\S.*?)(?: \(.*?\))?:", found[1] if found else "", re.MULTILINE)
                there = {argument.arg for argument in ast.walk(node.args) if isinstance(argument, ast.arg)}
                wrong += [f"{file.name}: {name}" for name in names if name.lstrip("*") not in there]
    assert not wrong
