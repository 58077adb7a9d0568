"""The README says what is: its commands parse, its Python runs, its figures stand in
benchmarks/results.csv.
"""

import csv
import re
import shlex
import shutil
from pathlib import Path

import pytest

from newllm_lib.cli.parser import parse
from newllm_lib.recipe import load_recipe
from newllm_lib.training import train
from tests.training.small_runs import write_text

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_it_opens_with_the_two_commands():
    first = re.search(r"```bash\n(.+?)```", README, re.DOTALL)[1]
    assert [line.split("#")[0].strip() for line in first.splitlines()] == [
        "bash colab_bootstrap.sh demo --foreground",
        "make test",
    ]


@pytest.mark.parametrize("line", re.findall(r"^\| `newllm (.+?)` \|", README, re.MULTILINE))
def test_its_commands_parse(line):
    assert parse(shlex.split(line))


PAGES = [ROOT / "README.md", *(page for page in (ROOT / "docs").rglob("*.md") if page.name != "LOG.md")]


def named_benchmarks() -> list[str]:
    """`newllm bench …` in the README and the pages, but where it is cut short or stands for several."""
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    return sorted({line for line in re.findall(r"`newllm (bench [^`|…A-Z][^`|…]*)`", text)})


@pytest.mark.parametrize("line", named_benchmarks())
def test_the_benchmarks_that_pages_name_parse(line):
    assert parse(shlex.split(line))


def test_its_links_lead_somewhere():
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", README):
        assert (ROOT / target).exists(), target


def test_its_python_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path)
    tiny = {
        "hidden_size": 16,
        "context_dim": 16,
        "mlp_size": 16,
        "num_layers": 1,
        "vocab_size": 300,
        "max_seq_length": 16,
    }
    train(
        load_recipe(
            "demo",
            {
                **tiny,
                "sized_for": "cpu",
                "batch_size": 8,
                "max_steps": 2,
                "data_dir": "text",
                "output_dir": "checkpoints/new_llm_demo",
            },
        )
    )
    capsys.readouterr()
    exec(re.search(r"```python\n(.+?)```", README, re.DOTALL)[1], {})
    assert "<|user|>Hello!<|end|><|assistant|>" in capsys.readouterr().out
    shutil.rmtree("checkpoints")


def test_its_figures_are_measured():
    with open(ROOT / "benchmarks" / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(row["command"] and row["commit"] and row["hardware"] and row["versions"] for row in rows)
    values = [float(row["value"]) for row in rows]
    section = README.split("## Results")[1].split("Bits per byte counts")[0]
    table = [cell for line in section.splitlines() if line.startswith("| ") for cell in line.split("|")[2:4]]
    table += re.findall(r"\d\.\d{3}", section) + re.findall(r"(\d\.\d+) M tokens/s", section)
    figures = [
        float(n) * (1e6 if "M" in cell else 1)
        for cell in table
        for n in re.findall(r"(?<![\w.])\d+(?:\.\d+)?", cell)
    ]
    assert len(figures) > 10
    for figure in figures:
        off = (
            min(abs(value - meant) / meant for value in values for meant in (figure, 1e6 * figure) if meant)
            if figure
            else 0
        )
        assert off < 0.01, f"{figure} stands in README.md, but in no row of results.csv"
