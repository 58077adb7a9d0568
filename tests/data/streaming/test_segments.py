"""Files read in segments hold the same records as files read from end to end, wherever they are cut."""

import json
import random

import pytest

from newllm_lib.data.readers.base import DataFile
from newllm_lib.data.readers.folder import FolderSource, LocalReader, read_file
from newllm_lib.data.records import RowStats
from newllm_lib.data.schemas import parse_rows
from newllm_lib.data.splits import read_splits
from newllm_lib.data.streaming import segments
from newllm_lib.data.streaming.segments import LargeSource, cut, fetch, read_rows
from tests.helpers.texts import dialogues, paragraphs, write_jsonl


def in_file_order(files):
    return sorted(cut(files))


def rows_of(path, size, monkeypatch):
    monkeypatch.setattr(segments, "SEGMENT_BYTES", size)
    found = []
    for segment in in_file_order([DataFile(str(path), path.stat().st_size)]):
        found += [row for _, row in read_rows(segment, LocalReader())]
    return found


LINES = [json.dumps({"text": f"ä {i}"}, ensure_ascii=False) for i in range(30)]
ENDINGS = {
    "plain": "\n".join(LINES) + "\n",
    "no line break at the end": "\n".join(LINES),
    "windows": "\r\n".join(LINES) + "\r\n",
    "blank lines": "\n\n".join(LINES) + "\n\n\n",
    "byte order mark": "\ufeff" + "\n".join(LINES),
    "one long line": '{"text": "%s"}\n' % ("x" * 5000) + "\n".join(LINES),
}


@pytest.mark.parametrize("kind", ENDINGS)
def test_lines_are_read_once_wherever_the_file_is_cut(kind, tmp_path, monkeypatch):
    path = tmp_path / "train.jsonl"
    path.write_bytes(ENDINGS[kind].encode())
    expected = [
        json.loads(line) for line in ENDINGS[kind].removeprefix("\ufeff").splitlines() if line.strip()
    ]
    for size in (1, 2, 3, 15, 16, 17, 64, 333, 10_000):
        assert rows_of(path, size, monkeypatch) == expected, size


def test_a_line_longer_than_the_first_extra_piece_is_whole(tmp_path, monkeypatch):
    path = write_jsonl(tmp_path / "train.jsonl", [{"text": "y" * 700_000}, {"text": "z"}])
    assert [len(row["text"]) for row in rows_of(path, 1000, monkeypatch)] == [700_000, 1]


def test_bytes_that_are_not_utf8_are_a_bad_row_with_its_place(tmp_path, monkeypatch):
    (tmp_path / "train.jsonl").write_bytes(b'{"text": "a"}\n{"text": "\xff"}\n{"text": "b"}\n')
    (segment,) = cut([DataFile(str(tmp_path / "train.jsonl"), 42)])
    stats = RowStats()
    assert [r.text for r in parse_rows(read_rows(segment, LocalReader()), stats)] == ["a", "b"]
    assert stats.reasons == {"not UTF-8": 1} and stats.first_at.endswith("train.jsonl, byte 14")


@pytest.mark.parametrize("group", [1, 7, 100])
def test_row_groups_of_parquet_are_read_once(group, tmp_path, monkeypatch):
    import pyarrow
    from pyarrow import parquet

    path = tmp_path / "train.parquet"
    rows = [{"messages": m, "prompt_id": "x"} for m in dialogues(60)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=group)
    for size in (50, 1000, 1 << 20):
        assert [row["messages"] for row in rows_of(path, size, monkeypatch)] == [
            row["messages"] for row in rows
        ], size


def large(folder, monkeypatch, size=3000, head=5):
    monkeypatch.setattr(segments, "SEGMENT_BYTES", size)
    monkeypatch.setattr(segments, "HEAD", head)
    return LargeSource(FolderSource(folder))


def test_the_sample_is_spread_over_all_files_and_always_the_same(tmp_path, monkeypatch):
    for shard in range(4):
        write_jsonl(
            tmp_path / f"train-0000{shard}-of-00004.jsonl", [{"text": t} for t in paragraphs(60, seed=shard)]
        )
    source = large(tmp_path, monkeypatch, head=12)
    assert source.segments("train") == large(tmp_path, monkeypatch, head=12).segments("train")
    assert {segment.place for segment in source.sample("train")} == {
        s.place for s in source.segments("train")
    }
    whole = sorted(r.text for path in sorted(tmp_path.glob("*.jsonl")) for r in read_file(path, RowStats()))
    monkeypatch.setattr(segments, "HEAD", 10**6)
    assert sorted(r.text for r in source.records("train", RowStats())) == whole


def test_max_samples_are_the_first_and_no_more_is_read(tmp_path, monkeypatch):
    write_jsonl(tmp_path / "train.jsonl", [{"text": t} for t in paragraphs(300)])
    source = large(tmp_path, monkeypatch, head=50)
    read = []
    monkeypatch.setattr(
        segments, "fetch", lambda segment, reader: read.append(segment) or fetch(segment, reader)
    )
    first = [r for _, r in read_splits(source, {"train"}, 20, RowStats())]
    assert len(first) == 20 and len(read) < 5
    assert [r for _, r in read_splits(source, {"train"}, 30, RowStats())][:20] == first


def test_splits_that_the_source_has_itself_are_sampled_if_they_can_be(tmp_path, monkeypatch):
    write_jsonl(tmp_path / "train.jsonl", [{"text": t} for t in paragraphs(100)])
    write_jsonl(tmp_path / "validation.jsonl", [{"text": t} for t in paragraphs(100, seed=1)])
    (tmp_path / "test.txt").write_text("\n\n".join(paragraphs(40, seed=2)))
    source = large(tmp_path, monkeypatch)
    assert 5 < len(list(source.records("validation", RowStats()))) < 60
    assert len(list(source.records("test", RowStats()))) == 40


def test_random_cuts_of_a_random_file(tmp_path, monkeypatch):
    rng = random.Random(0)
    path = write_jsonl(tmp_path / "train.jsonl", [{"text": "ü" * rng.randint(0, 400)} for _ in range(200)])
    whole = [r.text for r in read_file(path, RowStats())]
    for _ in range(5):
        rows = rows_of(path, rng.randint(1, 5000), monkeypatch)
        assert [row["text"] for row in rows if row["text"]] == whole
