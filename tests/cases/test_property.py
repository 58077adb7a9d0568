"""Generated folders (kinds of rows, encodings, names, packings, shards, columns, separators, nulls, tool
calls, content in parts, weights): the text, the roles and the loss mask that come out of the packed stream
are those that went in, or the command names what it left out, or refuses with what to do. There is no third
outcome.

NEWLLM_SEED repeats the folders of a run that failed; each prints its own.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import random
from pathlib import Path

import pytest

from newllm_lib.cli import main
from newllm_lib.data import prepare
from newllm_lib.data.splits import SPLITS
from newllm_lib.data.tokenizer import train_bpe, wrap
from newllm_lib.recipe import load_recipe
from tests.helpers.cases import turns

WORDS = {
    "latin": "river lamp house stone green ship window north bread wheel cloud paper".split(),
    "western": "été forêt niño über déjà garçon maison façade jardín straße château señal".split(),
    "japanese": "港 船 窓 海 雨 石 橋 月 机 本 駅 道".split(),
}
ENCODINGS = {
    "latin": ["utf-8", "utf-8-sig", "utf-16-le", "utf-16", "utf-32-be"],
    "western": ["utf-8", "utf-8-sig", "cp1252", "utf-16-le"],
    "japanese": ["utf-8", "utf-8-sig", "cp932", "euc-jp", "iso2022_jp", "utf-16"],
}
TEXTS = ("lines", "blocks", "marked", "fed", "repeated")  # how a .txt is written
ROWS = ("text", "messages", "sharegpt", "alpaca", "completion", "question", "tools", "parts", "weights")
PACKINGS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
FLAGS = ["--sized_for", "cpu", "--max_seq_length", "2"]


class Folder:
    """One generated folder: what was written, and what must be found."""

    def __init__(self, place: Path, seed: int):
        self.place, self.rng = place, random.Random(seed)
        pick = self.rng.choice
        self.script = pick(list(WORDS))
        self.encoding, self.count = pick(ENCODINGS[self.script]), self.rng.randint(40, 230)
        self.ending = pick([".txt", ".txt", ".jsonl", ".json", ".csv", ".tsv", ".parquet"])
        self.kind = pick(TEXTS if self.ending == ".txt" else ROWS)
        if self.ending in (".csv", ".tsv") and self.kind == "sharegpt":
            self.kind = "messages"
        self.answers = self.kind == "weights" or self.kind in ROWS[1:] and self.rng.random() < 0.5
        self.nulls = self.ending != ".txt" and self.kind == "text" and self.rng.random() < 0.5
        self.extra = self.ending != ".txt" and self.rng.random() < 0.5
        self.packing = pick(list(PACKINGS)) if self.ending != ".parquet" and self.rng.random() < 0.3 else ""
        self.shards = pick([1, 1, 2, 3])
        one = ["train", "train", "train-00000-of-00001-00ff00ff00ff00ff", "train_0", "my train"]
        several = [f"train-{{:05d}}-of-{self.shards:05d}", "train_{}", "train.part{}"]
        self.name = pick(one if self.shards == 1 else several)
        self.beside = pick(["", "", "notes.pdf", "old.zip", *["train_more.txt"] * (self.name != "my train")])
        self.expected: list[tuple] = []  # (role, text, whether it is learned) of each turn of each document
        self.write()

    def sentence(self, i: int) -> str:
        words = self.rng.choices(WORDS[self.script], k=self.rng.randint(3, 9))
        return f"{' '.join(words)} {i}."

    def write(self) -> None:
        self.place.mkdir(parents=True)
        numbers = range(self.count)
        for shard in range(self.shards):
            mine = numbers[shard * self.count // self.shards : (shard + 1) * self.count // self.shards]
            if self.ending == ".txt":
                content = self._text(mine)
            else:
                rows = [self._row(i) for i in mine]
                how = {".json": self._json, ".jsonl": self._lines, ".parquet": self._parquet}
                content = how.get(self.ending, self._table)(rows)
            data = content if isinstance(content, bytes) else content.encode(self.encoding)
            name = self.name.format(shard) + self.ending + self.packing
            (self.place / name).write_bytes(PACKINGS[self.packing](data))
        if self.beside:
            (self.place / self.beside).write_bytes(b"x")

    def _text(self, numbers: range) -> str:
        texts = [self.sentence(i) for i in numbers]
        if self.kind == "repeated":
            texts = [part for text in texts for part in (text, "---")]
        self.expected += [(("text", text, False),) for text in texts]
        end = self.rng.choice(["\n", "\r\n"])
        between = {"lines": end, "repeated": end, "blocks": end * 2, "fed": f"{end}\f{end}"}
        marked = self.rng.choice(["<|endoftext|>", f"{end}<|endoftext|>{end}", f"{end}</s>{end}"])
        return between.get(self.kind, marked).join(texts) + end * self.rng.randint(0, 3)

    def _row(self, i: int) -> dict:
        asked, answered, muted = self.sentence(i), self.sentence(i), self.sentence(-1 - i)  # never equal
        extra = {"topic": "weather"} if self.extra else {}
        if self.kind == "text":
            missing = self.nulls and i % 7 == 3
            self.expected += [] if missing else [(("text", asked, False),)]
            return {"text": self.rng.choice([None, ""]) if missing else asked} | extra
        said, messages = self._dialogue(i, asked, answered, muted)
        self.expected.append(
            tuple((role, text, self.answers and role == "assistant" and text != muted) for role, text in said)
        )
        shared = [
            {"from": who, "value": text} for who, (_, text) in zip(("human", "gpt"), said, strict=False)
        ]
        rows = {
            "sharegpt": {"conversations": shared},
            "alpaca": {"instruction": asked, "input": "", "output": answered},
            "completion": {"prompt": asked, "completion": answered},
            "question": {"question": asked, "answer": answered},
        }
        return rows.get(self.kind, {"messages": messages}) | extra

    def _dialogue(self, i: int, asked: str, answered: str, muted: str) -> tuple[list, list[dict]]:
        """(role, text) of each turn, and the messages that say so."""
        said = [("user", asked), ("assistant", answered)]
        messages: list[dict] = [{"role": role, "content": text} for role, text in said]
        if self.kind == "tools":
            written = json.dumps({"name": "look", "arguments": {"box": i}})
            said[1:1] = [("assistant", f"<tool_call>{written}</tool_call>"), ("system", "It is there.")]
            function = {"name": "look", "arguments": json.dumps({"box": i})}
            calls = [{"id": "c0", "type": "function", "function": function}]
            messages[1:1] = [
                {"role": "assistant", "content": None, "tool_calls": calls},
                {"role": "tool", "content": "It is there.", "tool_call_id": "c0"},
            ]
        elif self.kind == "weights":
            said[:0] = [("user", "And before?"), ("assistant", muted)]
            mark = self.rng.choice([{"weight": 0}, {"train": False}, {"loss_weight": 0.0}])
            messages[:0] = [
                {"role": "user", "content": "And before?"},
                {"role": "assistant", "content": muted, **mark},
            ]
        elif self.kind == "parts":
            for message, (_, text) in zip(messages, said, strict=True):
                halves = text[: len(text) // 2], text[len(text) // 2 :]
                message["content"] = [{"type": "text", "text": half} for half in halves]
        return said, messages

    def _lines(self, rows: list[dict]) -> str:
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

    def _json(self, rows: list[dict]) -> str:
        return json.dumps(
            self.rng.choice([rows, {"data": rows}, {"rows": [{"row": r} for r in rows]}]), ensure_ascii=False
        )

    def _parquet(self, rows: list[dict]) -> bytes:
        import pyarrow
        from pyarrow import parquet

        self.encoding = "utf-8"
        file = io.BytesIO()
        parquet.write_table(pyarrow.Table.from_pylist(rows), file)
        return file.getvalue()

    def _table(self, rows: list[dict]) -> str:
        file = io.StringIO(newline="")
        delimiter = "\t" if self.ending == ".tsv" else self.rng.choice([",", ";"])
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            if "messages" in row:
                row = {**row, "messages": json.dumps(row["messages"], ensure_ascii=False)}
            writer.writerow(row)
        return file.getvalue()

    def __str__(self) -> str:
        what = f"{self.kind} in {self.encoding}" + ", loss on answers" * self.answers
        return f"{self.place}: {what}, {sorted(p.name for p in self.place.iterdir())}"


def check(folder: Folder, capsys) -> None:
    """That there is no third outcome."""
    capsys.readouterr()
    words = ["data", "check", str(folder.place), *FLAGS, "--json"]
    words += ["--loss_on", "answers"] * folder.answers
    code, flags = main(words), []
    said = capsys.readouterr()
    if code != 0:
        assert code in (1, 2) and said.err.splitlines()[-1].startswith("newllm: "), folder
        assert folder.encoding not in ("utf-8", "utf-8-sig") and "--encoding " in said.err, (said.err, folder)
        flags = ["--encoding", folder.encoding]
        code = main([*words, *flags])
        said = capsys.readouterr()
    assert code == 0, (said.err, folder)
    report = json.loads(said.out)["report"]
    parts = report["files"].values()
    assert len(parts) == folder.shards
    if folder.beside:
        assert folder.beside in report["unused"], folder
    if folder.extra:
        named = sum(part["unread"].get("topic", 0) for part in parts)
        empty = (folder.count - len(folder.expected)) * (folder.ending == ".parquet")
        assert named == len(folder.expected) + empty, (parts, folder)
    choices = {"data": str(folder.place), "max_seq_length": 2, "tokenizer": "tokenizer"}
    choices |= {"loss_on": "answers"} if folder.answers else {}
    data = prepare(load_recipe("demo", choices | ({"encoding": flags[1]} if flags else {}), "cpu"))
    found = [
        tuple((role, text.strip(), learned) for role, text, learned in document)
        for split in SPLITS
        for document in turns(getattr(data, split), data.tokenizer)
    ]
    if folder.kind == "repeated":  # equal lines count once where they are held out, and that is said
        assert set(found) == set(folder.expected), folder
        noted = sum(sum(part["notes"].values()) for part in parts)
        assert noted == len(folder.expected) - len(found), (parts, folder)
    else:
        assert sorted(found) == sorted(folder.expected), folder


def run(folders: int, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("NEWLLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("newllm_lib.data.cache.sync", lambda path: None)
    wrap(train_bpe(iter([["a b"]]), 300)).save_pretrained("tokenizer")  # of bytes: one for all
    first = int(os.environ.get("NEWLLM_SEED", 0)) or random.randrange(10**9)
    with capsys.disabled():
        print(f"\n  NEWLLM_SEED={first}: {folders} folders")
    for seed in range(first, first + folders):
        check(Folder(tmp_path / str(seed) / "mine", seed), capsys)


def test_a_hundred_folders(tmp_path, monkeypatch, capsys):
    run(100, tmp_path, monkeypatch, capsys)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_thousand_folders(tmp_path, monkeypatch, capsys):
    run(2000, tmp_path, monkeypatch, capsys)
