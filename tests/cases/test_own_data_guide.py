"""docs/guides/own-data.md: every example is read, and becomes what the page says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from newllm_lib.data.preferences.pairs import PAIRS, parse_pair
from newllm_lib.data.readers.folder import FolderSource
from newllm_lib.data.records import RowStats
from newllm_lib.data.schemas import parse_rows

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "own-data.md"
EXAMPLES = re.findall(
    r"^```text (\S+)\n(.*?)^```\n\nBecomes: (\d+) (documents|dialogues|pairs)\.(?: Not read: ([^\n]*)\.)?$",
    PAGE.read_text(encoding="utf-8"),
    re.MULTILINE | re.DOTALL,
)


def test_every_example_says_what_it_becomes():
    assert len(EXAMPLES) == PAGE.read_text(encoding="utf-8").count("```text ") > 10


@pytest.mark.parametrize("name, content, count, what, unread", EXAMPLES)
def test_the_examples_become_what_the_page_says(tmp_path, name, content, count, what, unread):
    (tmp_path / name).write_text(content, encoding="utf-8")
    source = FolderSource(tmp_path, {"train": [tmp_path / name]})
    if what == "pairs":
        stats = RowStats(PAIRS)
        found = list(parse_rows(source.rows("train"), stats, parse_pair))
    else:
        stats = RowStats()
        found = list(source.records("train", stats))
        assert all((record.text is None) == (what == "dialogues") for record in found)
    assert len(found) == int(count) and not stats.bad
    assert list(stats.file.unread) == ([unread] if unread else [])
