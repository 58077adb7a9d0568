"""The dialogue sets that have a name, written as the hub holds them: their real files, columns and splits."""

from __future__ import annotations

import contextlib
import gzip
import json
from collections.abc import Iterator
from pathlib import Path

from newllm_lib.data.datasets import REGISTRY
from tests.helpers.hub_server import Handler, HubServer
from tests.helpers.texts import paragraphs, write_jsonl

DIALOGUE_SETS = (
    "dolly",
    "dailydialog",
    "hh_rlhf",
    "ultrachat",
    "ultrachat_200k",
    "code_alpaca",
    "dolly_ja",
    "alpaca_ja",
)


def talks(count: int, seed: int) -> list[list[str]]:
    """Dialogues of two or four turns; no two are alike."""
    texts = paragraphs(4 * count, seed)
    return [texts[4 * i : 4 * i + (2 if i % 3 else 4)] for i in range(count)]


def packed(talk: list[str]) -> str:
    return "".join(f"<|{('user', 'assistant')[i % 2]}|>{turn}<|end|>" for i, turn in enumerate(talk))


def write_parquet(path, rows):
    import pyarrow
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def write_gzip(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))


def instructions(first: str, second: str, more: dict) -> tuple[list[dict], list[list[str]]]:
    """Rows of instructions, every other one with a context, and the dialogues they stand for."""
    rows, expected = [], []
    for i, (task, below, answer, *_) in enumerate(t for t in talks(600, 1) if len(t) == 4):
        rows.append({**more, "instruction": task, first: below if i % 2 else "", second: answer})
        expected.append([f"{task}\n\n{below}" if i % 2 else task, answer])
    return rows, expected


def write_dolly(place):
    rows, expected = instructions("context", "response", {"category": "open_qa"})
    write_jsonl(place / "databricks-dolly-15k.jsonl", rows)
    return {"all": expected}


def write_dailydialog(place):
    splits = {"train": talks(100, 2), "validation": talks(20, 3), "test": talks(21, 4)}
    for split, part in splits.items():
        rows = [
            {"dialog": [f" {t} " for t in talk], "act": [1] * len(talk), "emotion": [0] * len(talk)}
            for talk in part
        ]
        write_parquet(place / "default" / split / "0000.parquet", rows)
    return splits


def write_hh_rlhf(place):
    def rows(part):
        texts = [
            "".join(f"\n\n{('Human', 'Assistant')[i % 2]}: {t}" for i, t in enumerate(talk)) for talk in part
        ]
        return [{"chosen": text, "rejected": text + " No."} for text in texts]

    train, test = talks(200, 5), talks(30, 6)
    for name, half in (("harmless-base", 0), ("helpful-base", 1)):
        write_gzip(place / name / "train.jsonl.gz", rows(train[half::2]))
        write_gzip(place / name / "test.jsonl.gz", rows(test[half::2]))
    write_gzip(
        place / "red-team-attempts" / "red_team_attempts.jsonl.gz", [{"transcript": "x", "rating": 1.0}]
    )
    return {"test": test, "made of train": train}


def write_ultrachat(place):
    part = talks(300, 7)
    for shard in range(3):
        rows = [{"id": str(i), "data": talk} for i, talk in enumerate(part) if i % 3 == shard]
        write_jsonl(place / f"train_{shard}.jsonl", rows)
    return {"all": part}


def write_ultrachat_200k(place):
    def rows(part):
        as_messages = [
            [{"content": t, "role": ("user", "assistant")[i % 2]} for i, t in enumerate(talk)]
            for talk in part
        ]
        return [{"prompt": m[0]["content"], "prompt_id": "x", "messages": m} for m in as_messages]

    splits = {
        "train_sft": talks(200, 8),
        "test_sft": talks(20, 9),
        "train_gen": talks(9, 10),
        "test_gen": talks(9, 11),
    }
    card = "---\nconfigs:\n- config_name: default\n  data_files:\n"
    for name, part in splits.items():
        write_parquet(place / f"data/{name}-00000-of-00001.parquet", rows(part))
        card += f"  - split: {name}\n    path: data/{name}-*\n"
    (place / "README.md").write_text(card + "---\n")
    return {"test": splits["test_sft"], "made of train": splits["train_sft"]}


def write_code_alpaca(place):
    rows, expected = instructions("input", "output", {})
    (place / "code_alpaca_20k.json").write_text(json.dumps(rows, indent=1))
    return {"all": expected}


def write_dolly_ja(place):
    rows, expected = instructions("input", "output", {"category": "open_qa", "index": "0"})
    (place / "databricks-dolly-15k-ja.json").write_text(
        json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8"
    )
    return {"all": expected}


def write_alpaca_ja(place):
    rows, expected = instructions("input", "output", {})
    write_parquet(place / "data/train-00000-of-00001-abc.parquet", rows)
    return {"all": expected}


class WithBranches(Handler):
    """The hub's branch of converted files: here the repository has nothing else."""

    def answer_route(self):
        if "/refs/convert/parquet" in self.route:
            self.server.hub.requests.append(f"branch {self.route}")
            self.route = self.route.replace("/refs/convert/parquet", "/main")
        super().answer_route()


@contextlib.contextmanager
def dialogue_hub(root: Path) -> Iterator[HubServer]:
    """A hub with all of them; its `expected` has the dialogues of each, by split."""
    with HubServer(root) as server:
        server._server.RequestHandlerClass = WithBranches
        server.expected = {}
        for name in DIALOGUE_SETS:
            known = REGISTRY[name]
            place = root / "datasets" / known.home
            place.mkdir(parents=True)
            server.expected[name] = globals()[f"write_{name}"](place)
            if len(known.revision) == 40:
                (place / ".commit").write_text(known.revision)
        yield server
