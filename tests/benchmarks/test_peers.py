"""The peers of the quality benchmark: of one size with New-LLM, trained on the library's blocks, every token
counted once.
"""

import math

import pytest
import torch

from benchmarks import peers
from benchmarks.peer_loop import bits_per_byte, train_peer
from newllm_lib.data import prepare
from newllm_lib.recipe import load_recipe
from newllm_lib.training.model_config import count_parameters, model_config
from newllm_lib.training.optim.muon import BatchedMuon
from tests.helpers.small_runs import write_text


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.setenv("NEWLLM_CACHE", str(tmp_path / "cache"))
    write_text(tmp_path)
    return load_recipe(
        "demo",
        {
            "sized_for": "cpu",
            "data_dir": str(tmp_path / "text"),
            "vocab_size": 300,
            "max_seq_length": 16,
            "batch_size": 8,
            "learning_rate": 1e-2,
            "warmup_steps": 2,
            "epochs": 3,
        },
    )


@pytest.fixture
def data(recipe):
    return prepare(recipe)


def tiny(name: str):
    torch.manual_seed(0)
    return peers.Attention(300, 16, 1, 2, 16, 0.0) if name == "attention" else peers.Lstm(300, 16, 2, 0.0)


@pytest.mark.parametrize("size", ["4M", "10M", "25M"])
@pytest.mark.parametrize("name", ["attention", "attention_helped", "lstm"])
def test_peers_have_the_same_number_of_parameters(name, size):
    with torch.device("meta"):
        model = peers.build_peer(name, size, 4096, 0.1)
    target = peers.SIZES[size][0]
    count = sum(p.numel() for p in model.parameters())
    assert abs(count / target - 1) < 0.02
    assert size != "4M" or count <= 4_250_000


@pytest.mark.parametrize("size", ["4M", "10M", "25M"])
@pytest.mark.parametrize("name", ["new_llm", "tiny_gpt2", "seed"])
def test_the_librarys_models_have_it_too(name, size):
    recipe = peers.sized_recipe(name, size, 4096)
    count = count_parameters(model_config(recipe, 4096))
    assert abs(count / peers.SIZES[size][0] - 1) < 0.02
    assert size != "4M" or count <= 4_250_000


@pytest.mark.parametrize("helped", [False, True])
def test_attention_sees_no_later_token_and_learns(helped):
    torch.manual_seed(0)
    model, ids = peers.Attention(300, 16, 2, 2, 16, 0.0, helped=helped), torch.randint(1, 300, (4, 24))
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


@pytest.mark.parametrize("name", ["attention", "lstm"])
def test_bits_per_byte_do_not_depend_on_how_the_text_is_cut(name, data):
    model = tiny(name)
    found = [bits_per_byte(model, data.test, window) for window in (8, 13, 64)]
    if name == "attention":  # sees more with a longer window: only untrained models are nearly indifferent
        assert max(found) - min(found) < 0.05
    else:
        assert max(found) - min(found) < 1e-5
    guess = math.log2(300) * (len(data.test.ids) - 1) / data.test.bytes
    assert abs(found[0] / guess - 1) < 0.1  # untrained: as good as guessing


@pytest.mark.parametrize("carries", [False, True])
def test_every_token_is_counted_once(carries, data):
    class Counting(torch.nn.Module):
        """Loss 1 for each counted label, and remembers how many."""

        def __init__(self):
            super().__init__()
            self.weight, self.seen, self.carries = torch.nn.Parameter(torch.zeros(1)), 0, carries

        def initial_state(self, batch):
            return torch.zeros(batch)

        def step(self, ids, labels, state):
            self.seen += int((labels >= 0).sum())
            return torch.ones(()), state

    for window in (8, 31, 10**6):
        model = Counting()
        bits = bits_per_byte(model, data.validation, window)
        assert model.seen == len(data.validation.ids) - 1
        assert bits == pytest.approx(model.seen / math.log(2) / data.validation.bytes)


@pytest.mark.parametrize(("name", "carry"), [("attention", False), ("lstm", True)])
def test_training_learns_and_repeats_itself(name, carry, recipe):
    recipe.carry_state = carry
    data, found = prepare(recipe), []
    for _ in range(2):
        model = tiny(name)
        about = train_peer(model, recipe, data, "cpu")
        found.append(bits_per_byte(model, data.validation, 16))
    assert found[0] == found[1] < 0.8 * bits_per_byte(tiny(name), data.validation, 16)
    assert about["steps"] > 10 and about["parameters"] == sum(p.numel() for p in model.parameters())
    recipe.max_steps = 4
    assert train_peer(tiny(name), recipe, data, "cpu")["steps"] == 4


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
