"""Curves over seconds: everyone's path at a tiny size, nanoGPT's with a stand-in for its program."""

import argparse
import json
import math
import pickle

import numpy as np
import pytest

from benchmarks import common, corpus, nanogpt, time_to_quality
from benchmarks.time_to_quality import Contest, Curve
from newllm_lib.errors import NewLLMError, UsageError
from newllm_lib.recipe import load_recipe
from newllm_lib.runs import Run

# prints what nanoGPT prints: first how good it is, then its steps
STAND_IN = """
import json, sys, time
from pathlib import Path
Path("asked.json").write_text(json.dumps(sys.argv[1:]))
print("number of parameters: 0.01M")
for step, loss in ((0, 4.5), (250, 1.5), (500, 1.75)):
    print(f"step {step}: train loss {loss:.4f}, val loss {loss:.4f}")
    print(f"iter {step}: loss {loss:.4f}, time 20.00ms, mfu 1.00%")
    time.sleep(0.1)
if "--fail" in sys.argv:
    raise SystemExit("no such config")
time.sleep(0 if "--max_iters=6" in sys.argv else 60)
"""


@pytest.fixture
def clone(tmp_path):
    """A folder as nanoGPT's is."""
    folder = tmp_path / "nanoGPT"
    (folder / "config").mkdir(parents=True)
    (folder / "data").mkdir()
    (folder / "train.py").write_text(STAND_IN)
    return folder


@pytest.fixture
def text(tmp_path, monkeypatch):
    monkeypatch.setenv("NEWLLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NEWLLM_DEVICE", "cpu")
    file = tmp_path / "book.txt"
    words = "the old café by the red house was small and the new tall one was not".split()
    lines = [f"{a} {b} {a}.\n" for a in words for b in words]
    file.write_text("".join(lines) * 6, encoding="utf-8")
    return file


def asked(*words) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    time_to_quality.add_arguments(parser)
    arguments = parser.parse_args([str(word) for word in words])
    arguments.json = True
    return arguments


def test_a_command_and_nanogpt_on_one_text(text, clone, tmp_path):
    """The real command in a process of its own, a few steps; then nanoGPT's `train.py`, a stand-in."""
    out, picture = tmp_path / "results.csv", tmp_path / "curves.png"
    words = ["--text", text, "--small", "--seconds", 60, "--target", 7.9, "--out", out, "--picture", picture]
    found = time_to_quality.main(asked(*words, "--models", "new_llm", "nanogpt", "--nanogpt", clone))
    (curves,) = found["curves"].values()
    assert all(2 < bits < 9 and 0 < seconds < 60 for seconds, bits in curves["new_llm"])
    held_out = text.read_text(encoding="utf-8")[int(0.9 * len(text.read_text(encoding="utf-8"))) :]
    per_byte = len(held_out) / len(held_out.encode()) / math.log(2)
    assert per_byte < 1 / math.log(2)  # a character here is more than a byte
    assert [bits for _, bits in curves["nanogpt"]] == pytest.approx(
        [loss * per_byte for loss in (4.5, 1.5, 1.75)]
    )
    rows = {(row["model"].split(",")[0], row["metric"]): row for row in common.read(out)}
    assert float(rows["nanogpt", "best bits per byte"]["value"]) == pytest.approx(1.5 * per_byte, rel=1e-5)
    assert float(rows["nanogpt", "seconds to 7.9 bits per byte"]["value"]) < 60
    assert f"{len(held_out.encode()):,} bytes" in rows["new_llm", "best bits per byte"]["note"]
    assert float(rows["book.txt", "tokens prepared beforehand"]["value"]) > 0
    assert picture.stat().st_size > 5000
    assert sorted(entry.name for entry in clone.iterdir()) == ["config", "data", "train.py"]


def test_without_its_folder_nanogpt_is_not_measured(text, tmp_path, monkeypatch):
    monkeypatch.setattr(time_to_quality, "train", lambda *_: Curve(evaluations=[(3.0, 2.5), (9.0, 2.0)]))
    found = time_to_quality.main(asked("--text", text, "--small", "--out", tmp_path / "results.csv"))
    (row,) = (row for row in found["rows"] if row["model"].startswith("nanogpt"))
    assert row["value"] == "nan" and "not measured" in row["note"]
    (row,) = (
        row for row in found["rows"] if row["model"].startswith("attention") and "to 2.125" in row["metric"]
    )
    assert row["value"] == "9"
    for words in (["--packages", "--text", text], [], ["--text", text, "--nanogpt", tmp_path]):
        with pytest.raises(UsageError):
            time_to_quality.main(asked(*words))


def test_modern_attention_writes_a_curve(text, tmp_path):
    ((contest, _),) = time_to_quality.contests(asked("--text", text, "--small"), tmp_path)
    keys = contest.keys_of("attention") | {"output_dir": str(tmp_path / "run")}
    time_to_quality.train_attention(contest.recipe, keys)
    curve = time_to_quality._Written(Run(tmp_path / "run"))()
    assert curve.steps[-1][1] == 6 and 2 < curve.evaluations[-1][1] < 9


def test_a_schedule_that_fits_the_seconds(clone, tmp_path):
    """A fast look at the speed, ended early; then so many steps as fit."""
    peer = nanogpt.by_characters(clone, tmp_path / "place", {"train": "abba", "validation": "ab"}, [])
    assert pickle.loads((tmp_path / "place/data" / nanogpt.DATASET / "meta.pkl").read_bytes()) == {
        "vocab_size": 2
    }
    assert np.fromfile(tmp_path / "place/data" / nanogpt.DATASET / "train.bin", np.uint16).tolist() == [
        0,
        1,
        1,
        0,
    ]
    contest = Contest("a text", "text", {}, 50, True, "")
    curve = time_to_quality.train("nanogpt", contest, peer, tmp_path, stop=lambda curve: len(curve.steps) > 2)
    assert [step for _, step in curve.steps] == [0, 250, 500] and curve.steps[-1][0] < 20
    even = Curve(steps=[(10.0, 1), (15.0, 251), (20.0, 501)])
    assert even.steps_in(50) == 1 + int(0.9 * 40 * 50)
    slowed = Curve(steps=[*even.steps, (40.0, 751), (45.0, 1001)])  # an evaluation in between
    assert slowed.steps_a_second() == 50 and Curve().steps_a_second() is None
    with pytest.raises(NewLLMError, match="No speed"):
        Curve(steps=[(1.0, 1)]).steps_in(50)
    assert {"--max_iters=7", "--lr_decay_iters=7"} < set(peer.words(7))
    failing = nanogpt.NanoGPT(peer.place, 1.0, 0.0, ("--fail",))
    with pytest.raises(NewLLMError, match="nanogpt, a text failed: no such config"):
        time_to_quality.train("nanogpt", contest, failing, tmp_path)


def test_installed_sources_have_no_package_on_both_sides(tmp_path):
    for number in range(30):
        package = tmp_path / "site" / f"package{number}"
        (package / "_vendor").mkdir(parents=True)
        (package / "__init__.py").write_text("shared = 1\n")
        (package / "main.py").write_text(f"def f{number}():\n    return {number}\n")
        (package / "_vendor" / "copied.py").write_text("copied = True\n")
    sources = corpus.python_sources(tmp_path / "site", tmp_path / "text")
    assert not set(sources.packages["train"]) & set(sources.packages["validation"])
    assert sum(map(len, sources.packages.values())) == 30
    lines = {
        part: (tmp_path / "text" / f"{part}.jsonl").read_text().splitlines()
        for part in ("train", "validation")
    }
    assert len(lines["validation"]) == len(sources.packages["validation"])  # what they share is trained on
    assert not any("copied" in line for part in lines.values() for line in part)
    assert sources.packages["validation"][0] in sources.in_words()
    with pytest.raises(NewLLMError, match="too few"):
        corpus.python_sources(tmp_path / "text", tmp_path / "none")


def test_everyone_has_the_same_size_and_tokens(tmp_path, monkeypatch):
    """At all sizes the commands are ones that `newllm train` takes."""
    monkeypatch.setattr(
        time_to_quality,
        "python_sources",
        lambda *_: corpus.Sources({"train": ["a", "b"], "validation": []}, {}),
    )
    monkeypatch.setattr(corpus.Sources, "in_words", lambda self: "sources")
    sizes = list(time_to_quality.SECONDS)
    found = time_to_quality.contests(asked("--packages", "--parameters", *sizes), tmp_path)
    assert found[0][0].packages == "a b"
    assert [contest.seconds for contest, _ in found] == [90, 90, 200]
    for contest, _ in found:
        recipes = {model: load_recipe("demo", contest.keys_of(model)) for model in time_to_quality.MODELS[:3]}
        assert len({recipe.batch_size * recipe.max_seq_length for recipe in recipes.values()}) == 1
        assert recipes["new_llm"].carry_state and not recipes["attention"].carry_state
        words = time_to_quality._command("tiny_gpt2", contest, 77, tmp_path / "run")
        assert words[words.index("--max_steps") + 1] == "77" and "--carry_state" not in words
        about = json.loads(time_to_quality._command("attention", contest, 77, tmp_path / "run")[-1])
        assert about["keys"]["max_steps"] == 77
    sizes = nanogpt.sized(124_000_000, 768, 50257)
    assert sizes == {"n_layer": 12, "n_head": 12, "n_embd": 768}  # GPT-2-small
