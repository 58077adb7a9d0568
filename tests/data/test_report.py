"""What the data were taken for: noted by whoever reads, kept with what is packed, said before training."""

from collections import Counter

import pytest

from newllm_lib.data import load_split, prepare
from newllm_lib.data.readers.folder import FolderSource
from newllm_lib.data.records import DataReport, FileReport, RowStats
from tests.helpers.texts import paragraphs, write_jsonl


def test_a_report_is_the_same_when_it_is_read_again():
    part = FileReport("train", records=3, formats=Counter(Alpaca=2, ShareGPT=1), unread=Counter(id=3, url=1))
    report = DataReport(
        "mine", {"train.jsonl": part}, {"notes.md": "no ending that is read"}, {"test": "its own"}
    )
    import json

    again = DataReport.of(json.loads(report.to_json()))
    assert again == report
    assert list(again.lines()) == [
        "train.jsonl: 3 records, 2 x Alpaca and 1 x ShareGPT",
        "  not read: id, url (in 1 rows)",
        "not used: notes.md (no ending that is read)",
        "test: its own",
    ]


def test_segments_of_one_file_are_counted_together():
    whole, parts = RowStats(), [RowStats(), RowStats()]
    for part in parts:
        part.begin("train.jsonl", "train").roles["user"] += 2
        part.accept()
        part.reject("an empty message")
        whole.add(part.counts())
    found = whole.files["train.jsonl"]
    assert (found.records, found.roles, found.left_out, found.split) == (
        2,
        {"user": 4},
        {"an empty message": 2},
        "train",
    )


@pytest.mark.parametrize("streaming", ["auto", "on"])
def test_the_report_outlives_the_cache_and_evaluation_says_it_again(
    tmp_path, recipe, cache, capsys, streaming
):
    place = tmp_path / "mine"
    place.mkdir()
    write_jsonl(place / "train.jsonl", [{"text": text} for text in paragraphs(300)] + [{"text": 3}] * 2)
    wanted = recipe(data_dir=place, streaming=streaming, batch_size=4)
    reports = []
    for _ in range(2):
        data = prepare(wanted, cache)
        data.close()
        reports.append(data.report)
    assert reports[0] == reports[1]
    part = reports[0].files["train.jsonl"]
    assert part.records == 300 and part.left_out == {"text is of type int, not a string": 2}
    capsys.readouterr()
    load_split(wanted, data.tokenizer, "test", cache)
    assert "300 records" in capsys.readouterr().out


def test_what_an_older_version_packed_of_own_files_is_made_again(folder, recipe, cache):
    import json

    first = prepare(recipe(data_dir=folder), cache)
    meta = first.test.path / "meta.json"
    old = json.loads(meta.read_text())
    del old["report"]
    meta.write_text(json.dumps(old))
    again = prepare(recipe(data_dir=folder), cache)
    assert again.fingerprint == first.fingerprint and again.test.report.source == "texts"
    assert FolderSource(folder).own
