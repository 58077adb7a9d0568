"""Log-probabilities of pairs are exact whatever the batch; intervals hold; answers that are empty or repeat
are seen.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peft import get_peft_model

from newllm_lib.data.preferences import Pair, generate
from newllm_lib.data.records import Message
from newllm_lib.evaluation import preferences as measured
from newllm_lib.evaluation.answers import collapsed, health, is_empty, kl_from_base, repeats, some_pairs
from newllm_lib.evaluation.preferences import clearly_better, interval, pair_log_probs, preference_metrics
from newllm_lib.recipe import load_recipe
from newllm_lib.training.model_config import build_model

SIZES = {
    "sized_for": "cpu",
    "hidden_size": 16,
    "context_dim": 16,
    "mlp_size": 24,
    "num_layers": 2,
    "num_heads": 2,
}


@pytest.fixture(params=["new_llm", "tiny_gpt2"])
def model(request):
    torch.manual_seed(0)
    return build_model(
        load_recipe("demo", {**SIZES, "model": request.param, "max_seq_length": 24}), 300
    ).eval()


def rows(count=7):
    random = np.random.default_rng(0)

    def ids():
        return random.integers(10, 300, random.integers(1, 9)).tolist()

    return [{"prompt_ids": ids(), "chosen_ids": ids(), "rejected_ids": ids()} for _ in range(count)]


def one_by_one(model, prompt, answer):
    """log p(answer | prompt) without padding, from the logits."""
    ids = torch.tensor([prompt + answer])
    with torch.no_grad():
        scores = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.double().log_softmax(-1)[0]
    return sum(float(scores[len(prompt) - 1 + i, token]) for i, token in enumerate(answer))


def capped():
    """A model that does something after its head: log-probabilities from the head's logits would be wrong."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "head_dim": 8,
    }
    ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    config = Gemma2Config(vocab_size=300, num_key_value_heads=1, final_logit_softcapping=0.3, **sizes, **ends)
    model = Gemma2ForCausalLM(config).eval()
    torch.nn.init.normal_(model.lm_head.weight, std=0.5)
    return model


@pytest.mark.parametrize("at_once", [1, 10**9])
def test_log_probabilities_are_those_of_each_answer_alone(model, at_once, monkeypatch):
    monkeypatch.setattr(measured, "_LOGITS", at_once)
    monkeypatch.setattr(measured, "_TOKENS", at_once)
    assert_exact(model)
    assert measured._body_and_head(model)[1] is not None  # only the answers' logits were made


def test_what_comes_after_the_head_counts():
    model = capped()
    assert measured._body_and_head(model) == (model, None)
    assert_exact(model)


def assert_exact(model):
    found = pair_log_probs(model, rows(), pad_id=1)
    assert found.shape == (7, 2)
    for row, (chosen, rejected) in zip(rows(), found.tolist(), strict=True):
        assert chosen == pytest.approx(one_by_one(model, row["prompt_ids"], row["chosen_ids"]), abs=1e-4)
        assert rejected == pytest.approx(one_by_one(model, row["prompt_ids"], row["rejected_ids"]), abs=1e-4)


def pairs(*kinds, group=""):
    return [
        Pair((Message("user", f"q{i}"),), "a", "b", kind, group or str(i)) for i, kind in enumerate(kinds)
    ]


def test_metrics_by_hand():
    log_probs = torch.tensor([[-1.0, -3.0], [-2.0, -1.0], [-1.0, -1.0]], dtype=torch.float64)
    reference = torch.tensor([[-2.0, -2.0], [-2.0, -2.0], [-1.0, -1.0]], dtype=torch.float64)
    found = preference_metrics(log_probs, reference, pairs("x", "y", "y"), beta=0.5)
    assert found["accuracy"] == pytest.approx(0.5) and found["margin"] == pytest.approx(1 / 3)
    assert found["reward_accuracy"] == pytest.approx(0.5) and found["reward_margin"] == pytest.approx(
        0.5 * 1 / 3
    )
    margins = 0.5 * np.array([2.0, -1.0, 0.0])
    assert found["loss"] == pytest.approx(np.log1p(np.exp(-margins)).mean())
    assert found["kinds"]["y"]["accuracy"] == 0.25 and found["kinds"]["x"]["pairs"] == 1


def test_before_training_the_loss_is_log_two():
    log_probs = torch.randn(9, 2, dtype=torch.float64)
    found = preference_metrics(log_probs, log_probs, pairs(*"abcabcabc"), beta=0.1)
    assert (
        found["loss"] == pytest.approx(np.log(2))
        and found["reward_margin"] == 0
        and found["reward_accuracy"] == 0.5
    )


def test_the_interval_covers_the_truth_about_nineteen_times_in_twenty():
    random, hits = np.random.default_rng(1), 0
    for _ in range(200):
        low, high = interval(random.normal(0.3, 1, 60), [str(i) for i in range(60)])
        hits += low <= 0.3 <= high
    assert 0.88 <= hits / 200 <= 0.99


def test_pairs_about_one_thing_count_as_little_more_than_one():
    values = np.repeat(np.random.default_rng(0).normal(size=10), 20)
    alone = interval(values, [str(i) for i in range(200)])
    together = interval(values, [str(i // 20) for i in range(200)])
    assert together[1] - together[0] > 3 * (alone[1] - alone[0])


def test_clearly_better_means_intervals_apart_in_both():
    before = {"accuracy_high": 0.5, "margin_high": 1.0}
    assert clearly_better(before, {"accuracy_low": 0.6, "margin_low": 1.5})
    assert not clearly_better(before, {"accuracy_low": 0.6, "margin_low": 0.5})
    assert not clearly_better(before, {"accuracy_low": 0.4, "margin_low": 1.5})


@pytest.mark.parametrize("answer", ["", " \n", "。。、", "…!"])
def test_nothing_said_is_empty(answer):
    assert is_empty(answer) and not repeats(answer)


@pytest.mark.parametrize(
    "answer", ["が" * 15, "the cat the cat the cat the cat the cat", "APIは、APIは、APIは、APIは、API"]
)
def test_going_round_in_circles_is_seen(answer):
    assert repeats(answer) and not is_empty(answer)


def test_good_answers_are_neither():
    for pair in generate(200):
        assert not is_empty(pair.chosen) and not repeats(pair.chosen)


def test_a_collapse_is_measured_against_before():
    fine, ill = health(["はい。"] * 10), health([""] * 8 + ["はい。"] * 2)
    assert ill["empty"] == 0.8 and fine["length"] == 3
    assert "80 % of its answers are empty (before training 0 %)" in collapsed(ill, fine)
    assert collapsed(ill, ill) is None and collapsed(fine, fine) is None  # the base was no better
    assert "repeating" in collapsed(health(["が" * 30] * 5), fine)


def test_a_prompt_longer_than_the_window_is_cut_before_the_distance_is_measured():
    from newllm_lib.data.tokenizer import train_bpe, wrap
    from newllm_lib.models.lora import lora_config

    tokenizer = wrap(train_bpe(iter([["問いと答え"]]), 300))
    model = build_model(
        load_recipe("demo", {**SIZES, "model": "tiny_gpt2", "max_seq_length": 24}), len(tokenizer), tokenizer
    )
    adapted = get_peft_model(model, lora_config(model, 2, 4.0, 0.0)).eval()
    long = Pair((Message("user", "問いと答え" * 9),), "a", "b")
    found = kl_from_base(adapted, tokenizer, [long, *pairs("x")], 12)
    assert found["kl"] == pytest.approx(0, abs=1e-4) and 0 <= found["kl_low"] <= found["kl_high"] < 1e-3


def test_watched_prompts_are_different_and_spread():
    found = some_pairs(generate(100), 12)
    assert len({pair.prompt for pair in found}) == 12 and some_pairs(generate(5), 12) == generate(5)
