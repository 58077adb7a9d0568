"""README_COLAB.md says what is: its commands parse, its flags and form fields exist, its error lines stand in
the code.
"""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest

from newllm_lib.cli.parser import build, parse
from newllm_lib.recipe import load_recipe, overrides

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "README_COLAB.md").read_text(encoding="utf-8")
JAPANESE = (ROOT / "README_COLAB.ja.md").read_text(encoding="utf-8")


def texts(path: Path) -> list[str]:
    """What a file's strings say, the values in them as `…`."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    found = [n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    parts = [n.values for n in nodes if isinstance(n, ast.JoinedStr)]
    return found + [
        "".join(getattr(v, "value", "…") if isinstance(v, ast.Constant) else "…" for v in p) for p in parts
    ]


SOURCE = "\n".join(text for path in (ROOT / "newllm_lib").rglob("*.py") for text in texts(path))


def commands() -> list[str]:
    """Every whole `newllm …` command, in a block or between backticks."""
    found = re.findall(r"^!?(newllm .+)$|`!?(newllm [^`]+)`", GUIDE, re.MULTILINE)
    return sorted({" ".join(filter(None, match)) for match in found} - {"newllm train"})


def test_the_guide_has_commands():
    assert len(commands()) >= 8


@pytest.mark.parametrize("line", commands())
def test_its_commands_parse(line):
    arguments = parse(shlex.split(line)[1:])
    if arguments.command == "train" and "…" not in line:  # a line with gaps to fill has no run of its own
        recipe = load_recipe(arguments.name, overrides(arguments), "t4", resolve_start=False)
        assert recipe.run_name in GUIDE, f"{recipe.run_name} is called otherwise in the guide"


def test_its_flags_exist():
    """Each is a flag of some command."""
    known = {
        flag for parser in every_parser() for action in parser._actions for flag in action.option_strings
    }
    found = set(re.findall(r"(?<![\w-])--[a-z_]+", GUIDE))
    assert found <= known, found - known


def every_parser() -> list:
    """The parsers of all commands and of what stands below them (`runs stop`)."""
    found = list(build()[1].values())
    for parser in found:
        found += [
            p
            for action in parser._actions
            if isinstance(action.choices, dict)
            for p in action.choices.values()
        ]
    return found


def test_its_bootstrap_lines_start_a_recipe():
    lines = re.findall(r"colab_bootstrap\.sh \| bash -s -- (.+)", GUIDE)
    assert len(lines) >= 2
    for line in lines:
        parse(["train", *shlex.split(line)])


def test_its_error_lines_are_the_codes():
    section = GUIDE.split("## When something goes wrong")[1]
    lines = [m for m in re.findall(r"^\| `([^`]+)`", section, re.MULTILINE)]
    assert len(lines) >= 5
    for line in lines:
        words = re.sub(r"\d+", "…", line).strip("… ")
        for part in re.split(r"\s*…\s*", words):
            assert part in SOURCE, f"no message says {part!r}"


def test_its_links_lead_to_files():
    for path in re.findall(r"blob/main/([\w./-]+)", GUIDE) + re.findall(
        r"\]\((?!http|#)([\w./-]+)", GUIDE + JAPANESE
    ):
        assert (ROOT / path).is_file(), path


def code(text: str) -> set[str]:
    """What stands between backticks, and the commands in blocks."""
    return set(re.findall(r"`([^`\n]+)`", text)) | set(
        re.findall(r"^!?((?:newllm|curl) .+)$", text, re.MULTILINE)
    )


def test_the_japanese_guide_says_no_other_commands_and_hardly_fewer():
    ours, theirs = code(GUIDE), code(JAPANESE)
    assert theirs <= ours, theirs - ours
    assert len(theirs) > 0.7 * len(ours), ours - theirs
    assert JAPANESE.count("\n## ") >= GUIDE.count("\n## ") - 2
