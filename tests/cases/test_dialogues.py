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
from tests.helpers.texts import write_jsonl

ROWS = 120
RULE = "Speak like a clerk."
U, A, S = "user", "assistant", "system"


def said(role, content, **more):
    return {"role": role, "content": content, **more}


def talk(i, system=None, before=()):
    """The turns that most kinds of rows here stand for."""
    first = [(S, system, False)] if system else []
    return [*first, *before, (U, asked(i), False), (A, answered(i), True)]


EARLIER = [(U, "Are you there?", False), (A, "Yes, at the desk.", True)]
CALL = '<tool_call>{"name": "scales", "arguments": {"shelf": 4}}</tool_call>'


# a kind of row: i -> (row, turns)
KINDS = {
    "Alpaca with system and history": lambda i: (
        {
            "instruction": asked(i),
            "input": "",
            "output": answered(i),
            "system": RULE,
            "history": [["Are you there?", "Yes, at the desk."]],
        },
        talk(i, RULE, EARLIER),
    ),
    "system and history that are empty": lambda i: (
        {
            "instruction": asked(i),
            "output": answered(i),
            "system": (None, "")[i % 2],
            "history": ([], None)[i % 2],
        },
        talk(i),
    ),
    "Dolly with system": lambda i: (
        {"instruction": asked(i), "context": "", "response": answered(i), "system": RULE},
        talk(i, RULE),
    ),
    "completion with a system prompt": lambda i: (
        {"prompt": asked(i), "completion": answered(i), "system_prompt": RULE},
        talk(i, RULE),
    ),
    "messages with a system column": lambda i: (
        {"messages": [said(U, asked(i)), said(A, answered(i))], "system": RULE},
        talk(i, RULE),
    ),
    "Orca": lambda i: (
        {"id": f"flan.{i}", "system_prompt": RULE, "question": asked(i), "response": answered(i)},
        talk(i, RULE),
    ),
    "question and answer": lambda i: ({"question": asked(i), "answer": answered(i)}, talk(i)),
    "input and output": lambda i: ({"input": asked(i), "output": answered(i)}, talk(i)),
    "a text prompt with a message as answer": lambda i: (
        {"prompt": asked(i), "completion": [said(A, answered(i))]},
        talk(i),
    ),
    "ShareGPT": lambda i: (
        {
            "conversations": [
                {"from": "system", "value": RULE},
                {"from": "human", "value": asked(i)},
                {"from": ("gpt", "chatgpt", "bard", "bing", "bot", "model")[i % 6], "value": answered(i)},
            ]
        },
        talk(i, RULE),
    ),
    "ShareGPT with a system column": lambda i: (
        {
            "system": RULE,
            "conversations": [{"from": "Human", "value": asked(i)}, {"from": "GPT", "value": answered(i)}],
        },
        talk(i, RULE),
    ),
    "capital letters and developer": lambda i: (
        {"messages": [said("Developer", RULE), said("USER", asked(i)), said("Assistant", answered(i))]},
        talk(i, RULE),
    ),
    "a line that is a list": lambda i: ([said(U, asked(i)), said(A, answered(i))], talk(i)),
    "speakers as keys": lambda i: (
        {"conversation": [{"human": asked(i), "assistant": answered(i)}]},
        talk(i),
    ),
    "Gemini": lambda i: (
        {
            "contents": [
                {"role": "user", "parts": [{"text": asked(i)}]},
                {"role": "model", "parts": [{"text": answered(i)}]},
            ]
        },
        talk(i),
    ),
    "content in parts": lambda i: (
        {
            "messages": [
                said(U, [{"type": "text", "text": asked(i)}]),
                said(
                    A, [{"type": "text", "text": answered(i)[:9]}, {"type": "text", "text": answered(i)[9:]}]
                ),
            ]
        },
        talk(i),
    ),
    "messages as JSON in a table's cell": lambda i: (
        {"messages": json.dumps([said(U, asked(i)), said(A, answered(i))])},
        talk(i),
    ),
    "an empty system message": lambda i: (
        {"messages": [said(S, ("", None, "  ")[i % 3]), said(U, asked(i)), said(A, answered(i))]},
        talk(i),
    ),
    "no input, as pandas writes it": lambda i: (
        {"instruction": asked(i), "input": float("nan"), "output": answered(i)},
        talk(i),
    ),
    "two sets put together": lambda i: (
        {"messages": None, "instruction": asked(i), "response": None, "output": answered(i), "text": None},
        talk(i),
    ),
    "labels in the prompt": lambda i: (
        {"prompt": f"\n\nHuman: {asked(i)}\n\nAssistant:", "completion": f" {answered(i)}"},
        talk(i),
    ),
    "labels, several turns, the prompt repeated": lambda i: (
        {
            "prompt": (
                text
                := f"Human: Are you there?\n\nAssistant: Yes, at the desk.\n\nHuman: {asked(i)}\n\nAssistant:"
            ),
            "completion": f"{text} {answered(i)}",
        },
        talk(i, before=EARLIER),
    ),
    "ChatML in the prompt": lambda i: (
        {
            "prompt": f"<|im_start|>system\n{RULE}<|im_end|>\n<|im_start|>user\n{asked(i)}<|im_end|>\n"
            "<|im_start|>assistant\n",
            "completion": f"{answered(i)}<|im_end|>",
        },
        talk(i, RULE),
    ),
    "Llama 3's marks as text": lambda i: (
        {
            "text": f"<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{asked(i)}<|eot_id|>"
            f"<|start_header_id|>assistant<|end_header_id|>\n\n{answered(i)}<|eot_id|>"
        },
        talk(i),
    ),
    "Llama 2's marks as text": lambda i: (
        {"text": f"<s>[INST] <<SYS>>\n{RULE}\n<</SYS>>\n\n{asked(i)} [/INST] {answered(i)} </s>"},
        talk(i, RULE),
    ),
    "### labels as text": lambda i: ({"text": f"### Human: {asked(i)}### Assistant: {answered(i)}"}, talk(i)),
    "Vicuna's labels": lambda i: (
        {"prompt": f"USER: {asked(i)} ASSISTANT:", "response": answered(i)},
        talk(i),
    ),
    "a prompt repeated in its answer": lambda i: (
        {"prompt": asked(i), "completion": f"{asked(i)} {answered(i)}"},
        talk(i),
    ),
    "tool calls": lambda i: (
        {
            "messages": [
                said(U, asked(i)),
                said(A, None, tool_calls=[{"function": {"name": "scales", "arguments": '{"shelf": 4}'}}]),
                said("tool", "17 lb", tool_call_id="c0"),
                said(A, answered(i)),
            ]
        },
        [(U, asked(i), False), (A, CALL, True), (S, "17 lb", False), (A, answered(i), True)],
    ),
    "a function's call and what was observed": lambda i: (
        {
            "conversations": [
                {"from": "human", "value": asked(i)},
                {"from": "function_call", "value": CALL},
                {"from": "observation", "value": "17 lb"},
                {"from": "gpt", "value": answered(i)},
            ]
        },
        [(U, asked(i), False), (A, CALL, True), (S, "17 lb", False), (A, answered(i), True)],
    ),
    "weights of messages": lambda i: (
        {
            "messages": [
                said(U, "Make something up."),
                said(
                    A, f"Shelf {i} floats.", **({"weight": 0}, {"train": False}, {"loss_weight": 0.0})[i % 3]
                ),
                said(U, asked(i)),
                said(A, answered(i), **({"weight": 1}, {"train": True}, {})[i % 3]),
            ]
        },
        [(U, "Make something up.", False), (A, f"Shelf {i} floats.", False), *talk(i)],
    ),
    "what was thought before": lambda i: (
        {"question": asked(i), "reasoning_content": "Scales first.", "answer": answered(i)},
        [(U, asked(i), False), (A, f"<think>\nScales first.\n</think>\n\n{answered(i)}", True)],
    ),
}


ALPACA = "Below is an instruction that describes a task."
VICUNA = "A chat between a curious user and an assistant."
# Neighbours of these: other names, labels, marks and nestings of the same.
NEIGHBOURS = {
    "columns in capitals": lambda i: (
        {"System": RULE, "Question": asked(i), "Answer": answered(i)},
        talk(i, RULE),
    ),
    "columns in Japanese": lambda i: ({"質問": asked(i), "回答": answered(i)}, talk(i)),
    "problem and solution": lambda i: ({"problem": asked(i), "solution": answered(i)}, talk(i)),
    "a dialogue under another name": lambda i: ({"chat": [said(U, asked(i)), said(A, answered(i))]}, talk(i)),
    "turns one level down": lambda i: (
        {"conversation": {"messages": [said(U, asked(i)), said(A, answered(i))]}},
        talk(i),
    ),
    "a list for each key": lambda i: (
        {"messages": {"role": [U, A], "content": [asked(i), answered(i)]}},
        talk(i),
    ),
    "LangChain's types": lambda i: (
        {"messages": [{"type": "human", "content": asked(i)}, {"type": "ai", "content": answered(i)}]},
        talk(i),
    ),
    "roles in Japanese": lambda i: (
        {"messages": [said("ユーザー", asked(i)), said("アシスタント", answered(i))]},
        talk(i),
    ),
    "parts with a value": lambda i: (
        {"messages": [said(U, [{"type": "text", "value": asked(i)}]), said(A, answered(i))]},
        talk(i),
    ),
    "SQuAD's answers": lambda i: (
        {"question": asked(i), "answers": {"text": [answered(i)], "answer_start": [0]}},
        talk(i),
    ),
    "no input": lambda i: ({"instruction": asked(i), "input": "<noinput>", "output": answered(i)}, talk(i)),
    "a weight as text": lambda i: (
        {
            "messages": [
                said(U, "Lie."),
                said(A, f"Fog {i}.", weight="0"),
                *[said(U, asked(i)), said(A, answered(i))],
            ]
        },
        [(U, "Lie.", False), (A, f"Fog {i}.", False), *talk(i)],
    ),
    "a verdict as text": lambda i: (
        {"prompt": asked(i), "completion": answered(i), "label": "True"},
        talk(i),
    ),
    "labels in Japanese": lambda i: ({"text": f"ユーザー：{asked(i)}\nアシスタント：{answered(i)}"}, talk(i)),
    "labels in Chinese": lambda i: (
        {"prompt": f"用户：{asked(i)}\n助手：", "completion": answered(i)},
        talk(i),
    ),
    "labels in Markdown": lambda i: (
        {"text": f"**Human:** {asked(i)}\n\n**Assistant:** {answered(i)}"},
        talk(i),
    ),
    "Human and AI": lambda i: ({"text": f"Human: {asked(i)}\nAI: {answered(i)}"}, talk(i)),
    "labels in the turns": lambda i: (
        {"messages": [said(U, f"Human: {asked(i)}"), said(A, f"Assistant: {answered(i)}")]},
        talk(i),
    ),
    "Alpaca's text": lambda i: (
        {"text": f"{ALPACA}\n\n### Instruction:\n{asked(i)}\n\n### Response:\n{answered(i)}"},
        talk(i, ALPACA),
    ),
    "Alpaca's text with an input": lambda i: (
        {"text": f"### 指示:\nLook it up.\n\n### 入力:\n{asked(i)}\n\n### 応答:\n{answered(i)}"},
        [(U, f"Look it up.\n\n{asked(i)}", False), (A, answered(i), True)],
    ),
    "Vicuna's text": lambda i: (
        {"text": f"{VICUNA} USER: {asked(i)} ASSISTANT: {answered(i)}</s>"},
        talk(i, VICUNA),
    ),
    "DeepSeek's marks": lambda i: (
        {"text": f"<｜User｜>{asked(i)}<｜Assistant｜>{answered(i)}<｜end▁of▁sentence｜>"},
        talk(i),
    ),
    "Open Assistant's marks": lambda i: (
        {"text": f"<|prompter|>{asked(i)}<|endoftext|><|assistant|>{answered(i)}<|endoftext|>"},
        talk(i),
    ),
    "marks in prompt and answer": lambda i: (
        {
            "prompt": f"<|im_start|>user\n{asked(i)}<|im_end|>\n",
            "completion": f"<|im_start|>assistant\n{answered(i)}<|im_end|>",
        },
        talk(i),
    ),
    "a token that ends the answer": lambda i: (
        {"instruction": asked(i), "output": f"{answered(i)}</s>"},
        talk(i),
    ),
}


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


LEFT_OUT = [
    ({"text": None}, "text is of type NoneType"),
    ({"text": float("nan")}, "text is of type float"),
    ({"instruction": asked(0), "output": None}, "output is of type NoneType"),
    ({"messages": [said(U, asked(0)), said(A, "")]}, "an empty message"),
    ({"messages": [said(U, asked(0)), said(A, None)]}, "content is of type NoneType"),
    ({"prompt": asked(0), "completion": "Fog.", "label": False}, "label is false"),
    ({"instruction": asked(0), "output": "Fog.", "weight": 0}, "weight is 0"),
    ({"conversations": [{"from": "human", "value": "a"}], "kto_tag": "false"}, "kto_tag is false"),
    ({"prompt": asked(0), "completion": "Fog.", "label": 0}, "label is 0"),
    ({"prompt": asked(0), "completion": "Fog.", "label": "undesirable"}, "label is undesirable"),
    ({"prompt": asked(0), "completion": "Fog.", "weight": "0.0"}, "weight is 0.0"),
]


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
