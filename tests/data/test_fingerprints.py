"""What is prepared from the same data never changes: a run that an older version began finds its data, blocks
and order again.
"""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from newllm_lib.data import prepare
from newllm_lib.data.blocks import training_blocks
from newllm_lib.data.preferences import load_preferences
from tests.helpers.dialogue_sets import dialogue_hub
from tests.helpers.hub_process import hub_worker
from tests.helpers.texts import dialogues, paragraphs, write_jsonl
from tests.helpers.wikitext import write_wikitext

PINNED = json.loads(Path(__file__).with_name("fingerprints.json").read_text(encoding="utf-8"))
ROWS = [{"messages": messages} for messages in dialogues(200)]


def write_parquet(place: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(ROWS), place / "train.parquet")


def write_lines(place: Path) -> None:
    (place / "train.txt").write_text("\n".join(paragraphs(300)) + "\n", encoding="utf-8")


def write_blocks(place: Path) -> None:
    (place / "wiki.train.txt").write_text("\n\n".join(paragraphs(300)) + "\n", encoding="utf-8")
    (place / "wiki.valid.txt").write_text("\n\n".join(paragraphs(40, seed=1)) + "\n", encoding="utf-8")


def write_articles(place: Path) -> None:
    text = "".join(f" = Title {i} = \n \n {paragraph} \n \n" for i, paragraph in enumerate(paragraphs(300)))
    (place / "train.txt").write_text(text, encoding="utf-8")


def write_utterances(place: Path) -> None:
    lines = (" __eou__ ".join(m["content"] for m in messages) + " __eou__\n" for messages in dialogues(200))
    (place / "train.txt").write_text("".join(lines), encoding="utf-8")


def write_shards(place: Path) -> None:
    for shard in range(2):
        write_jsonl(place / f"train-0000{shard}-of-00002.jsonl", ROWS[shard::2])
    write_jsonl(place / "test.jsonl", ROWS[:20])


def write_gzip(place: Path) -> None:
    rows = [
        {"instruction": t, "context": t[:9] if i % 2 else "", "response": t[::-1]}
        for i, t in enumerate(paragraphs(200))
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (place / "train.jsonl.gz").write_bytes(gzip.compress(text.encode(), compresslevel=0, mtime=0))


def write_json(place: Path) -> None:
    (place / "train.json").write_text(json.dumps(ROWS), encoding="utf-8")


# what a case is made of: a function that writes the files, and what the recipe says
CASES: dict[str, tuple] = {
    "demo": (None, {"max_samples": 100}),
    "demo, words": (None, {"max_samples": 60, "tokenizer": "words", "carry_state": True}),
    "lines": (write_lines, {}),
    "blocks": (write_blocks, {"max_samples": 120}),
    "articles": (write_articles, {"tokenizer": "words"}),
    "utterances": (write_utterances, {"carry_state": True}),
    "shards": (write_shards, {"loss_on": "answers"}),
    "gzip": (write_gzip, {"template": "instruction"}),
    "json": (write_json, {"max_samples": 50, "loss_on": "answers", "template": "instruction"}),
    "parquet": (write_parquet, {}),
    "streamed shards": (write_shards, {"streaming": "on", "loss_on": "answers"}),
    "streamed parquet": (write_parquet, {"streaming": "on", "max_samples": 60}),
}


def digest(*arrays) -> str:
    value = hashlib.sha256()
    for array in arrays:
        value.update(array.tobytes())
    return value.hexdigest()[:16]


def described(recipe, cache: Path) -> dict:
    """All that a checkpoint counts on."""
    data = prepare(recipe, cache)
    try:
        blocks, sampler = training_blocks(data.train, recipe)
        order = list(itertools.islice(sampler, 64))
        batch = blocks.__getitems__(order)
        return {
            "fingerprint": data.fingerprint,
            "train": [data.train.documents, data.train.tokens],
            "held out": [digest(part.ids, part.document_starts) for part in (data.validation, data.test)],
            "counts": [
                [p.documents, p.bytes, p.lost_bytes, p.words, p.unk_tokens]
                for p in (data.validation, data.test)
            ],
            "order": hashlib.sha256(json.dumps(order).encode()).hexdigest()[:16],
            "first batches": digest(batch["input_ids"].numpy(), batch["labels"].numpy()),
        }
    finally:
        data.close()


@pytest.mark.parametrize("name", CASES)
def test_the_same_data_is_prepared_as_ever(name, recipe, tmp_path, cache):
    write, changes = CASES[name]
    if write:
        (tmp_path / "files").mkdir()
        write(tmp_path / "files")
        changes = {**changes, "data_dir": tmp_path / "files"}
    found = described(recipe(batch_size=8, **changes), cache)
    if write is write_parquet:
        del found["fingerprint"]  # the files themselves depend on pyarrow's version
    assert found == PINNED[name]


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    write_wikitext(root / "datasets/Salesforce/wikitext")
    with dialogue_hub(root) as server, hub_worker(server, tmp_path_factory) as ask:
        yield ask


@pytest.mark.parametrize("name", [name.removeprefix("hub, ") for name in PINNED if name.startswith("hub, ")])
def test_the_same_set_of_the_hub_is_prepared_as_ever(name, worker, cache):
    pinned = PINNED[f"hub, {name}"]
    found = worker(cache, data=name)
    assert {key: found[key] for key in pinned} == pinned


def test_the_same_preference_pairs_are_read_as_ever(tmp_path):
    def talk(number: int, answer: str) -> list[dict]:
        return [{"role": "user", "content": f"Question {number}?"}, {"role": "assistant", "content": answer}]

    def rows(numbers: range) -> list[dict]:
        return [{"chosen": talk(i, "Yes."), "rejected": talk(i, "No.")} for i in numbers]

    texts = [
        {"prompt": f"Question {i}?", "chosen": f"Good {i}.", "rejected": f"Bad {i}.", "group": f"g{i % 40}"}
        for i in range(200)
    ]
    file = write_jsonl(tmp_path / "pairs.jsonl", texts)
    (tmp_path / "folder").mkdir()
    write_jsonl(tmp_path / "folder/train.jsonl", rows(range(100)))
    write_jsonl(tmp_path / "folder/test.jsonl", rows(range(90, 120)))
    recipe = {
        "task": "dpo",
        "data": "preferences_ja",
        "data_dir": None,
        "max_samples": None,
        "eval_pairs": 100,
        "seed": 0,
    }
    for name, changes in (
        ("made here", {"max_samples": 300, "seed": 1}),
        ("file", {"data": str(file), "max_samples": 90}),
        ("folder", {"data_dir": str(tmp_path / "folder")}),
    ):
        found = load_preferences(SimpleNamespace(**{**recipe, **changes})).fingerprint
        assert found == PINNED[f"pairs, {name}"]
