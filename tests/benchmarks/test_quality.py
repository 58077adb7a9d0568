"""The quality benchmark: equal effort for all, picked on one text and reported on another, gone on with where
it stopped.
"""

import json

import pytest

from benchmarks import corpus, quality
from benchmarks.common import Rows
from newllm_lib.errors import NewLLMError, UsageError

LSTM = [("chitchat", "lstm", "4M")]


def test_everyone_is_tried_as_often():
    for size in ("4M", "10M", "25M"):
        grids = {model: quality.grid("chitchat", model, size) for model in quality.MODELS}
        assert all(len({t.key() for t in g}) == 3 for g in grids.values())
        regularised = [
            [(t.keys["dropout"], t.keys.get("weight_decay")) for t in grids[m]] for m in quality.SEVERAL_SEEDS
        ]
        assert regularised[0] == regularised[1] == regularised[2]
        tokens = {
            g[0].keys["batch_size"] * g[0].keys["max_seq_length"]
            for m, g in grids.items()
            if m in quality.SEVERAL_SEEDS
        }
        assert len(tokens) == 1
    with pytest.raises(UsageError, match="attention"):
        quality.grid("chitchat", "transformer", "4M")


def test_the_best_on_validation_text_is_trained_with_all_seeds_and_its_test_text_reported(tmp_path):
    journal = tmp_path / "quality.jsonl"
    first = quality.missing(journal, "chitchat", "new_llm", "4M")
    for number, trial in enumerate(first):  # the third is best on validation text, the first on test text
        result = {
            "validation": 1.4 - 0.1 * (number == 2),
            "test": 1.2 + 0.1 * number,
            "parameters": 4_200_000,
            "seconds": 1.0,
        }
        quality.write(journal, trial, result)
    second = quality.missing(journal, "chitchat", "new_llm", "4M")
    assert [t.seed for t in second] == [0, 1, 2]
    assert all(t.keys == first[2].keys and t.final and not first[2].final for t in second)
    rows = Rows("quality", "newllm bench quality")
    contests = [("chitchat", "new_llm", "4M")]
    assert quality.report(journal, rows, contests) == [] and rows.rows == []
    for number, trial in enumerate(second):
        result = {
            "validation": 0.1,
            "test": 1.30 + 0.01 * number,
            "test_less_longest": 1.4,
            "parameters": 4_200_000,
        }
        quality.write(journal, trial, {**result, "seconds": 1.0})
    assert quality.missing(journal, "chitchat", "new_llm", "4M") == []
    (found,) = quality.report(journal, rows, contests)
    assert found["test"] == pytest.approx(1.31) and found["seeds"] == 3
    assert [r["value"] for r in rows.rows] == [
        "1.31",
        "0.01",
        "1.4",
        "0",
    ] and "4,200,000 parameters" in rows.rows[0]["note"]


def test_a_journal_of_an_older_version_is_reported_as_far_as_it_goes(tmp_path):
    journal, rows = tmp_path / "quality.jsonl", Rows("quality", "newllm bench quality")
    old = {
        "corpus": "chitchat",
        "model": "lstm",
        "size": "4M",
        "dropout": 0.1,
        "changes": {},
        "settings": {"rows": 64},
    }
    journal.write_text(json.dumps({"trial": old, "result": {"validation": 1.0}}) + "\n")
    for trial in quality.missing(journal, "chitchat", "lstm", "4M", settled=True):
        quality.write(
            journal, trial, {"validation": 1.0, "test": 1.5, "parameters": 4_200_000, "seconds": 1.0}
        )
    assert len(quality.report(journal, rows, LSTM, settled=True)) == 1
    assert [row["metric"] for row in rows.rows] == ["bits per byte, chitchat test, 4M"]


def test_a_stopped_benchmark_goes_on(tmp_path, monkeypatch):
    """Several trainings at once, each written when it ends; one that fails keeps nobody from going on."""
    journal, begun = tmp_path / "journal.jsonl", []

    def quick(trial, words):
        begun.append(trial)
        if len(begun) == 2:
            raise NewLLMError("the GPU fell off")
        return {"validation": 1.0, "test": 1.1, "seconds": 0.0, "steps": 3, "parameters": 4_200_000}

    monkeypatch.setattr(quality, "in_a_process", quick)
    quality.train_missing(journal, LSTM, [], 2, seconds=-1, smoke=True)
    assert not begun and quality.read(journal) == []
    with pytest.raises(NewLLMError, match="1 trainings failed"):
        quality.train_missing(journal, LSTM, [], 2, smoke=True)
    assert len(quality.read(journal)) == 2 and len(begun) == 3  # of the grid; none was tried twice
    quality.train_missing(journal, LSTM, [], 2, smoke=True)
    assert len(quality.read(journal)) == 4  # three of the grid, then the best of it once more
    assert len({t.key() for t, _ in quality.read(journal)}) == 4
    assert quality.missing(journal, "chitchat", "lstm", "4M", smoke=True) == []


def test_two_do_not_train_for_one_journal(tmp_path):
    journal = tmp_path / "journal.jsonl"
    with quality._alone(journal):
        with pytest.raises(NewLLMError, match="Another process"), quality._alone(journal):
            pass
    with quality._alone(journal):
        pass


@pytest.fixture
def places(tmp_path, monkeypatch):
    """A small corpus, where the benchmark looks for ChitChat."""
    monkeypatch.setenv("NEWLLM_CACHE", str(tmp_path / "cache"))
    words = "red blue old new tall small".split()
    texts = [f"A: {word} is {other}.\nB: is it {word}?" for word in words for other in words] * 4
    made = {
        kind: tmp_path / "data" / "chitchat" / kind
        for kind in (corpus.CHOOSE, corpus.FINAL, corpus.LESS_LONGEST)
    }
    corpus.write(
        {
            "train": texts,
            "validation": texts[:8],
            "test": [*texts[3:9], "A: " + "the new old blue red " * 20],
        },
        made,
    )
    return corpus.open_corpus("chitchat", tmp_path / "data")


def test_the_text_to_choose_by_is_learned_at_last_and_the_longest_is_left_out(places):
    count = {
        (kind, path.stem): len(path.read_text().splitlines())
        for kind, folder in places.items()
        for path in folder.iterdir()
    }
    assert count[corpus.FINAL, "train"] == count[corpus.CHOOSE, "train"] + count[corpus.CHOOSE, "validation"]
    assert count[corpus.LESS_LONGEST, "test"] == count[corpus.CHOOSE, "test"] - 1
    assert "blue red the new" not in (places[corpus.LESS_LONGEST] / "test.jsonl").read_text()
    assert (corpus.LESS_LONGEST, "train") not in count


@pytest.mark.parametrize("model", ["new_llm", "attention"])
def test_trials_are_trained_on_their_corpus(model, places, monkeypatch):
    """The real path, three steps of a small text: by `newllm train` and by the peers' loop, and all figures
    of a result.
    """
    monkeypatch.setattr(quality, "VOCABULARY", 300)
    monkeypatch.setenv("NEWLLM_DEVICE", "cpu")
    trial = quality.grid("chitchat", model, "4M", smoke=True)[0]
    small = quality.replace(trial, keys={**trial.keys, "batch_size": 2, "max_seq_length": 16}, final=True)
    result = quality.trained(small, places)
    assert result["steps"] == 3 and abs(result["parameters"] / 4_200_000 - 1) < 0.02
    assert 0 < result["validation"] < 12 and 0 < result["test"] < 12
    assert result["test_less_longest"] != result["test"]
