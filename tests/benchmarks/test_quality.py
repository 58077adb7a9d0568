"""The quality benchmark: equal effort for all, picked on one text and reported on another, gone on with where it stopped."""

import pytest

from newllm_lib.benchmarks import quality
from newllm_lib.benchmarks.rows import Rows
from newllm_lib.errors import UsageError


def test_everyone_is_tried_as_often():
    for size, count in (("4M", 6), ("10M", 3), ("25M", 3)):
        grids = {model: quality.grid("chitchat", model, size) for model in quality._GRID}
        assert {len(g) for g in grids.values()} == {count}
        assert all(len({t.key() for t in g}) == count for g in grids.values())
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
        quality.write(journal, trial, {"validation": 0.1, "test": 1.30 + 0.01 * number, "parameters": 4_200_000, "seconds": 1.0})
    assert quality.missing(journal, "chitchat", "new_llm", "4M") == []
    (found,) = quality.report(journal, rows, **where)
    assert found["test"] == pytest.approx(1.31) and found["seeds"] == 3 and found["validation"] == pytest.approx(1.3)
    assert [r["value"] for r in rows.rows] == ["1.31", "0.01"] and "4,200,000 parameters" in rows.rows[0]["note"]


def test_a_stopped_benchmark_goes_on(tmp_path, monkeypatch):
    import numpy as np

    from newllm_lib.benchmarks import corpus as corpora
    from newllm_lib.benchmarks import fit

    made = corpora.Corpus("chitchat", 4096, dict.fromkeys(corpora.PARTS, np.arange(500) % 300), dict.fromkeys(corpora.PARTS, 900))
    made.save(tmp_path / "data")
    ran = []

    class Quick:
        def __init__(self, make, corpus, device, compile):
            assert corpus.bytes["test"] == 900

        def run(self, settings, limit):
            if len(ran) == 4:
                raise KeyboardInterrupt
            ran.append(settings)
            return {"validation": 1.0, "test": 1.1, "seconds": 0.0, "steps": limit, "parameters": 4_200_000}

    monkeypatch.setattr(fit, "Fit", Quick)
    journal, where = tmp_path / "journal.jsonl", {"corpora": ["chitchat"], "models": ["lstm"], "sizes": ["4M"]}
    with pytest.raises(KeyboardInterrupt):
        quality.run(journal, tmp_path / "data", device="cpu", smoke=True, **where)
    assert len(quality.read(journal)) == 4
    result = {"validation": 0.9, "test": 1.0, "seconds": 0.0, "parameters": 1}
    monkeypatch.setattr(Quick, "run", lambda self, settings, limit: ran.append(settings) or result)
    with quality._alone(journal, quality.missing(journal, "chitchat", "lstm", "4M", smoke=True)[0].group()) as mine:
        assert mine
        quality.run(journal, tmp_path / "data", device="cpu", smoke=True, seconds=0, **where)
        assert len(ran) == 4
    quality.run(journal, tmp_path / "data", device="cpu", smoke=True, **where)
    assert len(ran) == len(quality.read(journal)) == 7  # six of the grid, then the best of it once more
    assert quality.missing(journal, "chitchat", "lstm", "4M", smoke=True) == []
