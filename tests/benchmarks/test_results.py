"""Figures: rows with all that is needed to measure them again, tables and pictures made from them."""

import csv
from pathlib import Path

import pytest

from benchmarks import table as results
from benchmarks.common import COLUMNS, Rows, read
from newllm_lib.errors import NewLLMError


@pytest.fixture
def figures(tmp_path):
    """A CSV with an old and a new figure of each benchmark."""
    file = tmp_path / "results.csv"
    for factor in (0.5, 1.0):
        speed, decode, quality = (
            Rows(name, f"newllm bench {name}") for name in ("speed", "decode", "quality")
        )
        speed.add("New-LLM, graphs", "training step", 9e6 * factor, "tokens/s")
        speed.add("New-LLM, graphs", "each training step waited for", 8.5e6 * factor, "tokens/s")
        speed.add("New-LLM, graphs", "peak memory of a training step", 2.5, "GiB")
        speed.add("GPT-2 (transformers), compiled", "training step", 4.6e6 * factor, "tokens/s")
        decode.add("New-LLM, captured step", "decoding after 16 tokens, batch 1", 8400 * factor, "tokens/s")
        decode.add(
            "New-LLM, captured step", "decoding after 65,536 tokens, batch 1", 8200 * factor, "tokens/s"
        )
        decode.add("New-LLM, captured step", "memory after 16 tokens, batch 1", 48 * factor, "MiB")
        decode.add("GPT-2", "decoding after 16 tokens, batch 1", 350, "tokens/s")
        quality.add("new_llm", "bits per byte, chitchat test, 4M", 1.25 * factor, "bit/byte")
        quality.add("new_llm", "deviation over seeds, chitchat test, 4M", 0.002, "bit/byte")
        quality.add("attention", "bits per byte, chitchat test, 10M", 1.31, "bit/byte")
        for rows in (speed, decode, quality):
            rows.append_to(file)
    return file


def test_rows_say_how_to_measure_again(figures):
    rows = read(figures)
    assert len(rows) == 22 and list(rows[0]) == list(COLUMNS)
    assert all(row[name] for row in rows for name in ("date", "hardware", "versions", "commit", "command"))
    assert {row["command"] for row in rows} == {
        "newllm bench speed",
        "newllm bench decode",
        "newllm bench quality",
    }


def test_another_table_is_not_appended_to(tmp_path):
    with (tmp_path / "other.csv").open("w", newline="") as file:
        csv.writer(file).writerow(["a", "b"])
    with pytest.raises(NewLLMError, match="other columns"):
        Rows("speed", "x").append_to(tmp_path / "other.csv")


def test_the_pages_tables_hold_the_newest_figures(figures, tmp_path):
    page = tmp_path / "results" / "page.md"
    page.parent.mkdir()
    marks = [results._BEGIN.format(name=n) + "\nold\n" + results._END.format(name=n) for n in results.TABLES]
    page.write_text("Before\n" + "\nbetween\n".join(marks) + "\nafter\n", encoding="utf-8")
    assert results.write_tables(figures, page.parent)
    text = page.read_text(encoding="utf-8")
    assert text.startswith("Before\n") and text.endswith("after\n") and "old" not in text
    assert "| New-LLM, graphs | 9.00 M | 8.50 M | 2.50 |" in text and text.index("GPT-2 (trans") < text.index(
        "New-LLM, graphs"
    )
    assert "| New-LLM, captured step | 8,400 (48.0 MiB) | 8,200 |" in text and "| GPT-2 | 350 | – |" in text
    assert "| bits per byte | New-LLM | modern attention |" in text
    assert "| chitchat test, 4M | 1.250 ± 0.002 | – |\n| chitchat test, 10M | – | 1.310 |" in text
    assert not results.write_tables(figures, page.parent)
    page.write_text("no marks", encoding="utf-8")
    with pytest.raises(NewLLMError, match="No page"):
        results.write_tables(figures, page.parent)


@pytest.mark.parametrize("name", ["speed", "decode", "quality"])
def test_pictures_are_drawn(name, figures, tmp_path):
    results.draw(figures, name, tmp_path / "docs" / f"{name}.png")
    assert (tmp_path / "docs" / f"{name}.png").stat().st_size > 5000


def test_no_figure_stands_twice():
    """Of the project's own file."""
    rows = [tuple(row.values()) for row in read(Path(__file__).parents[2] / "benchmarks" / "results.csv")]
    assert len(rows) == len(set(rows))
