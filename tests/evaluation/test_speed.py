"""Times and memory are measured, and the measured model is left as it was."""

import pytest
import torch

from newllm_lib.evaluation.memory import peak_memory
from newllm_lib.evaluation.speed import measure_speed


@pytest.mark.parametrize("kind", ["new_llm", "tiny_gpt2"])
def test_every_figure_is_there_and_consistent(kind, bpe, make_model):
    model = make_model(bpe, kind, dropout=0.1)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.random.get_rng_state()
    speed = measure_speed(model, batch_size=2, length=40, repeats=2, decode_tokens=5)
    assert speed["length"] == (24 if kind == "tiny_gpt2" else 40)
    tokens = 2 * speed["length"]
    for ms, rate in (
        ("ms_per_batch", "tokens_per_second"),
        ("training_ms_per_batch", "training_tokens_per_second"),
    ):
        assert speed[rate] == pytest.approx(1000 * tokens / speed[ms])
    assert speed["decode_tokens_per_second"] > 0
    weights = sum(p.nbytes for p in model.parameters()) / 2**20
    logits = 4 * tokens * len(bpe) / 2**20
    assert weights + logits < speed["peak_memory_mib"] < 10 * (weights + logits)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters()) and not model.training
    assert torch.equal(state, torch.random.get_rng_state())


def test_memory_of_one_text_grows_with_attention_only(bpe, make_model):
    sizes = {
        kind: [
            measure_speed(model, length=n, repeats=1, decode_tokens=2, training=False)
            for model in [make_model(bpe, kind, max_seq_length=64)]
            for n in (8, 32)
        ]
        for kind in ("new_llm", "tiny_gpt2")
    }
    small, large = ([s["decode_memory_bytes"] for s in sizes[k]] for k in ("new_llm", "tiny_gpt2"))
    assert small[0] == small[1] > 0
    assert large[1] == 4 * large[0]
    assert sizes["new_llm"][0]["training_ms_per_batch"] is None


def test_peak_memory_counts_what_lives_at_once():
    weight, unit = torch.ones(2**18, requires_grad=True), 2**20

    def forward():
        with torch.no_grad():
            weight.exp().exp().exp()

    def forward_backward():
        torch.autograd.grad(weight.exp().exp().exp().sum(), [weight])

    def in_place_and_views():
        x = torch.ones(2**18)
        x.view(512, 512).add_(1).t().mul_(2)

    cpu = torch.device("cpu")
    assert peak_memory(forward, cpu) == 2 * unit
    assert 4 * unit <= peak_memory(forward_backward, cpu) < 4.1 * unit  # three saved, one gradient
    assert peak_memory(in_place_and_views, cpu) == unit
    assert peak_memory(lambda: None, cpu) == 0
