"""Splits and samples go by the content of the records: stable, without leaks, whatever the order."""

import random

import pytest

from newllm_lib.data.readers.base import Reading
from newllm_lib.data.readers.folder import FolderSource
from newllm_lib.data.records import Message, Record, RowStats
from newllm_lib.data.splits import read_splits, split_of
from tests.helpers.texts import dialogues, paragraphs, write_jsonl

ALL = {"train", "validation", "test"}


def split_texts(folder, wanted=ALL, max_samples=None) -> dict[str, list[str]]:
    found = {split: [] for split in wanted}
    for split, record in read_splits(FolderSource(folder), wanted, max_samples, RowStats()):
        found[split].append(record.text)
    return found


def source(tmp_path, texts, name="train"):
    tmp_path.mkdir(exist_ok=True)
    write_jsonl(tmp_path / f"{name}.jsonl", [{"text": t} for t in texts])
    return tmp_path


def test_every_record_is_in_exactly_one_split(tmp_path):
    texts = paragraphs(4000)
    splits = split_texts(source(tmp_path, texts))
    assert sorted(sum(splits.values(), [])) == sorted(texts)
    assert 140 < len(splits["validation"]) < 260 and 140 < len(splits["test"]) < 260  # 5 % of 4,000 each


def test_splits_do_not_depend_on_order_or_on_other_records(tmp_path):
    texts = paragraphs(500)
    shuffled = random.Random(1).sample(texts, len(texts))
    whole, mixed = split_texts(source(tmp_path / "a", texts)), split_texts(source(tmp_path / "b", shuffled))
    half = split_texts(source(tmp_path / "c", texts[:250]))
    for split in ALL:
        assert sorted(whole[split]) == sorted(mixed[split])
        assert set(half[split]) == set(whole[split]) & set(texts[:250])


def test_equal_records_are_never_in_two_splits(tmp_path):
    splits = split_texts(source(tmp_path, paragraphs(300) * 3))
    assert not set(splits["train"]) & (set(splits["validation"]) | set(splits["test"]))
    assert not set(splits["validation"]) & set(splits["test"])


def test_splits_are_what_they_were():
    """A changed hash would move records between the splits of runs made earlier."""
    digests = [Record("hello").digest(), Record(None, (Message("user", "hello"),)).digest()]
    assert [d.hex() for d in digests] == [
        "0e4a4e5529b6d565df55e42e470f7841",
        "b172efdcfd22fb331d77c7f80dc9675a",
    ]
    assert split_of(b"\x00" * 16, ["validation", "test"]) == "validation"
    assert split_of(b"\x0d" * 16, ["validation", "test"]) == "test"
    assert split_of(b"\x0d" * 16, ["validation"]) == "train"
    assert split_of(b"\x1a" * 16, ["validation", "test"]) == "train"


def test_a_split_of_the_source_stays_what_it_is(tmp_path):
    texts = paragraphs(500)
    folder = source(source(tmp_path, texts), ["one", "two"], "validation")
    splits = split_texts(folder)
    assert splits["validation"] == ["one", "two"]
    assert len(splits["train"]) + len(splits["test"]) == 500
    made_alone = split_texts(folder, {"test"})
    assert made_alone["test"] == splits["test"]


def test_training_records_that_a_split_of_the_source_holds_too_are_not_trained_on(tmp_path):
    texts = paragraphs(500)
    folder = source(source(tmp_path, texts + texts[:3]), [*texts[:20], "new"], "test")
    stats, found = RowStats(), {split: [] for split in ALL}
    for split, record in read_splits(FolderSource(folder), ALL, None, stats):
        found[split].append(record.text)
    assert found["test"] == [*texts[:20], "new"] and sorted(found["train"] + found["validation"]) == sorted(
        texts[20:]
    )
    assert stats.held_out == 23 and "23 records not trained on" in stats.summary() and not stats.bad
    few = split_texts(folder, {"train"}, 30)["train"]
    assert len(few) == 30 and set(few) <= set(found["train"])


def test_max_samples_takes_exactly_so_many_wherever_they_stand(tmp_path):
    texts = paragraphs(500)
    shuffled = random.Random(1).sample(texts, len(texts))
    for count in (1, 7, 100):
        a = split_texts(source(tmp_path / "a", texts), max_samples=count)
        b = split_texts(source(tmp_path / "b", shuffled), max_samples=count)
        assert len(a["train"]) == count and sorted(a["train"]) == sorted(b["train"])
        assert (
            a["validation"] == split_texts(tmp_path / "a")["validation"]
        )  # only the training split is made smaller
    few, more = (set(split_texts(tmp_path / "a", {"train"}, n)["train"]) for n in (50, 60))
    assert few < more


def test_max_samples_with_equal_records_and_more_than_there_are(tmp_path):
    folder = source(tmp_path, ["same"] * 10 + paragraphs(5))
    write_jsonl(folder / "validation.jsonl", [{"text": "v"}])
    write_jsonl(folder / "test.jsonl", [{"text": "t"}])
    for count in range(1, 16):
        assert len(split_texts(folder, {"train"}, count)["train"]) == count
    assert len(split_texts(folder, {"train"}, 1000)["train"]) == 15


def test_dialogues_that_differ_in_a_role_alone_are_different_records():
    a, b = (Record(None, (Message(role, "x"), Message("assistant", "y"))) for role in ("user", "system"))
    joined = Record(None, (Message("user", "xy"),))
    assert len({a.digest(), b.digest(), joined.digest(), Record("xy").digest()}) == 4
    assert len({Record(None, tuple(Message(**m) for m in d)).digest() for d in dialogues(100)}) == 100


def text_splits(tmp_path, text: str) -> dict[str, list[str]]:
    (tmp_path / "train.txt").write_text(text, encoding="utf-8")
    return split_texts(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "Title\n\n" + "".join(f"A sentence with the number {i} in it.\n" for i in range(150)),
        "".join(f"A sentence with the number {i} in it.\r\n" for i in range(40)) + "\r\n\r\n",
        "word " * 2000,
        "文字" * 3000,
        "x" * 5000,
        "A block of text.\nOf two lines, and\n\nanother block\nthat goes on\nfor long\n" * 30 + "and\n\nends",
        "A sentence.\n" * 500,
    ],
)
def test_enough_text_trains_whatever_its_shape(tmp_path, text):
    splits = text_splits(tmp_path, text)
    whole = sum(len(part) for parts in splits.values() for part in parts)
    assert all(splits.values()) and whole <= len(text)
    for split in ("validation", "test"):
        assert 0.01 < len("".join(splits[split])) / whole < 0.31 or len(set(text.splitlines())) < 9


def test_a_text_that_is_one_document_is_cut_at_its_end_and_loses_nothing(tmp_path):
    sentences = "".join(f"Sentence number {i} of a long text. " for i in range(800))
    splits = text_splits(tmp_path, sentences)
    train, validation, test = ("".join(splits[s]) for s in ("train", "validation", "test"))
    assert train + validation + test == sentences
    assert all(part.startswith("Sentence") for part in (train, validation, test))
    assert 0.03 < len(test) / len(sentences) < 0.12 and 0.03 < len(validation) / len(sentences) < 0.12


def test_pieces_of_one_document_stay_together(tmp_path, monkeypatch):
    monkeypatch.setattr("newllm_lib.data.readers.textfiles.LONGEST", 100)
    for i in range(12):
        (tmp_path / f"book_{i}.txt").write_text(f"book {i}\n" + f"line of {i}\n" * 40)
    source = FolderSource(tmp_path, reading=Reading(documents="file"))
    found = {}
    for split, record in read_splits(source, ALL, None, RowStats()):
        found.setdefault(split, []).append(record)
    assert set(found) == ALL
    for records in found.values():
        whole = "".join(r.text for r in records)
        starts = [r for r in records if not r.continues]
        assert all(r.text.startswith("book") for r in starts) and len(starts) == whole.count("book")
        assert all(whole.count(f"line of {r.text.split()[1]}\n") == 40 for r in starts)


def test_what_is_repeated_is_held_out_once_and_said(tmp_path):
    texts = [line for text in paragraphs(300) for line in (text, "###\n")]
    stats, found = RowStats(), []
    write_jsonl(tmp_path / "train.jsonl", [{"text": t} for t in texts])
    for split, record in read_splits(FolderSource(tmp_path), ALL, None, stats):
        found.append((split, record.text))
    assert found.count(("test", "###\n")) == 1 and ("train", "###\n") not in found
    assert list(stats.file.notes.values()) == [299]


def test_few_dialogues_are_dealt_out_too(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", [{"messages": talk} for talk in dialogues(8)])
    found = [split for split, _ in read_splits(FolderSource(tmp_path), ALL, None, RowStats())]
    assert sorted(found) == ["test"] + ["train"] * 6 + ["validation"]


def test_a_sample_of_few_records_is_taken_from_what_is_trained_on(tmp_path):
    splits = split_texts(source(tmp_path, paragraphs(30)), max_samples=5)
    assert len(splits["train"]) == 5 and splits["validation"] and splits["test"]
