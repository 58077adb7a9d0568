"""The quality benchmark: equal effort for all, picked on one text and reported on another, gone on with where it stopped."""

import pytest

from newllm_lib.benchmarks import quality
from newllm_lib.benchmarks.rows import Rows
from newllm_lib.errors import UsageError


def test_everyone_is_tried_as_often():
    for size in ("4M", "10M", "25M"):
        grids = {model: quality.grid("chitchat", model, size) for model in quality._GRID}
        assert all(len({t.key() for t in g}) == 3 for g in grids.values())
        regularised = [[(t.dropout, t.settings.get("weight_decay")) for t in grids[m]] for m in quality.SEVERAL_SEEDS]
        assert regularised[0] == regularised[1] == regularised[2]
    with pytest.raises(UsageError, match="attention"):
        quality.grid("chitchat", "transformer", "4M")


def test_the_best_on_validation_text_is_trained_with_all_seeds_and_its_test_text_reported(tmp_path):
    journal = tmp_path / "quality.jsonl"
    first = quality.missing(journal, "chitchat", "new_llm", "4M")
    for number, trial in enumerate(first):  # the third is best on validation text, the first on test text
        result = {"validation": 1.4 - 0.1 * (number == 2), "test": 1.2 + 0.1 * number, "parameters": 4_200_000, "seconds": 1.0}
        quality.write(journal, trial, result)
    second = quality.missing(journal, "chitchat", "new_llm", "4M")
    assert [t.settings["seed"] for t in second] == [0, 1, 2]
    assert all({**t.settings, "seed": 0} == {**first[2].settings, "train_on": ["train", "validation"]} for t in second)
    rows = Rows("quality", "newllm bench quality")
    where = {"corpora": ["chitchat"], "models": ["new_llm"], "sizes": ["4M"]}
    assert quality.report(journal, rows, **where) == [] and rows.rows == []
    for number, trial in enumerate(second):
        result = {"validation": 0.1, "test": 1.30 + 0.01 * number, "test_less_longest": 1.4, "parameters": 4_200_000}
        quality.write(journal, trial, {**result, "seconds": 1.0})
    assert quality.missing(journal, "chitchat", "new_llm", "4M") == []
    (found,) = quality.report(journal, rows, **where)
    assert found["test"] == pytest.approx(1.31) and found["seeds"] == 3
    assert [r["value"] for r in rows.rows] == ["1.31", "0.01", "1.4", "0"] and "4,200,000 parameters" in rows.rows[0]["note"]


def test_a_journal_of_an_older_version_is_reported_as_far_as_it_goes(tmp_path):
    journal, rows = tmp_path / "quality.jsonl", Rows("quality", "newllm bench quality")
    where = {"corpora": ["chitchat"], "models": ["lstm"], "sizes": ["4M"]}
    for trial in quality.missing(journal, "chitchat", "lstm", "4M", settled=True):
        quality.write(journal, trial, {"validation": 1.0, "test": 1.5, "parameters": 4_200_000, "seconds": 1.0})
    assert len(quality.report(journal, rows, settled=True, **where)) == 1
    assert [row["metric"] for row in rows.rows] == ["bits per byte, chitchat test, 4M"]


def test_a_stopped_benchmark_goes_on(tmp_path, monkeypatch):
    """Several trainings at once, each written when it ends; what another process trains is left to it."""
    begun = []

    class Quick:
        def __init__(self, number):
            self.left = 3 - number % 2  # they end in another order than they began

        def begin(self):
            if len(begun) == 2:
                raise KeyboardInterrupt
            begun.append(self)

        def advance(self):
            self.left -= 1
            return self.left > 0

        def result(self):
            return {"validation": 1.0, "test": 1.1, "seconds": 0.0, "steps": 3, "parameters": 4_200_000}

    monkeypatch.setattr(quality, "_training", lambda trial, data, device, text: Quick(len(begun)))
    journal, where = tmp_path / "journal.jsonl", {"corpora": ["chitchat"], "models": ["lstm"], "sizes": ["4M"]}
    options = {"device": "cpu", "smoke": True, "together": 2}
    with pytest.raises(KeyboardInterrupt):
        quality.run(journal, tmp_path / "data", **options, **where)
    done = len(quality.read(journal))
    assert done <= 2
    monkeypatch.setattr(quality, "WAIT", 0.01)
    with quality._alone(journal, quality.missing(journal, "chitchat", "lstm", "4M", smoke=True)[-1].key()) as mine:
        assert mine
        monkeypatch.setattr(Quick, "begin", lambda self: begun.append(self))
        quality.run(journal, tmp_path / "data", seconds=0, **options, **where)
        assert len(quality.read(journal)) == done
        quality.run(journal, tmp_path / "data", seconds=0.5, **options, **where)  # it waits for the other one's
        assert len(quality.read(journal)) == 2
    quality.run(journal, tmp_path / "data", **options, **where)
    assert len(quality.read(journal)) == 4  # three of the grid, then the best of it once more
    assert len({t.key() for t, _ in quality.read(journal)}) == 4
    assert quality.missing(journal, "chitchat", "lstm", "4M", smoke=True) == []


def test_trials_are_trained_on_their_corpus(tmp_path):
    """The real path, three steps of the smallest text: a trial becomes a training, and its result a line."""
    import numpy as np

    from newllm_lib.benchmarks import corpus as corpora

    ids = np.arange(600) % 300
    parts = (*corpora.PARTS, corpora.LONGEST)
    made = corpora.Corpus("chitchat", 4096, dict.fromkeys(parts, ids), dict.fromkeys(parts, 900))
    made.save(tmp_path / "data")
    trial = quality.grid("chitchat", "new_llm", "4M", smoke=True)[0]
    small = quality.replace(trial, settings={**trial.settings, "rows": 2, "time": 16})
    training = quality._training(small, tmp_path / "data", "cpu", None)
    training.begin()
    assert not training.advance()
    result = training.result()
    assert result["steps"] == 3 and abs(result["parameters"] / 4_200_000 - 1) < 0.02 and result["test"] < 12
