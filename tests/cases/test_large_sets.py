"""A set that is prepared while it is trained on is read as a small one is: the same turns, roles and mask,
and the same words about it, over every kind of row that the other cases have.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from newllm_lib.data import prepare, streaming
from newllm_lib.data.packing import PackedSplit
from newllm_lib.data.records import FileReport
from newllm_lib.data.streaming.segment_pool import SegmentPool
from newllm_lib.data.streaming.segment_worker import make
from tests.helpers.cases import turns
from tests.helpers.dialogue_kinds import KINDS, LEFT_OUT
from tests.helpers.texts import write_jsonl

ROWS = 6  # of each kind


def rows() -> list:
    found = [{"topic": "a", **row} if isinstance(row, dict) else row for row in _plain_rows()]
    found += [{"row_idx": i, "row": {"text": f"One level down lies row {i}."}} for i in range(ROWS)]
    found += [{"text": f"Before marker {i}.<|endoftext|>Behind marker {i}."} for i in range(ROWS)]
    return found + [row for row, _ in LEFT_OUT]


def _plain_rows() -> list:
    return [kind(i)[0] for kind in KINDS.values() for i in range(ROWS)]


def in_parquet(path: Path) -> Path:
    """The rows of the kinds whose columns have one type, a column for each name."""
    import pyarrow
    from pyarrow import parquet

    found = [row for row in rows() if isinstance(row, dict) and all(_is_flat(v) for v in row.values())]
    names = list(dict.fromkeys(name for row in found for name in row))
    table = pyarrow.table({name: [row.get(name) for row in found] for name in names})
    parquet.write_table(table, path / "train.parquet", row_group_size=40)
    return path


def _is_flat(value: object) -> bool:
    return isinstance(value, str) or value is None


@pytest.fixture
def here(monkeypatch):
    """Segments are packed in this process, and are small."""
    monkeypatch.setattr(SegmentPool, "plan", lambda self, numbers: None)
    monkeypatch.setattr(SegmentPool, "wait", lambda self, number: make(self.job, number))
    monkeypatch.setattr("newllm_lib.data.streaming.segments.SEGMENT_BYTES", 4096)
    monkeypatch.setattr("newllm_lib.data.streaming.segments.HEAD", 1000)
    monkeypatch.setattr(PackedSplit, "__reduce__", object.__reduce__)


def read(recipe, place: Path, cache: Path, how: str) -> tuple[list, FileReport]:
    """Every document of a folder as it is packed, and what is said of its training file."""
    data = prepare(recipe(data_dir=place, loss_on="answers", streaming=how, max_seq_length=2), cache)
    parts = [data.validation, data.test]
    if isinstance(data.train, streaming.StreamedSplit):
        number = 0
        while data.train.members(0, number):
            window, number = data.train.window(0, number), number + 1
            starts = np.flatnonzero(window.ids[:-1] == data.tokenizer.bos_token_id)
            parts.append(_Part(window.ids, starts, window.loss_mask))
        report = FileReport()
        for counts in data.train.stats.files.values():
            report.add(counts)
    else:
        parts.append(data.train)
        report = next(part for name, part in data.report.files.items() if name.startswith("train"))
    return sorted(map(tuple, (d for part in parts for d in turns(part, data.tokenizer)))), report


class _Part:
    def __init__(self, ids: np.ndarray, document_starts: np.ndarray, loss_mask: np.ndarray | None):
        self.ids, self.document_starts, self.loss_mask = ids, document_starts, loss_mask


@pytest.mark.parametrize("kind", [".jsonl", ".parquet"])
def test_a_large_set_is_read_as_a_small_one(kind, tmp_path, recipe, here):
    if kind == ".jsonl":
        write_jsonl(tmp_path / "train.jsonl", rows())
    else:
        in_parquet(tmp_path)
    small, said = read(recipe, tmp_path, tmp_path / "a", "off")
    large, said_too = read(recipe, tmp_path, tmp_path / "b", "on")
    assert set(map(json.dumps, small)) == set(map(json.dumps, large))
    assert len(small) > 60
    for name in ("records", "formats", "read", "unread", "left_out"):
        assert getattr(said, name) == getattr(said_too, name), name
    notes = {note: n for note, n in said.notes.items() if "where equal ones count once" not in note}
    assert notes == dict(said_too.notes)
