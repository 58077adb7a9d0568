"""`newllm evaluate`: a run's folder and its data give the figures that one computes by oneself."""

import json
import math
import re

import numpy as np
import pytest
import torch

from newllm_lib.data import load_split, prepare
from newllm_lib.errors import NewLLMError, UsageError
from newllm_lib.evaluation import baselines
from newllm_lib.evaluation.evaluate_run import EvaluationData, evaluate_run
from newllm_lib.recipe import load_recipe
from tests.helpers.loading import load_run
from tests.helpers.texts import read_documents

KEYS = {
    "bits_per_byte",
    "perplexity",
    "word_perplexity",
    "accuracy",
    "vocab_size",
    "unk_share",
    "tokens",
    "bytes",
}


def test_a_run_is_evaluated_with_its_own_tokenizer_and_data(make_run, bpe, tmp_path, cache, capsys):
    run = make_run(tmp_path / "small", bpe)
    result = evaluate_run(run, baselines=True)
    assert result.keys() >= KEYS and json.dumps(result, allow_nan=False)
    text = (make_run.data / "test.txt").read_text(encoding="utf-8")
    assert (result["bytes"], result["words"], result["lost_bytes"]) == (
        len(text.encode()),
        len(text.split()),
        0,
    )
    assert (result["run"], result["split"], result["protocol"]) == ("small", "test", "standard")
    _, tokenizer, recipe = load_run(run)
    train, test = (load_split(recipe, tokenizer, s) for s in ("train", "test"))
    assert result["tokens"] == test.tokens - 1
    assert result["baselines"]["bigram"] == baselines.bigram(train, test, tokenizer)
    assert result["context_effective_rank"] > 1
    said = capsys.readouterr().out
    assert "bits per byte" in said and f"vocabulary {len(bpe)}" in said and "bigram: " in said
    other = evaluate_run(str(run.best), EvaluationData("validation"), batch_size=2, block_length=5)
    assert other["bytes"] != result["bytes"] and "baselines" not in other


def test_another_folder_of_text_keeps_the_runs_own_counts(make_run, bpe, tmp_path, cache):
    run = make_run(tmp_path / "small", bpe)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "test.txt").write_text("Ada likes rain.\n", encoding="utf-8")
    result = evaluate_run(run, EvaluationData(data_dir=tmp_path / "mine"), baselines=True)
    assert result["bytes"] == 16
    _, tokenizer, recipe = load_run(run)
    moved = load_recipe("demo", {"data_dir": str(tmp_path / "mine"), "sized_for": "cpu"})
    expected = baselines.bigram(
        load_split(recipe, tokenizer, "train"), load_split(moved, tokenizer, "test"), tokenizer
    )
    assert result["baselines"]["bigram"] == expected


def test_wrong_requests_are_one_line(make_run, bpe, tmp_path, cache):
    run = make_run(tmp_path / "small", bpe)
    with pytest.raises(UsageError, match="no split 'tests'"):
        EvaluationData("tests")
    run.recipe_path.unlink()
    with pytest.raises(NewLLMError, match="no recipe.yaml"):
        evaluate_run(run.best)


@pytest.mark.parametrize("model", ["new_llm", "tiny_gpt2"])
@pytest.mark.parametrize("protocol", ["standard", "seed"])
def test_wikitext_equals_ones_own_computation(
    protocol, model, make_run, make_model, tools, test_data, tmp_path, cache
):
    """From log-probabilities, tokens, lost bytes and original bytes, on the first part of WikiText-2's test
    split.
    """
    data = tmp_path / "data"
    data.mkdir()
    valid, test = ((test_data / f"wikitext-2.{s}.txt").read_bytes() for s in ("valid", "test"))
    (data / "train.txt").write_bytes(valid[:150_000].rpartition(b"\n")[0])
    (data / "validation.txt").write_bytes(valid[150_000:].partition(b"\n")[2][:50_000].rpartition(b"\n")[0])
    original = test[:30_000].rpartition(b"\n")[0]
    (data / "test.txt").write_bytes(original)
    changes = {"data_dir": str(data), "protocol": protocol, "max_seq_length": 64}
    recipe = load_recipe("demo", {**tools.SIZES, "model": model, **changes})
    recipe.vocab_size = min(recipe.vocab_size, 1000)
    tokenizer = prepare(recipe).tokenizer
    run = make_run(tmp_path / "wikitext", tokenizer, model, names=("best",), **changes)
    result = evaluate_run(run)

    network, tokenizer, _ = load_run(run)
    nats, tokens, unknown, lost = _own_computation(network, tokenizer, data / "test.txt", protocol)
    text = original.decode().lower() if protocol == "seed" else original.decode()
    assert (result["tokens"], result["bytes"], result["lost_bytes"]) == (tokens, len(text.encode()), lost)
    assert result["bits_per_byte"] == pytest.approx(
        (nats / math.log(2) + 8 * lost) / len(text.encode()), rel=1e-5
    )
    assert result["perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-4)
    spelled = nats + 8 * math.log(2) * lost
    assert result["word_perplexity"] == pytest.approx(math.exp(spelled / len(text.split())), rel=1e-3)
    assert result["unk_share"] == pytest.approx(unknown / tokens)
    assert (protocol == "seed") == (result["unk_share"] > 0.2) == result["lower_cased"] == (lost > 0)
    assert result["vocab_size"] == 1000


def _own_computation(network, tokenizer, path, protocol):
    """(nats, predicted tokens, unknown tokens, lost bytes), each document read by itself."""
    vocabulary = set(tokenizer.get_vocab()) - {
        tokenizer.unk_token
    }  # WikiText-2 itself spells rare words <unk>
    size = getattr(network.config, "n_positions", 10**9)
    nats, tokens, unknown, lost = 0.0, 0, 0, 0
    for document in read_documents(path):
        own = tokenizer(document, add_special_tokens=False)["input_ids"]
        if protocol == "seed":  # known words, and single spaces between words, are all that can be given back
            text = document.lower()
            known = sum(len(w.encode()) for w in text.split() if w in vocabulary)
            singles = len(re.findall(r"(?<=\S) (?=\S)", text))
            lost += len(text.encode()) - known - singles
        ids = np.array([tokenizer.bos_token_id, *own, tokenizer.bos_token_id])
        unknown += int((ids == tokenizer.unk_token_id).sum()) if tokenizer.unk_token_id is not None else 0
        tokens += len(ids) - 1
        for left in range(0, len(ids) - 1, size):
            row = torch.from_numpy(ids[left : left + size + 1])[None]
            with torch.no_grad():
                scores = network(input_ids=row[:, :-1]).logits[0].double().log_softmax(-1)
            nats -= float(scores.gather(1, row[0, 1:, None]).sum())
    return nats, tokens, unknown, lost
