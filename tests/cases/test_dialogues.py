"""Dialogues as people bring them: what is packed, who speaks, what is learned, and what is said about it.

Each kind of row is told apart from its neighbours by its own sentences; the expected turns are written down
beside the row.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from newllm_lib.cli import main
from newllm_lib.errors import NewLLMError, UsageError
from tests.helpers.cases import answered, asked, read_folder
from tests.helpers.dialogue_kinds import KINDS, LEFT_OUT, NEIGHBOURS, A, S, U, said
from tests.helpers.texts import write_jsonl

ROWS = 120


def test_neighbours_of_these_kinds_are_read_as_they(tmp_path, recipe, cache):
    """All of them in one file; each row's numbers are its own."""
    pairs = [kind(100 * n + i) for n, kind in enumerate(NEIGHBOURS.values()) for i in range(6)]
    rows, expected = zip(*pairs, strict=True)
    write_jsonl(tmp_path / "train.jsonl", list(rows))
    found, report = read_folder(tmp_path, recipe, cache)
    assert found == {document[-1][1]: document for document in expected}
    assert not report.left_out and not report.unread


@pytest.mark.parametrize(
    "text, note",
    [
        ("Example: <|im_start|>user\nWho?<|im_end|>\nThe miller.", "in a text that is no dialogue"),
        ("The miller came.</s>", "at the end of a text: cut off"),
        ("The miller came.<|im_end|>", "at the end of a text: cut off"),
    ],
)
def test_tokens_of_other_models_in_a_text_are_named(text, note, tmp_path, recipe, cache):
    write_jsonl(tmp_path / "train.jsonl", [{"text": f"{i} lamps. {text}"} for i in range(ROWS)])
    _, report = read_folder(tmp_path, recipe, cache)
    assert any(note in said for said in report.notes)


@pytest.mark.parametrize("kind", KINDS)
def test_what_goes_in_is_what_is_learned(kind, tmp_path, recipe, cache):
    rows, expected = zip(*(KINDS[kind](i) for i in range(ROWS)), strict=True)
    write_jsonl(tmp_path / "train.jsonl", list(rows))
    found, report = read_folder(tmp_path, recipe, cache)
    assert found == {document[-1][1]: document for document in expected}
    assert report.records == ROWS and not report.left_out
    assert report.roles.total() == sum(map(len, expected))


@pytest.mark.parametrize("kind", [".json", ".parquet"])
def test_the_same_from_other_files(kind, tmp_path, recipe, cache):
    rows, expected = zip(*(KINDS["Alpaca with system and history"](i) for i in range(ROWS)), strict=True)
    if kind == ".json":
        (tmp_path / "train.json").write_text(json.dumps(rows))
    else:
        import pyarrow
        from pyarrow import parquet

        rows = [{**row, "note": "of no use"} for row in rows]
        parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "train.parquet")
    found, report = read_folder(tmp_path, recipe, cache)
    assert found == {document[-1][1]: document for document in expected}
    assert kind == ".json" or "note" in report.unread


def test_columns_and_keys_that_are_not_read_are_named(tmp_path, recipe, cache, capsys):
    rows = [
        {
            "messages": [said(U, asked(i), name="Ann"), said(A, answered(i))],
            "source": "forum",
            "empty": None,
            "tools": [{"name": "scales"}],
        }
        for i in range(ROWS)
    ]
    write_jsonl(tmp_path / "train.jsonl", rows)
    _, report = read_folder(tmp_path, recipe, cache)
    assert dict(report.unread) == {"source": ROWS, "tools": ROWS}
    assert report.notes["a message's name: not read"] == ROWS
    assert list(report.read) == ["messages"]


@pytest.mark.parametrize("row, reason", LEFT_OUT)
def test_rows_that_say_nothing_are_left_out_and_counted(row, reason, tmp_path, recipe, cache, capsys):
    good = [KINDS["question and answer"](i)[0] for i in range(ROWS)]
    write_jsonl(tmp_path / "train.jsonl", [*good, *[row] * (ROWS // 2)])
    found, report = read_folder(tmp_path, recipe, cache)
    assert len(found) == ROWS
    ((said_reason, count),) = report.left_out.items()
    assert said_reason.startswith(reason) and count == ROWS // 2
    assert f"{ROWS // 2} × {said_reason}" in capsys.readouterr().out


def test_where_most_rows_say_nothing_the_data_is_refused(tmp_path, recipe, cache):
    good = [KINDS["question and answer"](i)[0] for i in range(10)]
    write_jsonl(tmp_path / "train.jsonl", [*good, *[{"question": asked(0), "answer": None}] * 11])
    with pytest.raises(NewLLMError, match="11 of 21 rows are no records; the first: .*answer is of type"):
        read_folder(tmp_path, recipe, cache)


REFUSED = [
    (
        {"messages": [said("narrator", "Once."), said(A, answered(0))]},
        r"a role that is none of .*\(narrator\)",
    ),
    (
        {"messages": [said(U, [{"type": "image_url", "image_url": "x"}]), said(A, answered(0))]},
        "content holds a part of type image_url, not text",
    ),
    ({"messages": [said(U, asked(0)), said(A, answered(0), weight=0.5)]}, "weight that is neither 0 nor 1"),
    (
        {"instruction": asked(0), "output": answered(0), "response": "Fog."},
        "response and output hold different answers",
    ),
    (
        {"system": "One.", "messages": [said(S, "Two."), said(U, asked(0)), said(A, answered(0))]},
        "a column system beside another system message",
    ),
    ({"question": asked(0), "answer": ["Fog.", "Rain."]}, "answer holds several answers"),
    ({"role": "user", "content": asked(0)}, "a message by itself, with its role: put all messages of a"),
    (
        {"system": "One.", "system_prompt": "Two.", "question": asked(0), "answer": "a"},
        "hold different texts",
    ),
    ({"clue": "a", "reply": "b"}, r"no column .* \(it has clue, reply\)"),
]


@pytest.mark.parametrize("row, reason", REFUSED)
def test_what_cannot_be_decided_is_refused_in_one_line(row, reason, tmp_path, recipe, cache):
    write_jsonl(tmp_path / "train.jsonl", [row] * ROWS)
    with pytest.raises(NewLLMError, match=reason) as error:
        read_folder(tmp_path, recipe, cache)
    assert "\n" not in str(error.value)


def test_weights_need_the_loss_on_answers(tmp_path, recipe, cache):
    write_jsonl(tmp_path / "train.jsonl", [KINDS["weights of messages"](i)[0] for i in range(ROWS)])
    with pytest.raises(UsageError, match="--loss_on answers"):
        read_folder(tmp_path, recipe, cache, loss_on="everything")


PLAIN = [
    "Human: the word stood on the sign.",
    "USER: nobody.",
    "A chat: <|im_start|> is how ChatML begins a turn.",
    "<b>bold</b> words",
    "# Assistant: a heading",
]


def test_text_without_a_dialogue_stays_text(tmp_path, recipe, cache):
    write_jsonl(tmp_path / "train.jsonl", [{"text": f"{PLAIN[i % 5]} No {i}."} for i in range(ROWS)])
    found, report = read_folder(tmp_path, recipe, cache)
    assert found == {
        text: [("text", text, True)] for text in (f"{PLAIN[i % 5]} No {i}." for i in range(ROWS))
    }
    assert not report.notes and dict(report.formats) == {"plain text": ROWS}


SMALL = (
    "--sized_for cpu --vocab_size 300 --max_seq_length 16 --batch_size 4 --hidden_size 8 --context_dim 8 "
    "--mlp_size 8 --num_layers 1 --max_steps 2 --loss_on answers"
).split()


def train(place: Path, *more: str) -> int:
    return main(
        ["train", "demo", "--data_dir", str(place), "--output_dir", str(place / "run"), *SMALL, *more]
    )


def test_the_command_says_what_it_read_and_keeps_it(tmp_path, cache, monkeypatch, capsys):
    monkeypatch.setitem(os.environ, "NEWLLM_CACHE", str(cache))
    rows = [{**KINDS["tool calls"](i)[0], "source": "forum"} for i in range(ROWS)]
    write_jsonl(tmp_path / "train.jsonl", rows)
    assert train(tmp_path) == 0
    shown = capsys.readouterr().out
    assert "not read: source" in shown and "tool calls: read as <tool_call>" in shown
    kept = json.loads((tmp_path / "run" / "data_report.json").read_text())
    assert kept["files"]["train.jsonl"]["unread"] == {"source": ROWS}


def test_the_command_refuses_in_one_line(tmp_path, cache, monkeypatch, capsys):
    monkeypatch.setitem(os.environ, "NEWLLM_CACHE", str(cache))
    write_jsonl(tmp_path / "train.jsonl", [{"messages": [said("narrator", "Once.")]}] * ROWS)
    assert train(tmp_path) == 1
    assert "narrator" in capsys.readouterr().err


def test_a_reader_of_its_own_set_names_no_columns(tmp_path, recipe, cache):
    from newllm_lib.data import prepare

    (part,) = prepare(recipe(max_samples=60), cache).report.files.values()
    assert not part.read and not part.unread and part.roles["user"]


def test_tokens_of_other_models_in_a_turn_are_named(tmp_path, recipe, cache):
    rows = [
        {"messages": [said(U, asked(i)), said(A, f"So. <|endoftext|> {answered(i)}")]} for i in range(ROWS)
    ]
    write_jsonl(tmp_path / "train.jsonl", rows)
    _, report = read_folder(tmp_path, recipe, cache)
    assert report.notes["<|endoftext|> in a turn: learned as letters"] == ROWS


def test_a_check_ends_as_the_training_would(tmp_path, cache, monkeypatch, capsys):
    """Weights need the loss on answers, and that needs answers."""
    monkeypatch.setitem(os.environ, "NEWLLM_CACHE", str(cache))
    rows = [{"messages": [said(U, asked(i)), said(A, answered(i), weight=0)]} for i in range(ROWS)]
    write_jsonl(tmp_path / "train.jsonl", rows)
    for flags, words in (([], "use --loss_on answers"), (["--loss_on", "answers"], "holds no answers")):
        assert main(["data", "check", str(tmp_path), "--sized_for", "cpu", *flags]) == 1
        assert words in capsys.readouterr().err
