"""Files and plain text as people bring them, through the command: exit code, what it says, what is packed."""

from __future__ import annotations

import codecs
import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from newllm_lib.cli import main
from newllm_lib.data import DataReport, prepare
from newllm_lib.data.splits import SPLITS
from newllm_lib.recipe import load_recipe
from tests.helpers.cases import answered, asked, turns
from tests.helpers.texts import write_jsonl

TINY = (
    "--sized_for cpu --vocab_size 400 --max_seq_length 8 --batch_size 2 --hidden_size 8 --context_dim 8 "
    "--mlp_size 8 --num_layers 1 --max_steps 1 --sample_tokens 0"
).split()
LINES = [f"The {word} of room {i} was painted on a {day}." for i, (word, day) in enumerate(
    (w, d) for w in ("door", "wall", "stair", "roof", "shelf", "bench", "frame", "gate") for d in
    ("Monday", "Tuesday", "Friday", "holiday", "whim", "dare", "bet", "rainy day", "spring day", "bright day",
     "dull day", "market day", "Sunday", "feast", "fast", "lark", "Saturday", "cold night"))]  # fmt: skip
RUSSIAN = [f"Корабль номер {i} ещё не вернулся в гавань." for i in range(60)]
JAPANESE = [f"港の{i}番目の船は、まだ帰ってこない。" for i in range(60)]


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs `newllm WORDS` on `mine/`; gives (exit code, what was said, what went wrong)."""
    monkeypatch.setenv("NEWLLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()

    def call(*words: str) -> tuple[int, str, str]:
        code = main(list(words))
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


@pytest.fixture
def train(run):
    """Reads `mine/` as a training does: (exit code, what is said, what went wrong, texts of each split)."""

    def read(*more: str) -> tuple[int, str, str, dict[str, list[str]]]:
        code, said, error = run("data", "check", "mine", *TINY, *more)
        return code, said, error, packed(*more) if code == 0 else {}

    return read


def packed(*more: str) -> dict[str, list[str]]:
    """The documents of each split, from the tokens that a training gets."""
    flags = dict(zip(*(iter([*TINY, *more]),) * 2, strict=True))
    recipe = load_recipe("demo", {"data_dir": "mine", **{k.lstrip("-"): v for k, v in flags.items()}})
    data = prepare(recipe)
    parts = {split: getattr(data, split) for split in SPLITS}
    return {split: [d[-1][1] for d in turns(part, data.tokenizer)] for split, part in parts.items()}


def write(name: str, content: str | bytes) -> None:
    Path("mine", name).write_bytes(content.encode() if isinstance(content, str) else content)


def everything(texts: dict[str, list[str]]) -> list[str]:
    return sorted(text.strip() for part in texts.values() for text in part)


@pytest.mark.parametrize(
    "text",
    [
        "<|im_end|>\n".join(line + "\n" for line in LINES),
        "[DOC]\n".join(line + "\n" for line in LINES),
        "<eos>".join(LINES),
        "</s>".join(LINES),
        "".join(f"[CLS] {line} [SEP]\n" for line in LINES),
        "".join(f'<doc id="{i}" title="T">\n{line}\n</doc>\n' for i, line in enumerate(LINES)),
        "".join(f"<s>{line}</s>" for line in LINES),
        "<|eod|>\n".join(LINES),
        "<|endoftext|>\n".join(line + "\n" for line in LINES),
        "".join(f"<|startoftext|>{line}<|endoftext|>\n" for line in LINES),
        "</s>\n".join(line + "\n" for line in LINES),
        "\f".join(line + "\n" for line in LINES),
    ],
)
def test_what_parts_documents_is_none_of_them(train, text):
    write("train.txt", text)
    code, said, _, texts = train()
    assert code == 0 and everything(texts) == sorted(LINES)
    assert "a document between two" in said and all(len(part) > 2 for part in texts.values())


def test_paragraphs_between_two_separators_are_one_document(train):
    stories = [f"{a}\n\n{b}" for a, b in zip(LINES[::2], LINES[1::2], strict=True)]
    write("train.txt", "\n<|endoftext|>\n".join(stories))
    assert everything(train()[3]) == sorted(stories)


def test_a_line_repeated_often_does_not_fill_a_split(train):
    write("train.txt", "".join(f"{line}\n###\n" for line in LINES))
    code, said, _, texts = train()
    assert code == 0 and sum(text == "###\n" for text in texts["test"]) <= 1
    assert set(everything(texts)) == {*LINES, "###"}
    assert "where equal ones count once (143 times)" in said


@pytest.mark.parametrize(
    "text",
    [
        "A list of rooms\n\n" + "".join(line + "\n" for line in LINES),
        "\r\n".join(LINES) + "\r\n\r\n\r\n",
        " ".join(LINES),
        "\n".join(LINES[:30]) + "\n",
        "".join(JAPANESE),
    ],
)
def test_a_text_of_any_shape_trains(train, text):
    write("train.txt", text)
    code, said, error, texts = train()
    assert (code, error) == (0, "") and all(texts.values())
    whole = "".join(part for name in SPLITS for part in texts[name])
    assert set(whole.split()) == set(text.split()) and "validation and test:" in said


def test_a_file_is_one_document_where_that_is_asked_for(train):
    write("train.txt", "\n\n".join(LINES))
    code, said, _, texts = train("--documents", "file")
    assert code == 0 and [len(texts[name]) for name in SPLITS] == [1, 1, 1]
    assert "the whole file is one document" in said
    assert "".join(texts[name][0] for name in SPLITS) == "\n\n".join(LINES)


@pytest.mark.parametrize(
    "name, python, lines",
    [
        ("CP932 (Shift-JIS)", "cp932", JAPANESE),
        ("EUC-JP", "euc-jp", JAPANESE),
        ("UTF-16LE", "utf-16-le", LINES),
        ("UTF-16BE", "utf-16-be", LINES),
        ("UTF-32LE", "utf-32-le", LINES),
        ("UTF-32BE", "utf-32-be", JAPANESE),
        ("UTF-16LE", "utf-16-le", JAPANESE),
        ("UTF-16BE", "utf-16-be", RUSSIAN),
        ("KOI8-R", "koi8-r", RUSSIAN),
        ("MAC_ROMAN", "mac-roman", [f"La façade numéro {i} a été repeinte." for i in range(60)]),
        ("CP932 (Shift-JIS)", "cp932", [f"箱{i}は棚の上です" for i in range(60)]),
        ("CP932 (Shift-JIS)", "cp932", [*(f"{line} {i}" for i in range(12) for line in LINES), "港の船です"]),
        ("BIG5", "big5", [f"港口的第{i}艘船還沒有回來，風很大。" for i in range(60)]),
        ("CP949 (EUC-KR)", "cp949", [f"항구의 {i}번째 배는 아직 돌아오지 않았다." for i in range(60)]),
    ],
)
def test_another_encoding_is_named_with_what_to_type(train, name, python, lines):
    write("train.txt", "\n".join(lines).encode(python))
    code, _, error, _ = train()
    assert code == 1 and error.count("\n") == 1
    assert f"It looks like {name}" in error and f"--encoding {python}" in error and "iconv -f" in error
    code, said, _, texts = train("--encoding", python)
    assert code == 0 and name in said and everything(texts) == sorted(lines)


DIALOGUES = [f"Human: {asked(i)}\n\nAssistant: {answered(i)}" for i in range(60)]


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("train.txt", json.dumps({"text": LINES[0]}) + "\n" + json.dumps({"text": LINES[1]}), "train.jsonl"),
        ("train.txt", json.dumps([{"text": LINES[0]}]), "call it train.json "),
        ("train.txt", "question,answer\nWho?,Nobody.\n", "call it train.csv "),
        ("train.txt", "\n\n".join(DIALOGUES), "put a line <|endoftext|> between two of them"),
        ("train.txt", gzip.compress(b"a\n"), "packed by gzip: add .gz to its name"),
        ("train.txt", b"PK\x03\x04" + bytes(40), "a zip archive"),
        ("train.jsonl", b"PAR1" + bytes(40), "it is parquet: call it .parquet"),
        ("train.txt", b"one\0two\0three", "byte 3 is a NUL"),
        (
            "train.txt",
            "\n".join(JAPANESE).encode()[:3000] + b"\xff" + "月".encode() * 99,
            "is UTF-8 but for 2 broken bytes",
        ),
        ("train.csv", "question,answer,answer\na,b,c\n", "has 2 columns 'answer'"),
        ("train.parquet.gz", "x", "train.parquet.gz: unpack it"),
        ("data.tar.gz", "x", "data.tar.gz: unpack it"),
        ("train.jsonl.aa", "x", "call it train.jsonl to read it; pieces of a file: put them together"),
        ("train.json", '// rows\n[{"text": "a"}]', "there is a comment"),
        ("train.json", json.dumps({"train": [{"text": "a"}], "test": [{"text": "b"}]}), "a split of its own"),
        ("data-00000-of-00002.txt", "a\n", "data-00001-of-00002.txt is missing"),
    ],
)
def test_what_is_not_what_its_name_says_is_refused_with_what_to_do(run, name, content, words):
    write(name, content)
    code, _, error = run("data", "check", "mine", *TINY)
    assert code in (1, 2) and words in error and error.count("\n") == 1


def test_dialogues_between_separators_are_turns_in_a_text_file_too(train):
    write("train.txt", "\n<|endoftext|>\n".join(DIALOGUES))
    code, said, _, texts = train("--loss_on", "answers")
    assert code == 0 and everything(texts) == sorted(answered(i) for i in range(60))
    assert "each a dialogue written as text (labels)" in said and "60 x assistant" in said
    code, said, _, texts = train("--documents", "lines")
    assert code == 0 and "Human: " + asked(3) in everything(texts)


def test_a_line_that_may_part_documents_is_named(train):
    write("train.txt", "\n---\n".join(LINES))
    code, said, _, _ = train()
    assert code == 0 and f"{len(LINES) - 1} lines are ---, read as text (--documents separator" in said
    assert everything(train("--documents", "separator")[3]) == sorted(LINES)


@pytest.mark.parametrize(
    "name, content",
    [
        ("train.jsonl", json.dumps([{"text": line} for line in LINES])),
        ("train.jsonl", "\n".join(json.dumps({"text": line}, indent=1) for line in LINES)),
        ("train.jsonl", ",\n".join(json.dumps({"text": line}) for line in LINES) + ","),
        ("train.jsonl", "".join(json.dumps({"text": line}) for line in LINES)),
        ("train.json", "[" + "".join(json.dumps({"text": line}) + ",\n" for line in LINES) + "]"),
        ("train.csv", "Text, N\n" + "".join(f'"{line}", 1\n' for line in LINES)),
        ("train.json", json.dumps({"version": 2, "data": [{"content": line} for line in LINES]})),
    ],
)
def test_rows_that_are_written_loosely_are_read(train, name, content):
    write(name, content)
    code, _, _, texts = train()
    assert code == 0 and everything(texts) == sorted(LINES)


def test_keys_beside_the_rows_are_named(train):
    write("train.json", json.dumps({"version": 2, "data": [{"text": line} for line in LINES], "notes": "x"}))
    said = train()[1]
    assert "key version beside the rows: not read" in said and "key notes beside the rows" in said


def test_what_pandas_writes_for_nothing_is_nothing(train):
    rows = "".join(f'"{asked(i)}",NaN,"{answered(i) if i % 10 else "nan"}"\n' for i in range(60))
    write("train.csv", "question,input,answer\n" + rows)
    code, said, _, texts = train("--loss_on", "answers")
    assert code == 0 and everything(texts) == sorted(answered(i) for i in range(60) if i % 10)
    assert "6 x answer is of type NoneType" in said


def test_the_mark_of_utf8_is_not_learned(train):
    write("train.txt", codecs.BOM_UTF8 + "\n".join(LINES).encode())
    assert everything(train()[3]) == sorted(LINES)


def test_blank_rows_and_null_are_no_documents(train):
    rows = [{"text": ([None, ""][i % 2] if i % 10 == 0 else line)} for i, line in enumerate(LINES)]
    write_jsonl(Path("mine/train.jsonl"), rows)
    code, _, _, texts = train()
    assert code == 0 and everything(texts) == sorted(row["text"] for row in rows if row["text"])


def test_a_second_file_is_named(train):
    write("train.txt", "\n".join(LINES))
    write("train2.txt", "not read\n")
    write("._train.txt", b"\0litter")
    write("plan.docx", b"x")
    code, said, _, texts = train()
    assert code == 0 and "not used: train2.txt (beside train.txt" in said and "plan.docx" in said
    assert "litter" not in said and "._train" not in said and everything(texts) == sorted(LINES)


def test_a_lost_part_is_named(train):
    for number in (0, 2):
        write(f"train-0000{number}-of-00003-0011223344556677.txt", "\n".join(LINES))
    code, _, error, _ = train()
    assert code == 1 and "train-00001-of-00003.txt is missing" in error


@pytest.mark.parametrize("word", ["eval", "evaluation", "dev", "valid"])
def test_held_out_files_by_their_names(train, word):
    write("train.txt", "\n".join(LINES[:100]))
    write(f"{word}.txt", "\n".join(LINES[100:]))
    assert sorted(text.strip() for text in train()[3]["validation"]) == sorted(LINES[100:])


@pytest.mark.parametrize(
    "name, content",
    [
        ("train-00000-of-00001-a09b74b3ef9c3b56.txt", "\n".join(LINES)),
        ("train_0.txt", "\n".join(LINES)),
        ("train.txt.gz", gzip.compress("\n".join(LINES).encode())),
        ("train.csv", "text,n\n" + "".join(f'"{line}",1\n' for line in LINES)),
        ("train.json", json.dumps({"data": LINES})),
        ("what I wrote.txt", "\n".join(LINES)),
        ("Copy of train.txt", "\n".join(LINES)),
    ],
)
def test_names_and_kinds_that_are_read(train, name, content):
    write(name, content)
    code, said, _, texts = train()
    assert code == 0 and everything(texts) == sorted(LINES) and name in said


def test_questions_and_answers_in_a_table_are_dialogues(train):
    rows = "".join(f'"{asked(i)}","{answered(i)}"\n' for i in range(60))
    write("train.csv", "question,answer\n" + rows)
    code, said, _, texts = train("--loss_on", "answers")
    assert code == 0 and everything(texts) == sorted(answered(i) for i in range(60))
    assert "60 x user" in said and "60 x assistant" in said


def test_the_report_is_kept_and_a_grown_file_is_named_with_what_to_do(run):
    write("train.txt", "\n".join(LINES[:100]))
    words = ["train", "demo", "--data_dir", "mine", *TINY, "--output_dir", "run"]
    code, said, _ = run(*words)
    assert code == 0 and "train.txt: 100 records, plain text, a document a line" in said
    report = DataReport.of(json.loads(Path("run", DataReport.FILE).read_text()))
    assert report.files["train.txt"].records == 100
    size = Path("mine/train.txt").stat().st_size
    write("train.txt", "\n".join(LINES))
    code, _, error = run(*words)
    assert code == 2 and f"train.txt has grown from {size:,} to" in error
    assert "--output_dir run_2" in error and "--from run" in error


def test_what_is_shown_is_what_is_trained_on(run):
    write("train.txt", "\n".join(LINES))
    code, said, _ = run("data", "show", "mine", *TINY, "--count", "999", "--json")
    shown = ["".join(p["text"] for p in r["pieces"]) for r in json.loads(said)["records"]]
    assert code == 0 and [text.removeprefix("<|endoftext|>") for text in shown] == packed()["train"]


def test_the_command_itself(tmp_path):
    """As a process: what is wrong goes to standard error, in one line, with the exit code."""
    (tmp_path / "train.txt").write_bytes("\n".join(JAPANESE).encode("cp932"))
    words = [sys.executable, "-m", "newllm_lib", "data", "check", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "--encoding cp932" in done.stderr
    done = subprocess.run([*words, "--encoding", "cp932"], capture_output=True, text=True, cwd=Path.cwd())
    assert done.returncode == 0 and "60 records" in done.stdout and done.stderr == ""


TABLE = "".join(f'{asked(i)};"{answered(i)}"\n' for i in range(60))
ALL = sorted(answered(i) for i in range(60))


@pytest.mark.parametrize(
    "name, content",
    [
        ("train.csv", "Frage;Antwort\n" + TABLE),
        ("train.csv", "question;answer;\n" + TABLE.replace('"\n', '";\n')),
        ("train.csv", "question;answer\n" + TABLE.replace('"\n', '";\n')),
        ("train.csv", "question;answer\n" + TABLE.replace("\n", "\r\n\r\n")),
        (
            "train.csv",  # an array of numpy's, as pandas writes it
            "messages\n"
            + "".join(
                f"\"[{{'role': 'user', 'content': '{asked(i)}'}}\n {{'role': 'assistant', 'content': "
                f"'{answered(i)}'}}]\"\n"
                for i in range(60)
            ),
        ),
        (
            "train.json",
            json.dumps(
                {"columns": ["question", "answer"], "data": [[asked(i), answered(i)] for i in range(60)]}
            ),
        ),
        (
            "train.json",
            json.dumps(
                {
                    str(i): [
                        {"role": "user", "content": asked(i)},
                        {"role": "assistant", "content": answered(i)},
                    ]
                    for i in range(60)
                }
            ),
        ),
        ("train.csv", "\n\nquestion;answer\n" + TABLE),
        (
            "train.json",
            json.dumps(
                {
                    "meta": {"version": 1},
                    "conversations": [
                        {"question": asked(i), "answer": answered(i), "id": i} for i in range(60)
                    ],
                }
            ),
        ),
    ],
)
def test_tables_and_json_as_other_programs_write_them(train, name, content):
    write(name, content)
    code, _, error, texts = train("--loss_on", "answers")
    assert (code, error) == (0, "") and everything(texts) == ALL


def test_a_header_in_the_middle_of_a_table_is_no_record(train):
    write("train.csv", f"question;answer\n{TABLE}question;answer\n")
    code, said, _, texts = train("--loss_on", "answers")
    assert code == 0 and everything(texts) == ALL and "the header once more" in said


def test_marks_between_files_that_were_put_together_are_no_text(train):
    write("train.txt", "\n".join(LINES[:70]) + "\n\ufeff" + "\n".join(LINES[70:]))
    assert everything(train()[3]) == sorted(LINES)


@pytest.mark.parametrize(
    "names", [("train_en", "test_en"), ("trainset", "testset"), ("a_train_b", "a_test_b")]
)
def test_a_word_in_the_names_says_the_split(train, names):
    for name, lines in zip(names, (LINES[:100], LINES[100:]), strict=True):
        write(f"{name}.txt", "\n".join(lines))
    code, _, _, texts = train()
    assert code == 0 and sorted(text.strip() for text in texts["test"]) == sorted(LINES[100:])


def test_a_set_saved_to_disk_is_named_by_its_arrow_files(run):
    write("state.json", "{}")
    write("data-00000-of-00001.arrow", "ARROW1")
    code, _, error = run("data", "check", "mine", *TINY)
    assert code == 1 and "data-00000-of-00001.arrow: save it as .parquet" in error
    Path("mine", "train").mkdir()
    for path in list(Path("mine").glob("*.*")):
        path.rename(path.parent / "train" / path.name)
    assert "train/: data-00000-of-00001.arrow: save it" in run("data", "check", "mine", *TINY)[2]


def test_a_file_that_is_not_read_is_refused_by_its_kind(run):
    write("book.md", "A book.")
    code, _, error = run("train", "text", "--data", "mine/book.md", *TINY)
    assert code == 2 and "call it .txt to read it" in error


def test_of_two_kinds_of_a_split_the_advice_is_not_to_number_them(train):
    write("train_0.jsonl", json.dumps([{"text": line} for line in LINES]))
    write("train_1.csv", "text\nOne.\n")
    code, said, _, _ = train()
    assert code == 0 and "train_1.csv (train_0.jsonl is read; files of one split are of one kind)" in said


def test_nuls_behind_the_first_pieces_are_named(train):
    write("train.txt", "\n".join(f"{line} {i}" for i in range(12) for line in LINES) + "\0")
    assert "NUL characters in a text" in train()[1]


def test_marks_that_part_nothing_are_named(train):
    write("train.txt", "".join(f"{line} <|pad|>\n" for line in LINES))
    assert "144 times <|pad|>, learned as letters" in train()[1]
