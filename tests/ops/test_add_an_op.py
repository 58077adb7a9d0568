"""docs/guides/add-an-op.md followed step by step, in a copy of the clone."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from newllm_lib.cli.parser import parse

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/guides/add-an-op.md").read_text(encoding="utf-8")
# Where the page says that a block goes, in the order of its blocks; files that it makes are not here.
ABOVE = {
    "tests/helpers/kernel_checks.py": ["def run_interpreted("],
    "tests/helpers/compiled_kernels.py": [
        "from newllm_lib.ops.stochastic_rounding import AdamStep, RoundedStep, new_momentum",
        "    doc_starts = torch.zeros(batch, time",
    ],
    "newllm_lib/ops/self_check.py": ["_OPERATIONS: dict", '    "gated_scan": _gated_scan,'],
    "benchmarks/ops.py": ["_RECURRENCE =", '    "gated_scan": Operation('],
}

KERNELS = '    "soft_cap_forward",\n    "soft_cap_backward",'


def blocks(language: str) -> list[tuple[str, str]]:
    """(title, code) of the page's blocks in a language, without the list's indentation."""
    found = re.findall(rf'^( *)```{language}(?: title="(.+?)")?\n(.*?)^\1```', PAGE, re.MULTILINE | re.DOTALL)
    return [
        (title, "".join(line.removeprefix(indent) for line in code.splitlines(keepends=True)))
        for indent, title, code in found
    ]


@pytest.fixture
def clone(tmp_path) -> Path:
    """A copy in which the page was followed, its commands not run yet."""
    for name in ("newllm_lib", "tests", "benchmarks"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    places = {path: list(lines) for path, lines in ABOVE.items()}
    for title, code in blocks("python"):
        path, gap = tmp_path / title, "" if code.startswith((" ", "from")) else "\n\n"
        if title in places:
            above, text = places[title].pop(0), path.read_text(encoding="utf-8")
            assert text.count(above) == 1, f"{title}: {above}"
            path.write_text(text.replace(above, code + gap + above), encoding="utf-8")
        elif path.exists():
            path.write_text(path.read_text(encoding="utf-8") + gap + code, encoding="utf-8")
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(code, encoding="utf-8")
    assert not any(places.values())
    listed = tmp_path / "tests/ops/test_kernels_compile.py"  # the page says so in words
    text = listed.read_text(encoding="utf-8")
    listed.write_text(text.replace("KERNELS = {", f"KERNELS = {{\n{KERNELS}", 1), encoding="utf-8")
    return tmp_path


def run(clone: Path, command: str) -> str:
    """What a command of the page says; it must succeed."""
    command = command.replace("newllm ", "python -m newllm_lib ", 1).replace("python", sys.executable, 1)
    done = subprocess.run(
        shlex.split(command),
        cwd=clone,
        env=os.environ | {"PYTHONPATH": str(clone), "CUDA_VISIBLE_DEVICES": "", "NEWLLM_DEVICE": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def commands() -> list[str]:
    return [code.strip() for _, code in blocks("bash")]


def test_the_page_leads_to_a_checked_and_measured_operation(clone):
    assert len(re.findall(r"^\d+\. ", PAGE, re.MULTILINE)) <= 10
    tests, compiled, check, measure = commands()
    assert " 3 passed" in run(clone, tests) and "-m slow" in compiled
    assert " passed" in run(clone, check) and parse(["doctor", "--kernels", "soft_cap"])
    rows = len((clone / "benchmarks/results.csv").read_text().splitlines())
    assert "plain torch" in run(clone, measure)
    assert len((clone / "benchmarks/results.csv").read_text().splitlines()) > rows
    for style in ("check", "format --check"):
        run(clone, f"python -m ruff {style} newllm_lib/ops tests/ops benchmarks")


@pytest.mark.slow
def test_its_kernels_compile(clone):
    assert " passed" in run(clone, f"{commands()[1]} -k 90")
