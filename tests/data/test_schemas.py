"""Rows of every known kind become messages; what is malformed is skipped, counted and shown by reason."""

import gzip
import json

import numpy as np
import pytest

from newllm_lib.data import load_split, prepare
from newllm_lib.data.blocks import Blocks
from newllm_lib.data.readers.folder import read_file
from newllm_lib.data.records import BadRecord, Message, RowStats
from newllm_lib.data.schemas import parse_row
from newllm_lib.data.turns import LONGEST_TURN
from newllm_lib.errors import NewLLMError
from newllm_lib.recipe import load_recipe
from tests.helpers.texts import dialogues, paragraphs, write_jsonl


def said(row) -> list[tuple[str, str]]:
    record = parse_row(row)
    assert record.text is None and all(isinstance(m, Message) for m in record.messages)
    return [tuple(m) for m in record.messages]


PAIR = [("user", "a"), ("assistant", "b")]
FOUR = [*PAIR, ("user", "c"), ("assistant", "d")]


@pytest.mark.parametrize(
    "row, expected",
    [
        ({"instruction": "a", "context": "", "response": "b", "category": "x"}, PAIR),
        (
            {"instruction": "a", "context": "Of c.\n", "response": "b"},
            [("user", "a\n\nOf c."), ("assistant", "b")],
        ),
        ({"instruction": "a", "context": None, "response": "b"}, PAIR),
        ({"instruction": "a", "response": "b"}, PAIR),
        ({"instruction": "a", "input": "c", "output": "b"}, [("user", "a\n\nc"), ("assistant", "b")]),
        ({"instruction": "a", "input": "", "output": "b", "text": "Below is an instruction"}, PAIR),
        ({"prompt": "a", "completion": "b"}, PAIR),
        (
            {
                "prompt": [{"role": "user", "content": "a"}],
                "completion": [{"role": "assistant", "content": "b"}],
            },
            PAIR,
        ),
        ({"id": "0", "data": ["a", "b", "c", "d"]}, FOUR),
        (
            {
                "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
                "prompt": "a",
            },
            PAIR,
        ),
        ({"chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d", "rejected": "x"}, FOUR),
        ({"chosen": "\n\nHuman: a\n\nb: c\n\nAssistant: d"}, [("user", "a\n\nb: c"), ("assistant", "d")]),
        (
            {"chosen": "\n\nHuman: a\n\nHuman: c\n\nAssistant: b"},
            [("user", "a"), ("user", "c"), ("assistant", "b")],
        ),
        ({"chosen": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, PAIR),
        ({"dialog": [" a ", " b "], "act": [1, 2], "emotion": [0, 0]}, PAIR),
        ({"utterances": ["a", "b"], "acts": [1, 2]}, PAIR),
        ({"text": "a __eou__ b __eou__ c __eou__ d __eou__\n"}, FOUR),
    ],
)
def test_rows_become_messages(row, expected):
    assert said(row) == expected


def test_text_stays_text_and_blank_rows_are_none():
    assert parse_row({"text": "About __eou__ marks.", "prompt": "x"}).text == "About __eou__ marks."
    assert parse_row({"text": "x", "data": "2020-01-01"}).text == "x"
    assert [parse_row(row) for row in ({"text": ""}, {"messages": []}, {"data": []}, {"dialog": []})] == [
        None
    ] * 4


MALFORMED = [
    ({"instruction": "a"}, "instruction without response or output"),
    ({"instruction": 3, "output": "b"}, "instruction is of type int"),
    ({"instruction": "a", "response": None}, "response is of type NoneType"),
    ({"instruction": "a", "input": ["c"], "output": "b"}, "input is of type list"),
    ({"instruction": "a", "response": " "}, "an empty message"),
    ({"prompt": "a"}, "prompt without completion"),
    ({"prompt": "a", "completion": {"b": 1}}, "completion is of type dict"),
    ({"data": "a"}, "data is of type str, not a list"),
    ({"data": ["a", 5]}, "a turn is of type int"),
    ({"data": ["a", "  "]}, "an empty message"),
    ({"dialog": {"a": "b"}}, "dialog is of type dict, not a list"),
    ({"utterances": ["a", None]}, "a turn is of type NoneType"),
    ({"chosen": "Hello there"}, "chosen does not begin with Human:"),
    ({"chosen": "\n\nHuman: a\n\nAssistant:"}, "an empty message"),
    ({"chosen": 1}, "chosen is of type int"),
    ({"text": "a __eou__ __eou__"}, "an empty message"),
    ({"data": ["a", "b\ud800"]}, "half of a surrogate pair"),
    ({"instruction": "a\udfff", "response": "b"}, "half of a surrogate pair"),
    ({"data": ["a", "b\0"]}, "a NUL character"),
    ({"data": ["a", "x" * LONGEST_TURN]}, "a message of 1,000,000 bytes or more"),
    ({"prompt": "ü" * (LONGEST_TURN // 2), "completion": "b"}, "a message of 1,000,000 bytes or more"),
    ({"clue": "a"}, r"no column messages or instruction or .*\(it has clue\)"),
    ({"question": "a"}, "question without response or output or completion or answer"),
]


@pytest.mark.parametrize("row, reason", MALFORMED)
def test_malformed_rows_say_why_without_their_content(row, reason):
    with pytest.raises(BadRecord, match=reason) as error:
        parse_row(row)
    assert len(str(error.value)) < 200


def test_500_malformed_records_are_skipped_counted_and_shown_by_reason(tmp_path, recipe, cache, capsys):
    good = [{"instruction": t, "response": f"Yes {i}."} for i, t in enumerate(paragraphs(9600))]
    kinds = [
        ({"instruction": 3, "response": "b"}, 80, "instruction is of type int, not a string"),
        ({"instruction": "a"}, 80, "instruction without response or output"),
        ({"instruction": "a", "response": "\n"}, 80, "an empty message"),
        ({"data": ["a", "b\ud83d"]}, 80, "a turn holds half of a surrogate pair"),
        ({"prompt": "a\0", "completion": "b"}, 80, "a message that holds a NUL character"),
        (
            {"messages": [{"role": "robot", "content": "x"}]},
            95,
            "a role that is none of user, assistant, system",
        ),
        ({"data": ["a", "x" * 1_000_000]}, 2, "a message of 1,000,000 bytes or more"),
    ]
    bad = [json.dumps(row) for row, count, _ in kinds for _ in range(count)]
    bad += ['{"instruction": "say "hi"", "response": "b"}'] * 3  # nested quotes
    lines = [json.dumps(row) for row in good]
    for i, line in enumerate(bad):
        lines.insert(20 * i + 7, line)
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    data = prepare(recipe(data_dir=tmp_path, loss_on="answers"), cache)
    assert len(bad) == 500
    assert data.train.documents + data.validation.documents + data.test.documents == 9600
    shown = capsys.readouterr().out
    assert "500 rows skipped" in shown and shown.count("train.jsonl, line 8)") == 1
    for _, count, reason in kinds:
        assert f"{count} × {reason}" in shown
    assert "3 × not valid JSON" in shown and "500 rows skipped" in data.train.skipped


def test_too_many_malformed_records_stop_and_name_the_first(tmp_path, recipe, cache):
    rows = [{"instruction": t, "response": "b"} for t in paragraphs(94)] + [{"instruction": "a"}] * 6
    write_jsonl(tmp_path / "train.jsonl", rows)
    with pytest.raises(NewLLMError, match=r"6 of 100 rows .*line 95: instruction without response") as error:
        prepare(recipe(data_dir=tmp_path), cache)
    assert "\n" not in str(error.value)


# --- loss_on
# ----------------------------------------------------------------------------------------------------------


def test_loss_on_decides_which_tokens_are_learned_and_measured(tmp_path, cache):
    chats = [chat + chat[:1] for chat in dialogues(300)]
    write_jsonl(tmp_path / "train.jsonl", [{"messages": m} for m in chats])

    def prepared(loss_on):
        chosen = {"data_dir": str(tmp_path), "loss_on": loss_on, "vocab_size": 400, "max_seq_length": 32}
        recipe = load_recipe("dolly", chosen, device_kind="cpu")
        data = prepare(recipe, cache)
        assert load_split(recipe, data.tokenizer, "test", cache).path == data.test.path
        return data

    everything, answers = prepared("everything"), prepared("answers")
    assert everything.train.loss_mask is None and everything.fingerprint != answers.fingerprint
    assert (everything.train.ids == answers.train.ids).all()
    assert "loss on the answers" in answers.description and "loss on" not in everything.description
    learned = []
    for start in range(0, answers.train.tokens - 1, 32):
        labels = Blocks(answers.train, 32)[start]["labels"].numpy()
        learned += labels[labels >= 0].tolist()
    texts = answers.tokenizer.decode(learned).split("<|end|>")[:-1]
    answered = {m["content"] for chat in chats for m in chat if m["role"] == "assistant"}
    assert len(texts) > 200 and set(texts) <= answered
    assert sum(len(t.encode()) for t in texts) == answers.train.bytes < everything.train.bytes
    assert np.count_nonzero(answers.train.loss_mask) == len(learned)


def test_plain_documents_count_whole(folder, recipe, cache):
    data = prepare(recipe(data_dir=folder, loss_on="answers"), cache)
    assert data.train.bytes == prepare(recipe(data_dir=folder), cache).train.bytes


def test_data_without_answers_is_said_in_one_line(tmp_path, recipe, cache):
    write_jsonl(
        tmp_path / "train.jsonl", [{"messages": [{"role": "user", "content": t}]} for t in paragraphs(200)]
    )
    with pytest.raises(NewLLMError, match="holds no answers .*--loss_on everything") as error:
        prepare(recipe(data_dir=tmp_path, loss_on="answers"), cache)
    assert "\n" not in str(error.value)


# --- files
# ------------------------------------------------------------------------------------------------------------


def records_of(path):
    stats = RowStats()
    return list(read_file(path, stats)), stats


def test_text_files_of_utterances(tmp_path):
    (tmp_path / "train.txt").write_text("a __eou__ b __eou__\r\n\nno end\nc __eou__ d __eou__ e __eou__")
    records, stats = records_of(tmp_path / "train.txt")
    assert [[m.content for m in r.messages] for r in records] == [["a", "b"], ["c", "d", "e"]]
    assert stats.reasons == {"a line that does not end in __eou__": 1} and stats.first_at.endswith("line 3")


def test_packed_json_lines(tmp_path, recipe, cache):
    lines = "".join(json.dumps({"prompt": t, "completion": "Ü."}) + "\n" for t in paragraphs(200))
    (tmp_path / "train.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    data = prepare(recipe(data_dir=tmp_path), cache)
    assert data.train.documents + data.validation.documents + data.test.documents == 200
    (tmp_path / "train.jsonl.gz").write_bytes(gzip.compress(lines.encode())[:-50])
    with pytest.raises(NewLLMError, match=r"train\.jsonl\.gz cannot be unpacked .*is it whole\?") as error:
        records_of(tmp_path / "train.jsonl.gz")
    assert "\n" not in str(error.value)
    (tmp_path / "train.jsonl.gz").write_text(lines)
    with pytest.raises(NewLLMError, match="cannot be unpacked"):
        records_of(tmp_path / "train.jsonl.gz")


def test_real_dailydialog(test_data, tmp_path):
    text = (test_data / "dailydialog.validation.txt").read_text(encoding="utf-8")
    records, stats = records_of(test_data / "dailydialog.validation.txt")
    assert len(records) == 1000 and stats.bad == 0
    assert sum(len(r.messages) for r in records) == text.count("__eou__")
    words = [w for r in records for m in r.messages for w in m.content.split()]
    assert words == text.replace("__eou__", " ").split()


def test_real_code_alpaca(test_data):
    records, stats = records_of(test_data / "code_alpaca_2k.json")
    rows = json.loads((test_data / "code_alpaca_2k.json").read_text(encoding="utf-8"))
    assert len(records) + stats.bad == len(rows) and len(records) > 0.99 * len(rows)
    assert {tuple(m.role for m in r.messages) for r in records} == {("user", "assistant")}
    answers = [row["output"] for row in rows if row["output"].strip()]
    assert [r.messages[1].content for r in records] == answers


def test_real_hh_rlhf(test_data):
    path = test_data / "hh-rlhf.harmless.first-half.jsonl.gz"
    records, stats = records_of(path)
    rows = [json.loads(line) for line in gzip.open(path, "rt", encoding="utf-8")]
    assert len(records) + stats.bad == len(rows) == 1156 and len(records) > 0.97 * len(rows)
    labels = sum(row["chosen"].count("\n\nHuman:") + row["chosen"].count("\n\nAssistant:") for row in rows)
    turns = sum(len(r.messages) for r in records)
    assert turns <= labels and (stats.bad or turns == labels)
    assert {r.messages[0].role for r in records} == {"user"}
