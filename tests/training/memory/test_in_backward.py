"""Steps inside the backward pass: no gradient is left, the norm is the true one, and clipping clips."""

import copy

import pytest
import torch
from torch import nn

from newllm_lib.recipe import load_recipe
from newllm_lib.training.memory.blocks import checkpoint_blocks
from newllm_lib.training.optim import in_backward
from newllm_lib.training.optim.build import build_optimizer
from newllm_lib.training.optim.in_backward import OptimizerInBackward
from tests.helpers.small_models import model

IDS = torch.randint(0, 60, (6, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=["at once", "at the end"], autouse=True)
def when_small_parameters_step(request, monkeypatch):
    """All parameters here are small: they are stepped in the backward pass like large ones, or wait for its
    end.
    """
    if request.param == "at once":
        monkeypatch.setattr(in_backward, "SMALL", 0)


def build(optimizer="adafactor", max_norm=0.0, sequences=None, source=None, scaler=None, **changes):
    m = copy.deepcopy(source) if source is not None else model("new_llm")
    recipe = load_recipe(
        "demo", {"optimizer": optimizer, "optimizer_in_backward": True, "sized_for": "cpu", **changes}
    )
    passes = checkpoint_blocks(m, sequences)
    return m, OptimizerInBackward(m, build_optimizer(m, recipe), max_norm, passes, scaler=scaler)


def backward(m, scaler=None):
    loss = m(IDS, labels=IDS, use_cache=False).loss
    (loss if scaler is None else scaler.scale(loss)).backward()
    return loss


def loss_scaling(init_scale):
    scaler = torch.amp.GradScaler("cpu", init_scale=init_scale, growth_interval=2)
    scaler.scale(torch.zeros(()))
    return scaler


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor", "muon"])
def test_steps_are_those_after_the_backward_pass(optimizer):
    source = model("new_llm")
    recipe = load_recipe(
        "demo",
        {"optimizer": optimizer, "optimizer_in_backward": True, "sized_for": "cpu", "momentum_bits": 32},
    )
    after = copy.deepcopy(source)
    stepper = build_optimizer(after, recipe)
    inside, hooks = build(optimizer, sequences=2, source=source, momentum_bits=32)
    loose = 10 if optimizer == "muon" else 1  # its iteration in bfloat16 makes much of little
    for _ in range(3):
        backward(after)
        norm = torch.nn.utils.get_total_norm([p.grad for p in after.parameters()])
        stepper.step()
        after.zero_grad()
        backward(inside)
        torch.testing.assert_close(hooks.finish(), norm, rtol=1e-4 * loose, atol=0)
        assert all(p.grad is None for p in inside.parameters())
    for a, b in zip(after.parameters(), inside.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5 * loose**2)


def test_a_gradient_far_over_the_limit_is_scaled_down_to_it():
    m, hooks = build(max_norm=0.01)
    seen = {}
    step = hooks.optimizer.step_parameter
    hooks.optimizer.step_parameter = lambda p, scale: (
        seen.__setitem__(p, (p.grad.clone(), float(scale))),
        step(p, scale),
    )
    for _ in range(2):  # from the second step on the norms of the tensors to come are known
        backward(m)
        norm = float(hooks.finish())
    assert norm > 0.1 and all(scale == pytest.approx(0.01 / norm, rel=0.3) for _, scale in seen.values())
    clipped = sum(float((g * scale).square().sum()) for g, scale in seen.values()) ** 0.5
    assert clipped == pytest.approx(0.01, rel=0.2)
    m, hooks = build(max_norm=1e6)
    backward(m)
    hooks.finish()
    hooks.optimizer.step_parameter = lambda p, scale: seen.__setitem__(p, (None, float(scale)))
    seen.clear()
    backward(m)
    hooks.finish()
    assert {scale for _, scale in seen.values()} == {1.0}


def test_a_gradient_that_is_no_number_changes_no_weight_and_is_seen_in_the_norm():
    m, hooks = build()
    backward(m)
    before = [p.detach().clone() for p in m.parameters()]
    (m(IDS, labels=IDS, use_cache=False).loss * float("nan")).backward()
    assert not torch.isfinite(hooks.finish())
    assert all(torch.equal(a, b) for a, b in zip(before, m.parameters(), strict=True))


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor", "muon"])
def test_loss_scaling_is_divided_out_and_only_what_overflows_is_left_out(optimizer):
    source, scaler = model("new_llm"), loss_scaling(1024.0)
    plain, hooks = build(optimizer, 0.5, 2, source, momentum_bits=32)
    scaled, scaling = build(optimizer, 0.5, 2, source, scaler, momentum_bits=32)
    for _ in range(2):
        backward(plain)
        backward(scaled, scaler)
        torch.testing.assert_close(scaling.finish(), hooks.finish(), rtol=1e-5, atol=0)
    assert scaler.get_scale() == 2048.0 and scaling.skipped_share == 0  # grown after two whole steps
    loose = 1e-3 if optimizer == "muon" else 1e-5
    for a, b in zip(plain.parameters(), scaled.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=loose, atol=loose)
    hurt = [scaled.model.layers[0].mlp.up.weight, scaled.model.norm.weight]
    for parameter, value in zip(hurt, ("inf", "nan"), strict=True):
        parameter.register_hook(lambda g, value=value: g * float(value))
    before = [p.detach().clone() for p in scaled.parameters()]
    backward(scaled, scaler)
    assert scaling.finish().isfinite() and scaler.get_scale() == 1024.0
    moved = {p: not torch.equal(p, was) for p, was in zip(scaled.parameters(), before, strict=True)}
    assert all(moved[p] == (not any(p is q for q in hurt)) for p in moved)
    share = sum(p.numel() for p in hurt) / sum(p.numel() for p in moved)
    assert float(scaling.skipped_share) == pytest.approx(share)


class Shared(nn.Module):
    """Two blocks that use one weight, which also has a use outside."""

    def __init__(self):
        super().__init__()
        first, second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        second.weight = first.weight
        self.layers = nn.ModuleList([first, second])

    def forward(self, x):
        for layer in self.layers:
            x = layer(x).tanh()
        return x


def test_a_weight_that_several_blocks_share_is_stepped_once_with_its_whole_gradient():
    torch.manual_seed(0)
    plain = Shared().train()
    m = copy.deepcopy(plain)
    recipe = load_recipe("demo", {"optimizer": "adamw", "optimizer_in_backward": True, "sized_for": "cpu"})
    passes = checkpoint_blocks(m, 1)
    hooks = OptimizerInBackward(m, build_optimizer(m, recipe), 0.0, passes)
    x = torch.randn(3, 4, requires_grad=True)
    m(x).sum().backward()
    plain(x).sum().backward()
    torch.testing.assert_close(m.layers[0].weight.grad, plain.layers[0].weight.grad)
    torch.testing.assert_close(hooks.finish(), plain.layers[0].weight.grad.norm())
    assert m.layers[0].weight.grad is None and not torch.equal(m.layers[0].weight, plain.layers[0].weight)
