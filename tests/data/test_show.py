"""`newllm data show` and `data check`: what is read, token by token, and whether it can be trained on."""

import json

import pytest

from newllm_lib.cli import main
from newllm_lib.data import look
from newllm_lib.recipe import load_recipe
from tests.helpers.texts import dialogues, paragraphs, write_jsonl


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("NEWLLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    return tmp_path / "mine"


def test_what_the_loss_counts_is_marked(place, capsys):
    rows = [{"messages": talk, "id": i} for i, talk in enumerate(dialogues(60))]
    write_jsonl(place / "train.jsonl", rows)
    words = ["data", "show", "mine", "--loss_on", "answers", "--vocab_size", "400", "--count", "2"]
    assert main(words) == 0
    said = capsys.readouterr().out
    first = rows[0]["messages"]
    assert f"<|user|>{first[0]['content']}<|end|><|assistant|>⟦{first[1]['content']}<|end|>⟧" in said
    assert "not read: id" in said and "record 2:" in said and "record 3:" not in said
    assert "a word" in said and "longer than a window of" in said and "\x1b" not in said


def test_the_same_as_values_for_notebooks_and_json(place, capsys, tmp_path):
    write_jsonl(place / "train.jsonl", [{"messages": talk} for talk in dialogues(60)])
    choices = {"data": str(place), "loss_on": "answers", "vocab_size": 400}
    sample = look(load_recipe("demo", choices, device_kind="cpu"), count=1)
    (shown,) = sample.records
    assert 0 < shown.counted < shown.tokens
    assert [piece.counts for piece in shown.pieces][:2] == [False, True]
    assert len(sample.lengths) > 40 and sample.window == 64 and sample.tokens_per_word > 1
    assert any("\x1b[32m" in line for line in sample.lines(colour=True))
    sample.picture(tmp_path / "lengths.png")
    assert (tmp_path / "lengths.png").read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    words = ["data", "show", "mine", "--loss_on", "answers", "--vocab_size", "400", "--json", "--count", "1"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["records"][0]["pieces"][1]["counts"] and found["report"]["files"]["train.jsonl"]


def test_what_a_terminal_would_obey_is_shown_harmlessly(place):
    write_jsonl(place / "train.jsonl", [{"text": f"\x1b[2J number {i} of these"} for i in range(60)])
    sample = look(load_recipe("demo", {"data": str(place), "vocab_size": 400}, device_kind="cpu"))
    assert not any("\x1b[2J" in line for line in sample.lines(colour=True))


def test_a_file_a_run_and_pairs_are_shown_too(place, capsys, tmp_path):
    (tmp_path / "book.txt").write_text("\n\n".join(paragraphs(300)), encoding="utf-8")
    assert main(["data", "show", "book.txt", "--vocab_size", "400", "--documents", "file"]) == 0
    assert "the whole file is one document" in capsys.readouterr().out
    assert main(["data", "show", "dpo", "--count", "1"]) == 0
    assert "chosen:" in capsys.readouterr().out
    assert main(["data", "show", "no_such_thing"]) == 2


def test_a_check_reads_all_and_ends_with_what_it_found(place, capsys):
    write_jsonl(place / "train.jsonl", [{"text": text} for text in paragraphs(300)])
    (place / "notes.pdf").write_bytes(b"x")
    assert main(["data", "check", "mine"]) == 0
    said = capsys.readouterr().out
    assert "train.jsonl: 300 records" in said and "not used: notes.pdf (save its text as .txt)" in said
    assert "It can be trained on" in said


@pytest.mark.parametrize(
    "name, content, says",
    [
        ("train.txt", "too little", "nothing is left for"),
        ("train-00000-of-00002.txt", "x\n" * 900, "train-00001-of-00002.txt is missing"),
        ("test.txt", "x\n" * 900, "has no train split"),
        ("train.jsonl", '{"text": 3}\n', "rows are no records"),
    ],
)
def test_a_check_fails_with_1_and_the_reason(place, capsys, name, content, says):
    (place / name).write_text(content)
    assert main(["data", "check", "mine"]) == 1
    assert says in capsys.readouterr().err
