"""The fast training loop and its figures: every token once, the state carried, peers of one size."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from newllm_lib.benchmarks import peers
from newllm_lib.benchmarks.corpus import Corpus, encode
from newllm_lib.benchmarks.fit import Settings, Training, _Batches, _factor, bits_per_byte
from newllm_lib.training.muon import BatchedMuon


@pytest.fixture(scope="module")
def corpus():
    texts = [f"A: {word} is {word}.\nB: is it {word}?" for word in ("red", "blue", "old", "new", "tall", "small") * 6]
    return encode("made", {"train": texts, "validation": texts[:5], "test": texts[3:9]}, 300)


def tiny(name):
    torch.manual_seed(0)
    if name == "attention":
        return peers.Attention(300, 16, 1, 2, 16, 0.0)
    if name == "lstm":
        return peers.Lstm(300, 16, 2, 0.0)
    from newllm_lib.recipe import load_recipe
    from newllm_lib.training.model_config import build_model

    sizes = {"hidden_size": 16, "context_dim": 16, "mlp_size": 16, "num_layers": 1, "dropout": 0.0, "sized_for": "cpu"}
    model = build_model(load_recipe("demo", sizes), 300)
    model.config.bos_token_id = 0
    return peers.Ours(model)


@pytest.mark.parametrize("size", ["4M", "10M", "25M"])
@pytest.mark.parametrize("name", peers.NAMES)
def test_peers_have_the_same_number_of_parameters(name, size):
    with torch.device("meta"):
        model = peers.build(name, size, 4096, 128, 0.1)
    count = sum(p.numel() for p in model.parameters())
    assert abs(count / peers.SIZES[size] - 1) < 0.02
    assert size != "4M" or count <= 4_250_000


@pytest.mark.parametrize("changes", [{}, {"helped": True}], ids=str)
def test_attention_sees_no_later_token_and_learns(changes):
    torch.manual_seed(0)
    model, ids = peers.Attention(300, 16, 2, 2, 16, 0.0, **changes), torch.randint(1, 300, (4, 24))
    changed = torch.cat([ids[:, :-1], (ids[:, -1:] + 1) % 300], 1)
    torch.testing.assert_close(model(ids)[:, :-1], model(changed)[:, :-1])
    losses, optimizer = [], torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(8):
        loss, _ = model.step(ids[:, :-1], ids[:, 1:].contiguous(), None)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in model.parameters())
        optimizer.step()
    assert losses[-1] < losses[0] - 0.2


@pytest.mark.parametrize("name", ["attention", "lstm", "new_llm"])
def test_bits_per_byte_do_not_depend_on_how_the_text_is_cut(name, corpus):
    model = tiny(name)
    found = [bits_per_byte(model, corpus, "test", window) for window in (8, 13, 64)]
    if name == "attention":  # sees more with a longer window: only untrained models are nearly indifferent
        assert max(found) - min(found) < 0.05
    else:
        assert max(found) - min(found) < 1e-5
    guess = math.log2(300) * (len(corpus.ids["test"]) - 1) / corpus.bytes["test"]
    assert abs(found[0] / guess - 1) < 0.1  # untrained: as good as guessing


def test_windows_count_every_token_once(corpus):
    class Counting(torch.nn.Module):
        """Loss 1 for each counted label, and remembers them."""

        def __init__(self):
            super().__init__()
            self.weight, self.seen = torch.nn.Parameter(torch.zeros(1)), 0

        def step(self, ids, labels, state):
            self.seen += int((labels >= 0).sum())
            return torch.ones(()), state

    for window in (8, 31, 10**6):
        model = Counting()
        bits = bits_per_byte(model, corpus, "validation", window)
        assert model.seen == len(corpus.ids["validation"]) - 1
        assert bits == pytest.approx(model.seen / math.log(2) / corpus.bytes["validation"])


def test_documents_are_read_from_end_to_end(corpus):
    """The loss of documents side by side in lanes is that of each read alone."""
    model = tiny("new_llm").eval()
    ids = torch.from_numpy(corpus.ids["test"].astype(np.int64))
    nats = 0.0
    for document in ids.tensor_split(torch.nonzero(ids == 0).flatten()[1:]):
        inside = torch.cat([document, document.new_zeros(1)])[None]  # its end is the next one's start
        nats += float(model.step(inside[:, :-1], inside[:, 1:], None)[0].detach()) * len(document)
    last = torch.cat([document[:-1], document.new_zeros(0)])  # the text's own end is not predicted
    without = float(model.step(inside[:, :-1], inside[:, 1:], None)[0].detach()) * len(document)
    without -= float(model.step(inside[:, : len(last)], inside[:, 1 : len(last) + 1], None)[0].detach()) * len(last)
    expected = (nats - without) / math.log(2) / corpus.bytes["test"]
    assert bits_per_byte(model, corpus, "test", 16) == pytest.approx(expected, rel=1e-5)


def trained(name, corpus, settings, device="cpu"):
    torch.manual_seed(settings.seed)
    training = Training(tiny(name), corpus, settings, device)
    training.begin()
    while training.advance():
        pass
    return training.result()


@pytest.mark.parametrize("name", ["attention", "lstm", "new_llm"])
def test_training_learns_and_repeats_itself(name, corpus):
    settings = Settings(rows=4, time=16, epochs=3, learning_rate=1e-2, warmup=2)
    first, again = trained(name, corpus, settings), trained(name, corpus, settings)
    assert first["validation"] < 0.8 * bits_per_byte(tiny(name), corpus, "validation", 16)
    assert first["validation"] == again["validation"] and first["steps"] == again["steps"] > 10
    both = trained(name, corpus, replace(settings, train_on=("train", "validation")))
    assert both["steps"] > first["steps"]


@pytest.mark.parametrize("in_order", [True, False])
def test_an_epoch_gives_every_block_once(in_order, corpus):
    ids, settings = corpus.ids["train"], Settings(rows=3, time=8, epochs=2)
    per_epoch = (len(ids) - 1) // 24
    batches = _Batches(ids, settings, per_epoch, in_order, "cpu")
    orders = []
    for epoch in range(2):
        rows, labels = zip(*(batches.take(torch.tensor([epoch]), torch.tensor([b])) for b in range(per_epoch)), strict=True)
        rows, labels = torch.stack(rows), torch.stack(labels)
        assert torch.equal(rows[..., 1:], labels[..., :-1])
        if in_order:  # a row goes on where it stopped
            assert torch.equal(rows[1:, :, 0], labels[:-1, :, -1])
        there = torch.from_numpy(ids.astype(np.int64))
        counts = torch.bincount(rows.flatten(), minlength=300) - torch.bincount(there, minlength=300)
        assert counts.max() <= 0 and -counts.sum() == len(ids) - rows.numel() < 24 + 8
        orders.append(rows)
    assert not torch.equal(*orders)


def test_rates_warm_up_stay_and_fall_to_zero():
    settings = Settings(warmup=10, decay=0.5)
    rates = [_factor(step, 100, settings) for step in range(100)]
    assert rates[0] == 0.1 and rates[20] == rates[49] == 1.0 and rates[75] == 0.5 and rates[99] == pytest.approx(0.02)


def test_muon_with_a_rate_on_the_device_is_torchs_muon():
    torch.manual_seed(0)
    shapes = [(6, 9), (6, 9), (9, 4), (5, 5)]
    ours = [torch.randn(shape).requires_grad_() for shape in shapes]
    theirs = [p.detach().clone().requires_grad_() for p in ours]
    one = BatchedMuon(ours, lr=torch.tensor(0.02), weight_decay=0.1, adjust_lr_fn="original")
    other = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, adjust_lr_fn="original")
    for _ in range(3):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        one.step()
        other.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_a_corpus_comes_back_as_it_was_saved(corpus, tmp_path):
    corpus.save(tmp_path)
    loaded = Corpus.load("made", tmp_path)
    assert loaded.bytes == corpus.bytes and all(np.array_equal(loaded.ids[p], corpus.ids[p]) for p in corpus.ids)
    assert (corpus.ids["validation"] == 0).sum() == 5


@pytest.mark.gpu
def test_captured_steps_side_by_side_train_as_eager_ones(corpus):
    settings = Settings(rows=8, time=16, epochs=4, learning_rate=1e-2, warmup=2)
    here = trained("new_llm", corpus, settings)
    pair = [Training(tiny("new_llm"), corpus, settings, "cuda") for _ in range(2)]
    for training in pair:
        training.begin()
    while any([training.advance() for training in pair]):
        pass
    for training in pair:
        assert abs(here["validation"] - training.result()["validation"]) < 0.05


def test_the_longest_document_is_also_left_out():
    texts = [f"A: {word} is {word}.\nB: is it {word}?" for word in ("red", "blue", "old", "new")]
    test = [*texts, "A: " + "the new old blue red " * 20]
    whole, rest = (encode("made", {"train": test, "validation": texts, "test": some}, 300) for some in (test, texts))
    torch.manual_seed(0)
    settings = Settings(rows=2, time=16, train_on=("train", "validation"))
    training = Training(tiny("new_llm"), whole, settings, "cpu", limit_steps=3)
    training.begin()
    training.advance()
    found = training.result()
    expected = bits_per_byte(training.model, rest, "test", 16)
    assert found["test_less_longest"] == pytest.approx(expected, rel=0.03) != pytest.approx(found["test"], rel=0.03)
