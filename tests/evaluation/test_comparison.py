"""Two runs side by side: the figures are those of each, the sentence is true, the files are there and safe to
show.
"""

import json

import numpy as np
import pytest

from newllm_lib.errors import UsageError
from newllm_lib.evaluation.compare import compare
from newllm_lib.evaluation.compare.table import as_markdown, as_text, table
from newllm_lib.evaluation.evaluate_run import evaluate_run
from newllm_lib.runs import Run
from tests.helpers.loading import load_run


@pytest.fixture(scope="module")
def pair(make_run, bpe, tools, tmp_path_factory):
    """A New-LLM that learned a little and a TinyGPT2 that learned less, both with a curve."""
    root = tmp_path_factory.mktemp("checkpoints")
    split = tools.pack(bpe, tools.sentences(300, seed=1))
    runs = [
        make_run(root / "new_llm_small", bpe, trained_on=split, names=("best",)),
        make_run(root / "tinygpt2_small", bpe, "tiny_gpt2", names=("best",)),
    ]
    for run, offset in zip(runs, (0.0, 0.3), strict=True):
        rows = [{"step": 10, "epoch": 0.5, "loss": 3.0}]
        rows += [
            {"step": 20 * e, "epoch": e, "eval_bits_per_byte": 3 / (e + 1) + offset} for e in range(1, 6)
        ]
        run.metrics_path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return runs


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEWLLM_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("NEWLLM_DEVICE", "cpu")
        yield


@pytest.fixture(scope="module")
def result(pair, cache):
    return compare.compare(*pair)


def test_the_comparison_of_two_runs(pair, result, cache):
    ours, theirs = result["models"]
    assert (ours["name"], theirs["name"]) == ("new_llm_small", "tinygpt2_small")
    single = evaluate_run(pair[0], baselines=True)
    for key in (
        "bits_per_byte",
        "perplexity",
        "word_perplexity",
        "accuracy",
        "vocab_size",
        "unk_share",
        "tokens",
    ):
        assert ours[key] == single[key]
    assert result["baselines"] == single["baselines"]
    model = load_run(pair[1])[0]
    assert theirs["parameters"] == sum(p.numel() for p in model.parameters())
    expected = 100 * (ours["bits_per_byte"] / theirs["bits_per_byte"] - 1)
    assert result["difference_percent"]["bits_per_byte"] == pytest.approx(expected)
    assert result["verdict"].startswith("New-LLM predicts better than TinyGPT2: ")
    assert f"({expected:+.1f} %)" in result["verdict"]
    assert len(result["prompts"]) == 3 == len(ours["samples"]) == len(theirs["samples"])
    assert theirs["curve"][0] == (1, 1.8)
    for key in (
        "ms_per_batch",
        "tokens_per_second",
        "training_tokens_per_second",
        "decode_tokens_per_second",
    ):
        assert ours[key] > 0 and theirs[key] > 0
    assert json.dumps(result)


def test_the_files_stand_in_the_first_runs_folder(pair, result):
    folder = pair[0].path
    page, picture = folder / "comparison.md", folder / "comparison.png"
    assert [str(page), str(picture)] == result["files"]
    text = page.read_text(encoding="utf-8")
    for part in (
        "bits per byte",
        "unigram",
        "bigram",
        "its vocabulary",
        "its &#60;unk&#62; share",
        result["verdict"],
    ):
        assert part in text
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 20_000
    assert not [p for p in folder.parent.iterdir() if p.is_file()]


def test_the_same_runs_give_the_same_samples(pair, result, tmp_path, cache):
    again = compare.compare(*(r.best for r in pair), output_dir=tmp_path, speed=False)
    assert [m["samples"] for m in again["models"]] == [m["samples"] for m in result["models"]]
    assert (tmp_path / "comparison.md").exists() and "ms_per_batch" not in again["models"][0]
    assert [m["name"] for m in again["models"]] == ["new_llm_small", "tinygpt2_small"]


def figures(kind, bits, **more):
    label = compare._LABELS[kind]
    base = {
        "kind": kind,
        "label": label,
        "name": f"{kind}_x",
        "bits_per_byte": bits,
        "samples": [],
        "curve": [],
        "parameters": 1000,
        "vocab_size": 300,
        "tokens": 50,
        "bytes": 100,
        "words": 20,
        "lower_cased": False,
        "protocol": "standard",
        "unk_share": 0.0,
        "perplexity": 9.0,
        "accuracy": 0.5,
    }
    return base | more


@pytest.mark.parametrize(
    "ours,theirs,words",
    [
        (1.2, 1.5, ["New-LLM predicts better than TinyGPT2", "-20.0 %", "Both are below the bigram table"]),
        (1.6, 1.5, ["Both are below the unigram table (3.0000)"]),
        (1.5, 1.2, ["New-LLM is not below TinyGPT2", "+25.0 %"]),
        (1.5, 1.5, ["New-LLM is not below TinyGPT2; the two predict equally well"]),
        (
            1.5,
            2.5,
            ["New-LLM is below the bigram table (2.0000), TinyGPT2 is not", "Both are below the unigram"],
        ),
        (2.5, 1.5, ["TinyGPT2 is below the bigram table (2.0000), New-LLM is not"]),
        (3.5, 3.2, ["Neither is below the bigram table", "Neither is below the unigram table"]),
    ],
)
def test_the_sentence_is_true_in_either_order(ours, theirs, words):
    pair = [figures("new_llm", ours), figures("tiny_gpt2", theirs)]
    baselines = {"unigram": {"bits_per_byte": 3.0}, "bigram": {"bits_per_byte": 2.0}}
    for models in (pair, pair[::-1]):
        sentence = compare.verdict({"models": models, "baselines": baselines, "split": "test"})
        assert all(w in sentence for w in words), sentence
    assert "test split" in sentence


def test_two_of_a_kind_are_told_apart_by_name():
    pair = [figures("new_llm", 1.6, name="a"), figures("new_llm", 1.5, name="b")]
    assert compare.verdict({"models": pair, "baselines": {}, "split": "test"}).startswith(
        "b predicts better than a"
    )


def test_any_model_of_ours_is_held_against_the_baseline_model():
    def sentence(*models):
        return compare.verdict({"models": list(models), "baselines": {}, "split": "test"})

    ours, other, baseline = figures("phase7", 1.4), figures("new_llm", 1.3), figures("tiny_gpt2", 1.5)
    for pair in ((ours, baseline), (baseline, ours)):
        assert sentence(*pair).startswith("Phase 7 predicts better than TinyGPT2")
    assert sentence(ours, other).startswith("New-LLM predicts better than Phase 7")


def test_figures_that_cannot_be_compared_are_not():
    ours, theirs = (
        figures("new_llm", 1.2),
        figures("tiny_gpt2", 1.5, vocab_size=1000, tokens=30, protocol="seed"),
    )
    difference = compare.differences(ours, theirs)
    assert "perplexity" not in difference and difference["bits_per_byte"] == pytest.approx(-20)
    notes = " ".join(compare._notes(ours, theirs))
    assert "different tokenizers" in notes and "Seed protocol" in notes
    assert "different text" in compare._notes(ours, figures("tiny_gpt2", 1.5, bytes=99))[0]
    assert "more than 2 %" in compare._notes(ours, figures("tiny_gpt2", 1.5, parameters=1030))[0]
    assert compare._notes(ours, figures("tiny_gpt2", 1.5)) == []


def test_differences_have_their_sign_and_say_what_is_better():
    ours = figures("new_llm", 1.2, accuracy=0.6, ms_per_batch=8.0, batch_size=8, length=24)
    theirs = figures("tiny_gpt2", 1.5, ms_per_batch=4.0)
    result = {
        "models": [ours, theirs],
        "baselines": {"unigram": figures("new_llm", 3.0)},
        "prompts": ["a|b"],
        "split": "test",
        "settings": compare.SAMPLING,
        "notes": [],
        "verdict": "x",
    }
    result["difference_percent"] = compare.differences(ours, theirs)
    rows = {r[0]: r[3] for r in table(result)[1]}
    assert rows["bits per byte"] == "-20.0 % better" and rows["accuracy"] == "+20.0 % better"
    assert rows["forward, ms/batch"] == "+100.0 % worse" and rows["parameters"] == "0.0 %"
    ours["samples"], theirs["samples"] = ["one | two\n<b>*x*</b> `y`"], [""]
    page = as_markdown(result)
    assert "<b>" not in page and "one &#124; two<br>&#60;b&#62;&#42;x" in page and "(nothing)" in page
    widths = {
        line.count("|") for line in page.split("## Continuations")[1].splitlines() if line.startswith("|")
    }
    assert widths == {4}
    assert "prompt 1: a|b" in as_text(result)


def test_prompts_are_beginnings_of_documents(bpe, tools):
    split = tools.pack(bpe, ["short", *tools.sentences(9, seed=4)])
    documents = compare._sample_documents(split, 3)
    for number, ids in zip(documents, compare.prompts(split, bpe, documents), strict=True):
        start = split.document_starts[number]
        assert number > 0 and ids == split.ids[start : start + 13].tolist()
    assert compare._sample_documents(tools.pack(bpe, []), 3) == []


def test_a_dialogue_is_prompted_up_to_its_first_answer(bpe, tools):
    ids = [bpe.bos_token_id, *tools.dialogue(bpe, ["Hello?", "Hi.", "Bye."]), bpe.eos_token_id]
    split = tools.pack(bpe, ["x"])
    split.ids, split.document_starts = np.array(ids), np.array([0])
    (prompt,) = compare.prompts(split, bpe, [0])
    assert compare.readable(bpe, prompt) == "user: Hello?\nassistant:"


def test_a_run_that_is_not_there(pair, tmp_path, cache, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="No run"):
        compare.compare(pair[0], "nothing")
    assert compare.validation_curve(Run(tmp_path)) == []
