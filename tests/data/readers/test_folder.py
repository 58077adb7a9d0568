"""`--data_dir`: which files are found, what their rows become, and one clear line for each mistake."""

import json

import pytest

from newllm_lib.data import prepare
from newllm_lib.data.readers.file_names import find_files
from newllm_lib.data.readers.folder import read_file
from newllm_lib.data.records import Message, Record, RowStats
from newllm_lib.errors import NewLLMError, UsageError
from tests.helpers.texts import dialogues, paragraphs, write_jsonl


def touch(place, *names):
    for name in names:
        (place / name).write_text("x\n")


@pytest.mark.parametrize(
    "name, split",
    [
        ("train.txt", "train"),
        ("validation.jsonl", "validation"),
        ("valid.json", "validation"),
        ("val.txt", "validation"),
        ("dev.parquet", "validation"),
        ("test.txt", "test"),
        ("Train.TXT", "train"),
        ("wikitext-2.valid.txt", "validation"),
        ("my_corpus_test.txt", "test"),
        ("train-00000-of-00002.parquet", "train"),
    ],
)
def test_names_of_splits(tmp_path, name, split):
    touch(tmp_path, name)
    assert {s: [p.name for p in paths] for s, paths in find_files(tmp_path).items()} == {split: [name]}


def test_other_files_are_passed_over(tmp_path):
    touch(tmp_path, "train.txt", "README.md", "constrain.txt", "train.txt.gz", "training.txt", "notes.txt")
    (tmp_path / "test.txt").mkdir()
    assert {s: [p.name for p in paths] for s, paths in find_files(tmp_path).items()} == {
        "train": ["train.txt"]
    }


def test_shards_are_one_split_in_order(tmp_path):
    names = ["train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl"]
    touch(tmp_path, *reversed(names))
    assert [p.name for p in find_files(tmp_path)["train"]] == names


@pytest.mark.parametrize(
    "names", [("a.valid.txt", "b.valid.txt"), ("valid.txt", "dev.txt"), ("valid.txt", "valid.jsonl")]
)
def test_two_files_for_one_split_are_named(tmp_path, names):
    touch(tmp_path, "train.txt", *names)
    with pytest.raises(UsageError, match="could be the validation split") as error:
        find_files(tmp_path)
    assert all(name in str(error.value) for name in names) and "\n" not in str(error.value)


def test_missing_empty_and_wrong_folders(tmp_path, recipe, cache):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    for name, says in (
        ("nowhere", "does not exist"),
        ("empty", "No data files"),
        ("file", "is a file, not a folder"),
    ):
        with pytest.raises(UsageError, match=says) as error:
            prepare(recipe(data_dir=tmp_path / name), cache)
        assert name in str(error.value) and "train.txt" in str(error.value) and "\n" not in str(error.value)


def test_a_folder_without_train_says_what_is_missing(tmp_path, recipe, cache):
    touch(tmp_path, "validation.txt", "test.txt")
    with pytest.raises(UsageError, match=r"has no train split, only test, validation: add train\.txt"):
        prepare(recipe(data_dir=tmp_path), cache)


@pytest.mark.parametrize("name", ["train.txt", "train.jsonl", "train.json"])
def test_an_empty_train_file(tmp_path, recipe, cache, name):
    (tmp_path / name).write_text("[]" if name.endswith(".json") else "")
    with pytest.raises(NewLLMError, match="train split holds no text"):
        prepare(recipe(data_dir=tmp_path), cache)


def rows_of(path) -> tuple[list[Record], RowStats]:
    stats = RowStats()
    return list(read_file(path, stats)), stats


def write_rows(tmp_path, kind: str, rows: list):
    path = tmp_path / f"train{kind}"
    if kind == ".parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=7)
    elif kind == ".json":
        path.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    else:
        write_jsonl(path, rows)
    return path


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".parquet"])
def test_rows_of_text(tmp_path, kind):
    texts = paragraphs(50) + ["line\nbreaks\r\n", "<|end|>", "\x00", "  "]
    records, stats = rows_of(write_rows(tmp_path, kind, [{"text": t, "id": i} for i, t in enumerate(texts)]))
    assert [r.text for r in records] == texts and stats.bad == 0


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".parquet"])
def test_rows_of_messages(tmp_path, kind):
    chats = dialogues(50)
    records, _ = rows_of(write_rows(tmp_path, kind, [{"messages": c} for c in chats]))
    assert [r.messages for r in records] == [
        tuple(Message(m["role"], m["content"]) for m in c) for c in chats
    ]


def test_json_file_that_holds_json_lines(tmp_path):
    write_jsonl(tmp_path / "train.json", [{"text": "a"}, {"text": "b"}])
    assert [r.text for r in rows_of(tmp_path / "train.json")[0]] == ["a", "b"]


def test_json_is_read_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("newllm_lib.data.readers.jsonfiles.PIECE", 3)
    texts = ["", "a", "ü" * 50, '"]}', "東京"]
    path = write_rows(tmp_path, ".json", [{"text": t, "n": 123456} for t in texts])
    assert [r.text for r in rows_of(path)[0]] == texts[1:]  # a row without text is none


@pytest.mark.parametrize(
    "content, says",
    [
        ('[{"text": "a"}, {"text": ', "near byte 16"),
        ('[{"text": "a"} {"text": "b"}]', "a , is missing"),
        ('[{"text": "a"}', "cut off"),
        ("[1, 2", "cut off"),
        ('[{"text": "a"}] x', "more after the end"),
        ("hello", "not valid JSON"),
    ],
)
def test_broken_json_says_where(tmp_path, content, says):
    path = tmp_path / "train.json"
    path.write_text(content)
    with pytest.raises(NewLLMError, match=says) as error:
        rows_of(path)
    assert "train.json is broken near byte" in str(error.value) and "\n" not in str(error.value)


def test_truncated_parquet(tmp_path):
    path = write_rows(tmp_path, ".parquet", [{"text": t} for t in paragraphs(50)])
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(
        NewLLMError, match=r"train\.parquet cannot be read as parquet .*is it whole\?"
    ) as error:
        rows_of(path)
    assert "\n" not in str(error.value)


def test_a_wrong_schema_names_the_first_row_and_the_right_one(tmp_path):
    for kind in (".jsonl", ".json", ".parquet"):
        (place := tmp_path / kind[1:]).mkdir()
        write_rows(place, kind, [{"clue": "a", "reply": "b"}] * 5)
        with pytest.raises(NewLLMError, match=r"5 of 5 rows.*clue, reply.*\"text\".*\"messages\"") as error:
            list(_source_records(place))
        assert any(where in str(error.value) for where in ("line 1:", "record 1:", "row 1:"))


def _source_records(place, stats=None):
    from newllm_lib.data.readers.folder import FolderSource

    return FolderSource(place).records("train", stats or RowStats())


BAD_ROWS = [
    {"text": 3},
    {"text": None},
    {"messages": "hi"},
    {"messages": [{"role": "user"}]},
    {"messages": ["x"]},
    {"messages": [{"role": "robot", "content": "x"}]},
    {"messages": [{"role": "user", "content": " "}]},
    {"other": 1},
    ["x"],
    "x",
    1,
    None,
]


def test_a_few_bad_rows_are_skipped_and_counted(tmp_path):
    path = write_jsonl(tmp_path / "train.jsonl", BAD_ROWS + [{"text": t} for t in paragraphs(400)])
    with open(path, "a") as file:
        file.write('{"text": "half of a pair \\ud800"}\n{"text": "cut o')
    stats = RowStats()
    assert len(list(_source_records(tmp_path, stats))) == 400
    assert stats.bad == len(BAD_ROWS) + 2
    summary = stats.summary()
    assert "14 rows skipped" in summary and "train.jsonl, line 1" in summary
    assert stats.reasons["not valid JSON"] == 1


def test_too_many_bad_rows_stop(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", [{"text": t} for t in paragraphs(94)] + [{"text": 5}] * 6)
    with pytest.raises(
        NewLLMError, match=r"6 of 100 rows are no records; the first: .*line 95: text is of type int"
    ):
        list(_source_records(tmp_path))


def test_unreadable_utf8_in_jsonl_names_the_byte(tmp_path):
    (tmp_path / "train.jsonl").write_bytes(b'{"text": "ok"}\n{"text": "caf\xe9"}\n')
    with pytest.raises(NewLLMError, match=r"train\.jsonl is not UTF-8: byte 28 "):
        list(_source_records(tmp_path))
