"""The tables equal a dictionary version written from the formulas, however the stream is cut into pieces."""

import math
from collections import Counter

import numpy as np
import pytest

from newllm_lib.evaluation import baselines


class ByDictionary:
    """P(w) and P(w | h) from the formulas of `baselines`, one token at a time."""

    def __init__(self, train, vocabulary):
        counted = [i for i in range(1, len(train.ids)) if train.loss_mask is None or train.loss_mask[i]]
        self.single = Counter(int(train.ids[i]) for i in counted)
        self.pair = Counter((int(train.ids[i - 1]), int(train.ids[i])) for i in counted)
        self.vocabulary = vocabulary

    def unigram(self, w):
        n, t = sum(self.single.values()), len(self.single)
        return (self.single[w] + t / self.vocabulary) / (n + t) if n else 1 / self.vocabulary

    def bigram(self, h, w):
        followers = {b: c for (a, b), c in self.pair.items() if a == h}
        if not followers:
            return self.unigram(w)
        c, t = sum(followers.values()), len(followers)
        return (followers.get(w, 0) + t * self.unigram(w)) / (c + t)

    def figures(self, split, name):
        nll = right = tokens = 0
        for i in range(1, len(split.ids)):
            if split.loss_mask is not None and not split.loss_mask[i]:
                continue
            h, w = int(split.ids[i - 1]), int(split.ids[i])
            p = [self.unigram(v) if name == "unigram" else self.bigram(h, v) for v in range(self.vocabulary)]
            assert sum(p) == pytest.approx(1)
            nll, right, tokens = nll - math.log(p[w]), right + (int(np.argmax(p)) == w), tokens + 1
        return nll, right, tokens


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("chunk,pairs", [(2_000_000, 16_000_000), (7, 16_000_000), (50, 10), (1, 1)])
@pytest.mark.parametrize("name", ["unigram", "bigram"])
def test_tables_equal_the_dictionary_version(name, chunk, pairs, masked, words, tools, monkeypatch):
    monkeypatch.setattr(baselines, "_CHUNK", chunk)
    monkeypatch.setattr(baselines, "_PAIRS", pairs)
    mask = (lambda n: np.arange(n) % 4 != 1) if masked else None
    train, split = (
        tools.pack(words, tools.sentences(n, seed=s), mask, lost_bytes=5) for n, s in ((6, 1), (5, 2))
    )
    split.ids[3] = 1  # a token, and so a context, that training never saw
    result = getattr(baselines, name)(train, split, words)
    nll, right, tokens = ByDictionary(train, len(words)).figures(split, name)
    assert (result["tokens"], result["accuracy"]) == (tokens, pytest.approx(right / tokens))
    assert result["loss"] == pytest.approx(nll / tokens, rel=1e-9)
    assert result["bits_per_byte"] == pytest.approx((nll / math.log(2) + 8 * 5) / split.bytes, rel=1e-9)


def test_keys_are_those_of_a_models_figures(words, make_model, tools):
    from newllm_lib.evaluation.metrics import evaluate

    split = tools.pack(words, tools.sentences(4))
    model = evaluate(make_model(words), split, words, health=False)
    for table in (baselines.unigram, baselines.bigram):
        assert table(split, split, words).keys() == model.keys()
        assert table(split, split, words)["unk_share"] == pytest.approx(model["unk_share"])


def test_an_empty_training_split_gives_the_uniform_distribution(words, tools):
    train, split = tools.pack(words, []), tools.pack(words, tools.sentences(3))
    for table in (baselines.unigram, baselines.bigram):
        assert table(train, split, words)["loss"] == pytest.approx(math.log(len(words)))


def test_a_bigram_beats_a_unigram_on_text(bpe, tools):
    train, split = tools.pack(bpe, tools.sentences(200, seed=1)), tools.pack(bpe, tools.sentences(40, seed=2))
    assert baselines.bigram(train, split, bpe)["loss"] < 0.7 * baselines.unigram(train, split, bpe)["loss"]
