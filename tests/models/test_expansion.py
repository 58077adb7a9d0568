"""A larger context vector: the same function at first, new channels that learn. Time scales from one to
thousands of tokens.
"""

import math

import pytest
import torch

from newllm_lib.errors import UsageError
from newllm_lib.models.expansion import expand_context
from newllm_lib.models.initialization import TIME_SCALE_GROUPS, multi_scale
from newllm_lib.recipe import load_recipe
from newllm_lib.training.model_config import build_model


def model_of(**changes):
    torch.manual_seed(1)
    sizes = {
        "hidden_size": 24,
        "context_dim": 16,
        "mlp_size": 32,
        "num_layers": 2,
        "dropout": 0.0,
        "sized_for": "cpu",
    }
    model = build_model(load_recipe("demo", {**sizes, **changes}), 300)
    model.config.bos_token_id = 0
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p), alpha=0.3)
    return model.eval()


@pytest.mark.parametrize("size", [17, 32, 40])
def test_the_function_stays_to_rounding(size):
    model = model_of().double()
    larger = expand_context(model, size)
    ids = torch.randint(0, 300, (3, 50))
    before, after = model(input_ids=ids), larger(input_ids=ids)
    torch.testing.assert_close(after.logits, before.logits, rtol=1e-12, atol=1e-12)
    assert larger.config.context_dim == size and larger.model.state_size == model.model.state_size + size - 16
    one, other = (
        m(input_ids=ids[:, :1], state=o.state).logits for m, o in ((model, before), (larger, after))
    )
    torch.testing.assert_close(
        one, other, rtol=1e-6, atol=1e-6
    )  # also from the carried state, which is float32


def test_it_survives_saving_and_the_new_channels_learn(tmp_path):
    larger = expand_context(model_of(), 32)
    larger.save_pretrained(tmp_path)
    again = type(larger).from_pretrained(tmp_path)
    ids = torch.randint(1, 300, (4, 40))
    torch.testing.assert_close(again.eval()(input_ids=ids).logits, larger(input_ids=ids).logits)
    optimizer = torch.optim.AdamW(again.parameters(), lr=1e-2)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = again.train()(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    for layer in again.model.layers:
        assert (
            layer.context.project.weight[16:32].abs().min(1).values.max() > 0
        )  # what the new channels write


def test_what_cannot_grow_is_refused():
    with pytest.raises(UsageError, match="16 channels"):
        expand_context(model_of(), 16)
    with pytest.raises(UsageError, match="parallel"):
        expand_context(model_of(recurrence="sequential"), 32)


def test_multi_scale_channels_remember_from_one_to_thousands_of_tokens():
    bias, loudness = multi_scale(256)
    scales = -1 / torch.log(torch.sigmoid(bias.double()))
    assert scales[0] == pytest.approx(1, rel=1e-3) and scales[-1] == pytest.approx(4096, rel=1e-2)
    for number, (low, high) in enumerate(TIME_SCALE_GROUPS):
        group = scales[64 * number : 64 * (number + 1)]
        assert low * 0.99 <= group.min() and group.max() <= high * 1.01
    noise, keep = torch.randn(200_000, 1, dtype=torch.double), torch.sigmoid(bias.double())[::64]
    c, held = torch.zeros(4, dtype=torch.double), []
    for x in noise[:60_000]:
        c = keep * c + (1 - keep) * x
        held.append(c)
    spread = torch.stack(held[20_000:]).std(0) * loudness[::64].double()
    assert spread.max() / spread.min() < 1.6  # all are read equally loud


def test_a_multi_scale_context_still_knows_what_was_said_a_thousand_tokens_ago():
    known = {}
    for scales in ("even", "multi"):
        torch.manual_seed(0)
        sizes = {
            "hidden_size": 32,
            "context_dim": 32,
            "mlp_size": 32,
            "num_layers": 1,
            "dropout": 0.0,
            "sized_for": "cpu",
        }
        model = build_model(load_recipe("demo", {**sizes, "time_scales": scales}), 300).eval()
        rest = torch.randint(1, 300, (1, 1000))
        logits = [
            model(input_ids=torch.cat([torch.full((1, 50), first), rest], 1)).logits[0, -1]
            for first in (5, 9)
        ]
        known[scales] = float((logits[0] - logits[1]).norm() / logits[0].norm())
    assert known["multi"] > 20 * known["even"] and math.isfinite(known["multi"])
