"""Pairs of every form are read, what is no pair is counted by reason, and no prompt is in both splits."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys

import pytest

from newllm_lib.data.preferences import load_preferences
from newllm_lib.data.preferences.pairs import parse_pair
from newllm_lib.data.records import BadRecord
from newllm_lib.errors import NewLLMError, UsageError
from newllm_lib.recipe import load_recipe
from tests.helpers.dialogue_sets import write_parquet
from tests.helpers.hub_server import HubServer
from tests.helpers.texts import write_jsonl


def said(role, text):
    return {"role": role, "content": text}


def recipe(**overrides):
    return load_recipe("dpo", {"sized_for": "cpu", "max_samples": "none", **overrides})


def numbered(count, start=0):
    return [
        {"prompt": f"Question {i}?", "chosen": f"Right {i}.", "rejected": f"Wrong {i}."}
        for i in range(start, start + count)
    ]


HH = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: "
CONVERSATION = [said("user", "a"), said("assistant", "b"), said("user", "c")]


@pytest.mark.parametrize(
    ("row", "turns"),
    [
        ({"prompt": "a", "chosen": "good", "rejected": "bad"}, 1),
        ({"prompt": [said("user", "a")], "chosen": "good", "rejected": "bad"}, 1),
        (
            {
                "prompt": CONVERSATION,
                "chosen": [said("assistant", "good")],
                "rejected": [said("assistant", "bad")],
            },
            3,
        ),
        (
            {
                "prompt": CONVERSATION,
                "chosen": [*CONVERSATION, said("assistant", "good")],
                "rejected": [*CONVERSATION, said("assistant", "bad")],
            },
            3,
        ),
        (
            {
                "prompt": "c",
                "chosen": [*CONVERSATION, said("assistant", "good")],
                "rejected": [*CONVERSATION, said("assistant", "bad")],
                "score_chosen": 8.5,
            },
            3,
        ),
        ({"chosen": HH + "good", "rejected": HH + "bad"}, 3),
    ],
)
def test_every_form_becomes_the_same_pair(row, turns):
    pair = parse_pair(row)
    assert (pair.chosen, pair.rejected) == ("good", "bad")
    assert [m.content for m in pair.prompt] == ["a", "b", "c"][:turns] and pair.prompt[-1].role == "user"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "a", "chosen": "x", "rejected": "x"}, "two equal answers"),
        ({"prompt": "a", "chosen": "x", "rejected": " "}, "an empty answer"),
        (
            {
                "prompt": [said("user", "a")],
                "chosen": [said("assistant", "")],
                "rejected": [said("assistant", "b")],
            },
            "an empty answer",
        ),
        ({"prompt": "", "chosen": "x", "rejected": "y"}, "an empty prompt"),
        (
            {"question": "a", "good": "x", "bad": "y"},
            "no column chosen and rejected (it has question, good, bad)",
        ),
        ({"prompt": "a", "chosen": "x"}, "no column rejected"),
        ({"prompt": 3, "chosen": "x", "rejected": "y"}, "prompt is of type int"),
        ({"chosen": HH + "x", "rejected": HH.replace("b", "z") + "y"}, "part before the last answer"),
        ({"chosen": "just text", "rejected": "other"}, "does not begin with Human"),
    ],
)
def test_what_is_no_pair_says_why(row, reason):
    with pytest.raises(BadRecord) as error:
        parse_pair(row)
    assert reason in str(error.value)


def test_ones_own_file_bad_rows_are_counted_and_shown(tmp_path):
    rows = [
        *numbered(40),
        {"prompt": "a", "chosen": "x", "rejected": "x"},
        {"prompt": "a", "chosen": "", "rejected": "y"},
    ]
    path = write_jsonl(tmp_path / "mine.jsonl", [*rows, rows[0]])
    found = load_preferences(recipe(data=str(path)))
    assert len(found.train) + len(found.evaluation) == 40 and len(found.evaluation) >= 1
    assert "3 left out" in found.description() and "two equal answers" in found.description()
    assert "an empty answer" in found.description() and "a repetition" in found.description()


def test_wrong_columns_are_one_line_that_names_them(tmp_path):
    path = write_jsonl(tmp_path / "mine.jsonl", [{"question": "a", "good": "x", "bad": "y"}] * 5)
    with pytest.raises(NewLLMError) as error:
        load_preferences(recipe(data=str(path)))
    line = str(error.value)
    assert (
        "\n" not in line
        and "mine.jsonl, line 1" in line
        and "question, good, bad" in line
        and '"rejected"' in line
    )


def test_equal_prompts_are_never_in_both_splits(tmp_path):
    (tmp_path / "data").mkdir()
    write_jsonl(tmp_path / "data" / "train.jsonl", numbered(30))
    again = [{**row, "rejected": "Another."} for row in numbered(3)]
    write_jsonl(tmp_path / "data" / "test.jsonl", [*numbered(5, start=100), *again])
    found = load_preferences(recipe(data_dir=str(tmp_path / "data")))
    assert (len(found.train), len(found.evaluation)) == (
        27,
        8,
    ) and "3 × held out under the same prompt" in found.description()
    several = [{**row, "chosen": f"Right, {i}."} for row in numbered(60) for i in range(3)]
    found = load_preferences(recipe(data=str(write_jsonl(tmp_path / "mine.jsonl", several))))
    assert not {p.prompt for p in found.train} & {p.prompt for p in found.evaluation}


def test_the_split_does_not_depend_on_the_order_and_samples_are_taken_by_content(tmp_path):
    rows = numbered(100)
    one = load_preferences(
        recipe(data=str(write_jsonl(tmp_path / "a.jsonl", rows)), max_samples=20, eval_pairs=5)
    )
    other = load_preferences(
        recipe(data=str(write_jsonl(tmp_path / "b.jsonl", rows[::-1])), max_samples=20, eval_pairs=5)
    )
    assert len(one.train) == 20 and len(one.evaluation) == 5
    assert set(one.train) == set(other.train) and set(one.evaluation) == set(other.evaluation)
    assert one.fingerprint != other.fingerprint  # the order of the data is part of a run


def test_what_newllm_data_wrote_is_split_by_fact_again(tmp_path):
    from newllm_lib.cli import main

    path = tmp_path / "ja.jsonl"
    assert main(["data", "preferences", "--output", str(path)]) == 0
    found = load_preferences(recipe(data=str(path), eval_pairs=1000))
    assert not {p.group for p in found.train} & {p.group for p in found.evaluation}
    assert "34 things that training never mentions" in found.description()


def test_the_shipped_recipe_takes_a_thousand_of_the_pairs_made_here():
    found = load_preferences(load_recipe("dpo", {"sized_for": "t4"}))
    assert len(found.train) == 1000 and len(found.evaluation) >= 300
    assert found.fingerprint == load_preferences(load_recipe("dpo", {"sized_for": "t4"})).fingerprint
    assert (
        found.fingerprint != load_preferences(load_recipe("dpo", {"sized_for": "t4", "seed": 1})).fingerprint
    )


def test_unknown_names_are_one_line():
    with pytest.raises(UsageError, match="There are no preference pairs 'my pairs'"):
        load_preferences(recipe(data="my pairs"))
    with pytest.raises(UsageError, match="There is no file 'my_pairs.jsonl'"):
        load_preferences(recipe(data="my_pairs.jsonl"))


def test_real_hh_rlhf_pairs(test_data):
    found = load_preferences(recipe(data=str(test_data / "hh-rlhf.harmless.first-half.jsonl.gz")))
    assert len(found.train) > 1000 and len(found.evaluation) > 100
    assert all(p.prompt[-1].role == "user" and p.chosen != p.rejected for p in found.train)


def test_sets_of_the_hub(tmp_path):
    """UltraFeedback's and hh-rlhf's own splits, read through a local server that speaks the hub's
    protocol.
    """
    root = tmp_path / "hub" / "datasets"
    ultra = root / "HuggingFaceH4" / "ultrafeedback_binarized"
    card = "---\nconfigs:\n- config_name: default\n  data_files:\n"
    for split, count, start in (
        ("train_prefs", 12, 0),
        ("train_sft", 30, 50),
        ("test_prefs", 4, 20),
        ("test_gen", 9, 90),
    ):
        rows = [
            {
                "prompt": r["prompt"],
                "chosen": [said("user", r["prompt"]), said("assistant", r["chosen"])],
                "rejected": [said("user", r["prompt"]), said("assistant", r["rejected"])],
            }
            for r in numbered(count, start)
        ]
        write_parquet(ultra / f"data/{split}-00000-of-00001.parquet", rows)
        card += f"  - split: {split}\n    path: data/{split}-*\n"
    (ultra / "README.md").write_text(card + "---\n")
    for split, count, start in (("train", 10, 0), ("test", 3, 40)):
        path = root / "Anthropic" / "hh-rlhf" / "harmless-base" / f"{split}.jsonl.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [
            {k: f"\n\nHuman: {i}\n\nAssistant: {k}" for k in ("chosen", "rejected")}
            for i in range(start, start + count)
        ]
        with gzip.open(path, "wt") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    code = (
        "import sys; from newllm_lib.data.preferences import load_preferences; from newllm_lib.recipe import "
        "load_recipe\nfor name in ('ultrafeedback', 'hh_rlhf'):\n    found = "
        "load_preferences(load_recipe('dpo', {'sized_for': 'cpu', 'data': name}))\n    print(name, "
        "len(found.train), len(found.evaluation), found.train[0].chosen)"
    )
    with HubServer(tmp_path / "hub") as server:
        caches = {
            "HF_ENDPOINT": server.url,
            "HF_HOME": str(tmp_path / "hf"),
            "NEWLLM_CACHE": str(tmp_path / "cache"),
        }
        ended = subprocess.run(
            [sys.executable, "-c", code], env=os.environ | caches, capture_output=True, text=True
        )
    assert ended.returncode == 0, ended.stderr
    assert "ultrafeedback 12 4 Right 0." in ended.stdout and "hh_rlhf 10 3 chosen" in ended.stdout
