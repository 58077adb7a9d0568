"""A context vector that says nothing about the text is seen and named."""

import math

import pytest
import torch

from newllm_lib.evaluation import evaluate, health
from newllm_lib.evaluation.health import vector_health


def test_figures_of_known_vectors():
    torch.manual_seed(0)
    vectors = torch.randn(4000, 2, 8)
    vectors[:, 1, 4:] = 0.0  # half of layer 1 is dead
    health = vector_health(vectors)
    assert health["context_effective_rank"] == pytest.approx(4, abs=0.1)  # the worse layer
    assert health["context_dead_share"] == 0.5
    assert health["context_variance"] == pytest.approx(0.5, abs=0.05)
    assert health["context_spread"] == pytest.approx(1, abs=0.01)
    assert health["context_warning"] is None


def test_a_shift_lowers_the_spread_but_not_the_rank():
    torch.manual_seed(0)
    near = vector_health(torch.randn(1000, 1, 8) + 3)
    assert near["context_spread"] == pytest.approx(0.1, abs=0.02)
    assert near["context_effective_rank"] > 7.9 and near["context_warning"] is None


@pytest.mark.parametrize(
    "collapsed,words",
    [
        (torch.ones(100, 1, 16), "0.00%"),
        (torch.zeros(100, 1, 16), "0.00%"),
        (torch.linspace(-1, 1, 100).reshape(100, 1, 1) * torch.ones(16), "1.0 of 16 dimensions"),
        (torch.randn(100, 1, 16, generator=torch.Generator().manual_seed(0)) * (torch.arange(16) < 6), "62%"),
    ],
)
def test_collapse_is_named(collapsed, words):
    warning = vector_health(collapsed)["context_warning"]
    assert warning.startswith("The context vector has collapsed") and words in warning


def test_too_few_samples_are_no_measurement():
    health = vector_health(torch.ones(1, 2, 4))
    assert math.isnan(health["context_variance"]) and health["context_warning"] is None


@pytest.mark.parametrize("recurrence", ["parallel", "sequential"])
def test_models_are_measured_on_the_context_alone(recurrence, bpe, make_model, tools):
    split = tools.pack(bpe, tools.sentences(20))
    model = make_model(bpe, recurrence=recurrence)
    alive = evaluate(model, split, bpe)
    assert alive["context_dim"] == model.config.context_dim
    assert alive["context_warning"] is None and alive["context_effective_rank"] > 3
    with torch.no_grad():  # a gate that always forgets everything and an input that never writes
        for name, parameter in model.named_parameters():
            if "project" in name or "gates" in name:
                parameter.zero_()
    dead = evaluate(model, split, bpe)
    assert "has collapsed" in dead["context_warning"]


def test_a_split_shorter_than_the_sample_is_enough(bpe, make_model, tools):
    split = tools.pack(bpe, ["Ada likes tea."])
    assert evaluate(make_model(bpe), split, bpe)["context_variance"] > 0


def test_it_is_found_in_one_thread_and_leaves_the_threads_as_they_were(bpe, make_model, tools, monkeypatch):
    before, seen = torch.get_num_threads(), []
    torch.set_num_threads(2)
    try:
        monkeypatch.setattr(
            health, "vector_health", lambda vectors: seen.append(torch.get_num_threads()) or {}
        )
        evaluate(make_model(bpe), tools.pack(bpe, tools.sentences(6)), bpe)
        assert seen == [1] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
