"""Plain text: documents that are the file when put together, and files that cannot be read."""

import random

import pytest

from newllm_lib.data.readers.textfiles import document_kind, group_lines, read_lines
from newllm_lib.errors import NewLLMError
from tests.helpers.texts import read_documents

WIKITEXT = (
    " \n = First = \n \n Text of it . \n = not a heading = \n More . \n \n = = Part = = \n \n x \n \n"
    " = Second = \n \n y \n"
)


def documents(tmp_path, text: str | bytes) -> list[str]:
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_documents(path)


def test_articles_start_at_their_headings(tmp_path):
    first, second = documents(tmp_path, WIKITEXT)
    assert first.startswith(" \n = First = \n") and first.endswith(" x \n \n")
    assert second == " = Second = \n \n y \n"


def test_blank_lines_separate_blocks(tmp_path):
    assert documents(tmp_path, "\n\none\ntwo\n\n\nthree\n\nfour") == [
        "\n\none\ntwo\n\n\n",
        "three\n\n",
        "four",
    ]


def test_lines_where_there_are_no_blank_lines(tmp_path):
    assert documents(tmp_path, "one\ntwo\r\nthree\n") == ["one\n", "two\r\n", "three\n"]


def test_empty_file_has_no_documents(tmp_path):
    assert documents(tmp_path, "") == []


@pytest.mark.parametrize("seed", range(30))
def test_documents_concatenate_to_the_file(tmp_path, monkeypatch, seed):
    rng = random.Random(seed)
    # small limits, so that lines and documents are cut, also within a character of several bytes
    monkeypatch.setattr("newllm_lib.data.readers.textfiles.PIECE", rng.choice([5, 17, 1 << 20]))
    monkeypatch.setattr("newllm_lib.data.readers.textfiles.LONGEST", rng.choice([20, 1 << 20]))
    parts = [
        "\n",
        " \n",
        " = T = \n",
        "\n\n",
        "word ",
        "東京 ",
        "ü",
        "\r\n",
        " = = S = = \n",
        "\x00",
        "\u2028",
        "𝄞",
    ]
    text = "".join(rng.choices(parts, k=rng.randint(0, 200)))
    assert "".join(documents(tmp_path, text)) == text


def test_no_document_grows_without_bound(tmp_path, monkeypatch):
    monkeypatch.setattr("newllm_lib.data.readers.textfiles.PIECE", 10)
    monkeypatch.setattr("newllm_lib.data.readers.textfiles.LONGEST", 40)
    pieces = documents(tmp_path, "x" * 1000)
    assert "".join(pieces) == "x" * 1000 and max(map(len, pieces)) <= 40


def test_wikitext_has_its_sixty_articles(test_data):
    for name in ("wikitext-2.test.txt", "wikitext-2.valid.txt"):
        found = read_documents(test_data / name)
        assert len(found) == 60
        assert "".join(found).encode() == (test_data / name).read_bytes()


def test_dailydialog_is_one_dialogue_a_line(test_data):
    assert len(read_documents(test_data / "dailydialog.validation.txt")) == 1000


def test_the_kind_is_judged_by_headings_then_blank_lines():
    assert document_kind(" = Title = \n \n text") == "articles"
    assert document_kind("a\n = 1 and C = \nb\n") == "lines"  # WikiText has such formulas inside its articles
    assert document_kind("a\n\nb") == "blocks"
    assert document_kind("a\nb\n\n") == "lines"


def test_hub_rows_group_like_file_lines(tmp_path):
    path = tmp_path / "w.txt"
    path.write_text(WIKITEXT)
    assert list(group_lines(read_lines(path), "articles")) == read_documents(path)


def test_unreadable_utf8_names_file_byte_and_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr("newllm_lib.data.readers.textfiles.PIECE", 7)
    with pytest.raises(
        NewLLMError, match=r"a\.txt is not UTF-8: byte 13 \(0xe9\).*iconv -f CP1252 -t UTF-8"
    ) as error:
        documents(tmp_path, "naïve text\n".encode() + b"x\xe9y\n")
    assert "\n" not in str(error.value)


def test_utf16_is_recognised(tmp_path):
    with pytest.raises(NewLLMError, match="byte 0 .*iconv -f UTF-16"):
        documents(tmp_path, "hello".encode("utf-16"))


def test_a_character_cut_off_at_the_end_is_an_error(tmp_path):
    with pytest.raises(NewLLMError, match="byte 3 "):
        documents(tmp_path, b"abc\xe6\x9d")
