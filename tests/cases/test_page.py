"""Every row on docs/guides/own-data.md is what the page says it is."""

from __future__ import annotations

import json
import re
from pathlib import Path

from newllm_lib.data.preferences.pairs import parse_pair
from newllm_lib.data.schemas import parse_row

PAGE = (Path(__file__).parents[2] / "docs/guides/own-data.md").read_text(encoding="utf-8")
ASKED, ANSWERED = ("user", "Where does the Seine end?"), ("assistant", "In the English Channel.")
EARLIER = [("user", "Where does the Rhine end?"), ("assistant", "In the North Sea.")]


def rows(heading: str) -> list[list]:
    """The rows of each block of JSON below a heading."""
    (part,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    blocks = re.findall(r"```json\n(.*?)```", part, re.DOTALL)
    return [[json.loads(line) for line in block.splitlines()] for block in blocks]


def test_the_pages_dialogues_are_the_same():
    plain, with_more = rows("Dialogues")
    assert len(plain) > 9 and len(with_more) == 3
    for row in plain:
        assert [tuple(m) for m in parse_row(row).messages] == [ASKED, ANSWERED]
    for row in with_more:
        turns = [tuple(m) for m in parse_row(row).messages]
        assert turns == [("system", "Answer in one sentence."), *EARLIER, ASKED, ANSWERED]


def test_the_pages_pairs_are_the_same():
    (pairs,) = rows("Preference pairs")
    assert len(pairs) > 5
    for row in pairs:
        pair = parse_pair(row)
        assert [tuple(m) for m in pair.prompt] == [ASKED]
        assert (pair.chosen, pair.rejected) == (ANSWERED[1], "In a lake.")
