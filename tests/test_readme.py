"""README.md, README.ja.md and the pages of docs say what is: their commands parse, their Python runs, their
links lead somewhere, and the figures of the results stand in benchmarks/results.csv.
"""

from __future__ import annotations

import csv
import functools
import inspect
import re
import shlex
from pathlib import Path

import pytest

from newllm_lib import api
from newllm_lib.cli.parser import parse
from newllm_lib.recipe import load_recipe
from tests.helpers.small_runs import write_text

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
JAPANESE = ROOT / "README.ja.md"
PAGES = [
    ROOT / "README.md",
    *([JAPANESE] if JAPANESE.exists() else []),
    *(page for page in sorted((ROOT / "docs").rglob("*.md")) if page.parent.name != "log"),
]
LINKED = [*PAGES, *sorted((ROOT / "docs/log").glob("*.md"))]
TINY = {
    "hidden_size": 16,
    "context_dim": 16,
    "mlp_size": 16,
    "num_layers": 1,
    "vocab_size": 300,
    "max_seq_length": 16,
    "sized_for": "cpu",
    "batch_size": 8,
    "max_steps": 2,
    "data_dir": "text",
}


@functools.cache
def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def test_it_opens_with_the_two_commands():
    first = re.search(r"```bash\n(.+?)```", README, re.DOTALL)[1]
    assert [line.split("#")[0].strip() for line in first.splitlines()] == [
        "bash colab_bootstrap.sh demo --foreground",
        "make test",
    ]


def test_it_can_be_read_in_three_minutes():
    assert len(README.split()) <= 1300


def commands() -> list[str]:
    """`newllm …` in tables' first columns and in shell blocks, as they stand."""
    found = set()
    for page in PAGES:
        found |= set(re.findall(r"^\| `newllm ([^`]+?)` \|", text_of(page), re.MULTILINE))
        for block in re.findall(r"```bash\n(.+?)```", text_of(page), re.DOTALL):
            found |= set(re.findall(r"^(?:\.venv/bin/)?newllm (.+?)(?:\s+#.*)?$", block, re.MULTILINE))
    return sorted(found)


@pytest.mark.parametrize("line", commands())
def test_commands_parse(line):
    assert parse(shlex.split(line))


def named_benchmarks() -> list[str]:
    """`newllm bench …` on the pages, but where it is cut short or stands for several."""
    text = "".join(map(text_of, PAGES))
    return sorted({line for line in re.findall(r"`newllm (bench [^`|…A-Z][^`|…]*)`", text)})


@pytest.mark.parametrize("line", named_benchmarks())
def test_the_benchmarks_that_pages_name_parse(line):
    assert parse(shlex.split(line))


@pytest.mark.parametrize("page", LINKED, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text_of(page)):
        path, _, heading = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        assert place.exists(), target
        assert not heading or heading in anchors(place), target
    ours = r"https://github\.com/rato-tokyo/new-llm/(?:blob|tree)/main/([^)#\s]+)"
    for path in re.findall(ours, text_of(page)):
        assert (ROOT / path).exists(), path


def anchors(page: Path) -> set[str]:
    """What its headings are called in a link."""
    heads = re.findall(r"^#+ (.+)$", text_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\s-]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", ["README.md", "README.ja.md", "docs/start.md", "newllm_lib/api.py"])
def test_its_python_runs(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path)
    monkeypatch.setattr(api, "load_recipe", lambda name, keys: load_recipe(name, {**TINY, **keys}))
    if page.endswith(".py"):
        code = inspect.cleandoc(re.search(r"\n\n(    import .+?)\n\n\S", api.__doc__, re.DOTALL)[1])
        api.train("demo", model="tiny_gpt2", mlp_size=24, run_name="tinygpt2_demo")
    else:
        code = re.search(r"```python\n(.+?)```", text_of(ROOT / page), re.DOTALL)[1]
    exec(code, {})
    assert re.search(r"^\d+\.\d+$", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize(
    "page, part", [("README.md", "How good is it?"), ("docs/results/language-modelling.md", "")]
)
def test_its_figures_are_measured(page, part):
    with open(ROOT / "benchmarks" / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(row["command"] and row["commit"] and row["hardware"] and row["versions"] for row in rows)
    values = [float(row["value"]) for row in rows]
    section = text_of(ROOT / page).split(f"## {part}" if part else "# ", 1)[1].split("\n## ")[0]
    found = [figure for line in section.splitlines() if line.startswith("| ") for figure in figures(line)]
    assert len(found) >= 8
    for figure in found:
        off = min(abs(value - meant) / meant for value in values for meant in (figure, 1e6 * figure))
        assert off < 0.01, f"{figure} stands in {page}, but in no row of results.csv"


def figures(line: str) -> list[float]:
    """What a row of a table claims to have measured: numbers with a point, of the model and of what
    stands beside it."""
    cells = re.sub(r"\]\([^)]*\)", "", " ".join(line.split("|")[2:4]))
    return [float(number) for number in re.findall(r"(?<![\w.,])\d+\.\d+(?!\.?\d)", cells) if float(number)]
