"""Files as people have them: encodings, names, packed, tables, rows in another shape, separators."""

import bz2
import gzip
import json
import lzma

import pytest

from newllm_lib.data.readers.base import PLAIN, Reading
from newllm_lib.data.readers.encodings import candidates, checked_name
from newllm_lib.data.readers.folder import FolderSource, look_into
from newllm_lib.data.records import RowStats
from newllm_lib.errors import NewLLMError, UsageError
from tests.helpers.texts import paragraphs, write_jsonl

TEXTS = {
    "cp932": "雨がやんだあと、{}番目の窓から海が見えた。",
    "euc_jp": "雨がやんだあと、{}番目の窓から海が見えた。",
    "iso2022_jp": "雨がやんだあと、{}番目の窓から海が見えた。",
    "gb18030": "雨停了以后，从第{}个窗户可以看到大海。",
    "big5": "雨停了以後，從第{}個窗戶可以看到大海。",
    "cp949": "비가 그친 뒤 {}번째 창문에서 바다가 보였다.",
    "cp1251": "После дождя из окна номер {} было видно море.",
    "koi8_r": "После дождя из окна номер {} было видно море.",
    "cp1252": "Après la pluie, on voyait la mer de la fenêtre {} – déjà.",
    "utf_16_le": "After the rain the sea was seen from window {}.",
    "utf_16_be": "After the rain the sea was seen from window {}.",
    "utf_32_le": "After the rain the sea was seen from window {}.",
    "utf_16": "雨がやんだあと、{}番目の窓から海が見えた。",
    "utf_32": "雨がやんだあと、{}番目の窓から海が見えた。",
}


def texts_of(folder, reading=PLAIN, split="train") -> list[str]:
    return [r.text for r in FolderSource(folder, reading=reading).records(split, RowStats())]


@pytest.mark.parametrize("kind", [".txt", ".jsonl", ".json", ".csv"])
@pytest.mark.parametrize("name", TEXTS)
def test_another_encoding_is_proposed_and_read_when_it_is_named(tmp_path, name, kind):
    lines = [TEXTS[name].format(i) for i in range(60)]
    rows = [json.dumps({"text": line}, ensure_ascii=False) for line in lines]
    text = {
        ".txt": "".join(line + "\n" for line in lines),
        ".jsonl": "\n".join(rows),
        ".json": f"[{','.join(rows)}]",
        ".csv": "text\n" + "".join(f'"{line}"\n' for line in lines),
    }[kind]
    (tmp_path / f"train{kind}").write_bytes(text.encode(name))
    with pytest.raises(NewLLMError) as error:
        texts_of(tmp_path)
    said = str(error.value)
    proposed = said.partition("--encoding ")[2].split(",")[0]
    assert said.startswith(f"{tmp_path / f'train{kind}'} is not UTF-8") and "\n" not in said
    assert checked_name(proposed) == name and "iconv -f" in said
    found = texts_of(tmp_path, Reading(encoding=proposed))
    assert [text.strip() for text in found] == lines


def test_a_wrong_encoding_names_the_byte_and_an_unknown_one_is_refused(tmp_path):
    (tmp_path / "train.txt").write_bytes("これは文です。\n".encode("euc_jp") * 9)
    with pytest.raises(NewLLMError, match=r"is not UTF-16: byte|is not KOI8|is not ISO-2022-JP: byte"):
        texts_of(tmp_path, Reading(encoding="iso2022_jp"))
    with pytest.raises(UsageError, match="--encoding sjiss is no encoding"):
        texts_of(tmp_path, Reading(encoding="sjiss"))


def test_a_file_that_is_plainly_utf8_is_read_as_that_beside_another(tmp_path):
    (tmp_path / "train.txt").write_bytes("雨がやんだ。\n".encode("cp932") * 9)
    (tmp_path / "test.txt").write_bytes("海が見えた。\n".encode())
    source = FolderSource(tmp_path, reading=Reading(encoding="cp932"))
    assert [r.text for r in source.records("test", RowStats())] == ["海が見えた。\n"]


@pytest.mark.parametrize("kind", [".txt", ".jsonl", ".json", ".csv"])
def test_a_mark_of_utf8_is_no_text(tmp_path, kind):
    content = {".txt": "one\ntwo\n", ".jsonl": '{"text": "one"}\n{"text": "two"}', ".csv": "text\none\ntwo\n"}
    text = content.get(kind, '["one", "two"]')
    (tmp_path / f"train{kind}").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert [text.strip() for text in texts_of(tmp_path)] == ["one", "two"]


def test_noise_is_no_encoding(tmp_path):
    import random

    assert isinstance(candidates(random.Random(0).randbytes(5000)), list)
    (tmp_path / "train.txt").write_bytes(random.Random(0).randbytes(5000))
    with pytest.raises(NewLLMError, match="is not UTF-8"):
        texts_of(tmp_path)


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x\n")


@pytest.mark.parametrize(
    "names, train, unused",
    [
        (
            ["train_0.txt", "train_1.txt", "train_10.txt", "train_2.txt"],
            "train_0 train_1 train_2 train_10",
            [],
        ),
        (["train1.txt", "train2.txt"], "train1 train2", []),
        (["train.part1.txt", "train.part2.txt"], "train.part1 train.part2", []),
        (["train.txt", "train2.txt", "train_extra.txt"], "train", ["train2.txt", "train_extra.txt"]),
        (
            ["train.txt", "Copy of train.txt", "train (1).txt"],
            "train",
            ["Copy of train.txt", "train (1).txt"],
        ),
        (["Copy of train.txt"], "Copy of train", []),
        (["train.txt", "._train.txt", ".DS_Store", "Thumbs.db", "~$train.txt", "train.txt~"], "train", []),
        (["train.txt", "notes.pdf", "README.md", "LICENSE"], "train", ["notes.pdf"]),
        (["train-00000-of-00001-a09b74b3ef9c3b56.txt"], "train-00000-of-00001-a09b74b3ef9c3b56", []),
        (["my book.txt"], "my book", []),
        (["chapter 10.txt", "chapter 9.txt"], "chapter 9|chapter 10", []),
        (["train/b.txt", "train/a.txt", "test/a.txt"], "a b", []),
        (["data/train.txt"], "train", []),
        (["train.txt", "raw/other.txt"], "train", ["raw/"]),
        (["training.txt", "testing.txt"], "training", []),
    ],
)
def test_names_that_files_have(tmp_path, names, train, unused):
    touch(tmp_path, *names)
    found = look_into(tmp_path)
    wanted = train.split("|") if "|" in train or " " in names[0] else train.split(" ")
    assert [p.name.removesuffix(".txt") for p in found.splits["train"]] == wanted
    assert sorted(found.unused) == sorted(unused)


def test_an_empty_file_beside_is_not_named_and_what_is_there_is_in_the_error(tmp_path):
    touch(tmp_path, "scan.pdf", "table.xlsx")
    (tmp_path / "nothing.bin").touch()
    with pytest.raises(UsageError, match=r"scan\.pdf: save its text as \.txt; table\.xlsx: save it as \.csv"):
        look_into(tmp_path)


def test_files_of_several_kinds_without_a_split_are_named(tmp_path):
    touch(tmp_path, "a.txt", "b.jsonl")
    with pytest.raises(UsageError, match=r"several kinds.*a\.txt, b\.jsonl"):
        look_into(tmp_path)


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_missing_part_is_named(tmp_path, lost):
    touch(tmp_path, *(f"train-0000{i}-of-00003-0123456789abcdef.txt" for i in range(3) if i != lost))
    with pytest.raises(UsageError, match=rf"train-0000{lost}-of-00003\.txt is missing: 2 of 3 parts"):
        FolderSource(tmp_path)


def test_a_gap_in_numbers_is_said(tmp_path):
    touch(tmp_path, "train_1.txt", "train_3.txt")
    assert list(FolderSource(tmp_path).unused) == ["part 2 of train_1.txt …"]


@pytest.mark.parametrize("pack, ending", [(gzip, ".gz"), (bz2, ".bz2"), (lzma, ".xz"), (None, ".zst")])
@pytest.mark.parametrize("kind", [".txt", ".jsonl", ".csv", ".json"])
def test_packed_files(tmp_path, pack, ending, kind):
    texts = [f"{text} {i}" for i, text in enumerate(paragraphs(30))]
    rows = [json.dumps({"text": text}) for text in texts]
    plain = {
        ".txt": "\n".join(texts),
        ".jsonl": "\n".join(rows),
        ".csv": "\n".join(["text", *texts]),
        ".json": f"[{','.join(rows)}]",
    }[kind].encode()
    if pack is None:
        import pyarrow

        packed = pyarrow.compress(plain, "zstd", asbytes=True)
    else:
        packed = pack.compress(plain)
    (tmp_path / f"train{kind}{ending}").write_bytes(packed)
    assert [text.strip() for text in texts_of(tmp_path)] == texts
    (tmp_path / f"train{kind}{ending}").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(NewLLMError, match="cannot be unpacked|cut off|not valid"):
        texts_of(tmp_path)


@pytest.mark.parametrize(
    "name, table",
    [
        ("train.csv", 'id,text\n1,one\n2,"a ""b"", c"\n3,"two\nlines"\n'),
        ("train.csv", 'id;text\n1;one\n2;"a ""b"", c"\n3;"two\nlines"\n'),
        ("train.csv", 'sep=;\r\nid;text\r\n1;one\r\n2;"a ""b"", c"\r\n3;"two\nlines"\r\n'),
        ("train.tsv", 'id\ttext\n1\tone\n2\t"a ""b"", c"\n3\t"two\nlines"\n'),
    ],
)
def test_tables(tmp_path, name, table):
    (tmp_path / name).write_bytes(table.encode())
    assert texts_of(tmp_path) == ["one", 'a "b", c', "two\nlines"]


def test_a_tsv_without_quoting_keeps_its_marks(tmp_path):
    (tmp_path / "train.tsv").write_text('text\tn\n"Well" said he\t1\nThe "end\t2\n', encoding="utf-8")
    assert texts_of(tmp_path) == ['"Well" said he', 'The "end']


def test_a_torn_table_is_an_error_and_a_ragged_line_a_bad_row(tmp_path):
    (tmp_path / "train.csv").write_text('text,n\none,1\n"two,2\nthree,3\n')
    with pytest.raises(NewLLMError, match=r"cannot be read as a table after line 2 .*doubled"):
        texts_of(tmp_path)
    (tmp_path / "train.csv").write_text("text,n\n" + "one,1\n" * 40 + "two, three,3\n")
    stats = RowStats()
    assert len(list(FolderSource(tmp_path).records("train", stats))) == 40
    assert stats.reasons == {"3 values below a header of 2 columns": 1}


@pytest.mark.parametrize("spelled", ["json", "python"])
def test_turns_in_a_table(tmp_path, spelled):
    import csv

    turns = [{"role": "user", "content": 'It\'s "here"?'}, {"role": "assistant", "content": "Yes, あ."}]
    with open(tmp_path / "train.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["messages"])
        writer.writerow([json.dumps(turns) if spelled == "json" else repr(turns)])
    (record,) = FolderSource(tmp_path).records("train", RowStats())
    assert [message._asdict() for message in record.messages] == turns


@pytest.mark.parametrize(
    "content",
    [
        '{"data": ["one", "two"]}',
        '["one", "two"]',
        '{"data": [{"text": "one"}, {"text": "two"}]}',
        '{"version": "1.0", "ok": true, "data": [{"text": "one"}, {"text": "two"}], "end": [1]}',
        '{"features": [{"a": 1}], "rows": [{"i": 0, "row": {"text": "one"}}, {"row": {"text": "two"}}]}',
        '{"text": ["one", "two"], "n": [1, 2]}',
        '{"text": {"0": "one", "1": "two"}, "n": {"0": 1, "1": 2}}',
        '{"a": {"text": "one"}, "b": {"text": "two"}}',
        '[{"row": {"text": "one"}}, {"row": {"text": "two"}}]',
        '[{"id": 1, "data": {"text": "one"}}, {"id": 2, "data": {"text": "two"}}]',
        '{"text": "one"}\n{"text": "two"}',
    ],
)
def test_rows_in_another_shape(tmp_path, content):
    (tmp_path / "train.json").write_text(content)
    assert texts_of(tmp_path) == ["one", "two"]


def test_rows_one_level_down_are_said_and_one_row_is_one_row(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", [{"i": 1, "row": {"text": "one"}}])
    stats = RowStats()
    assert [r.text for r in FolderSource(tmp_path).records("train", stats)] == ["one"]
    assert stats.file.notes == {"rows lie one level down, in row": 1}
    (tmp_path / "train.jsonl").unlink()
    (tmp_path / "train.json").write_text('{"messages": [{"role": "user", "content": "a"}], "id": [1]}')
    (record,) = FolderSource(tmp_path).records("train", RowStats())
    assert record.messages == (("user", "a"),)


def test_columns_of_parquet_that_are_not_read_are_named(tmp_path):
    import pyarrow
    from pyarrow import parquet

    rows = [{"text": f"one {i}", "notes": "x" if i < 2 else None, "empty": None} for i in range(5)]
    table = pyarrow.Table.from_pylist(rows)
    parquet.write_table(table, tmp_path / "train.parquet", row_group_size=2)
    stats = RowStats()
    list(FolderSource(tmp_path).records("train", stats))
    assert stats.file.unread == {"notes": 2}


STORIES = ["A first story.\nIt has two lines.\n", "A second.\n\nWith a blank line.\n", "A third.\n"]


@pytest.mark.parametrize(
    "text",
    [
        "<|endoftext|>\n".join(STORIES),
        "".join(f"<|startoftext|>{story}<|endoftext|>\n" for story in STORIES),
        "<|endoftext|>".join(STORIES),
        "<|endoftext|>\r\n".join(STORIES),
        "</s>\n".join(STORIES),
        "".join(f"<s>\n{story}</s>\n" for story in STORIES),
        "[SEP]\n".join(STORIES),
        "\f".join(STORIES),
        "\f\n".join(STORIES),
        "<|end_of_text|>\n".join(STORIES),
    ],
)
def test_separators_part_documents_and_are_no_text(tmp_path, text):
    (tmp_path / "train.txt").write_bytes(text.encode())
    assert texts_of(tmp_path) == STORIES


def test_sentences_with_their_ends_marked(tmp_path):
    (tmp_path / "train.txt").write_text("".join(f"<s> sentence {i} </s>\n" for i in range(5)))
    assert [text.strip() for text in texts_of(tmp_path)] == [f"sentence {i}" for i in range(5)]


@pytest.mark.parametrize("kind", [".jsonl", ".csv"])
def test_markers_in_a_row_part_its_text(tmp_path, kind):
    text = "one<|endoftext|>two<|endoftext|>"
    body = json.dumps({"text": text}) if kind == ".jsonl" else f"text\n{text}\n"
    (tmp_path / f"train{kind}").write_text(body)
    assert texts_of(tmp_path) == ["one", "two"]


def test_a_marker_after_the_first_mebibyte_and_one_between_two_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("newllm_lib.data.readers.textfiles.PIECE", 64)
    monkeypatch.setattr("newllm_lib.data.readers.textfiles.LONGEST", 100)
    story = "word " * 300
    (tmp_path / "train.txt").write_text(f"{story}<|endoftext|>{story}")
    records = list(FolderSource(tmp_path).records("train", stats := RowStats()))
    assert "".join(r.text for r in records) == story * 2 and stats.good == 2
    assert [r.continues for r in records].count(False) == 2 and max(len(r.text) for r in records) <= 140


@pytest.mark.parametrize(
    "asked, count",
    [("lines", 6), ("paragraphs", 3), ("file", 1), ("separator", 3), ("auto", 4)],
)
def test_documents_as_they_are_asked_for(tmp_path, asked, count):
    (tmp_path / "train.txt").write_text("one\n###\ntwo\ntwo b\n\n###\n\nthree\n")
    stats = RowStats()
    found = list(FolderSource(tmp_path, reading=Reading(documents=asked)).records("train", stats))
    if asked == "separator":
        assert [r.text.strip() for r in found] == ["one", "two\ntwo b", "three"]
    elif asked != "auto":
        assert len(found) == count
    assert stats.file.documents


def test_separators_that_are_not_there_are_asked_for(tmp_path):
    (tmp_path / "train.txt").write_text("one\ntwo\n")
    with pytest.raises(UsageError, match="--documents separator: .* no separator"):
        texts_of(tmp_path, Reading(documents="separator"))
