"""Each parameter is stepped once, by the right optimizer; two optimizers in one save and load as one."""

import pytest
import torch

from newllm_lib.recipe import load_recipe
from newllm_lib.training.model_config import build_model
from newllm_lib.training.optim.build import (
    block_matrices,
    build_optimizer,
    build_scheduler,
    learning_rate_factor,
)
from newllm_lib.training.optim.muon import BatchedMuon


def setting(model="new_llm", optimizer="muon", tie=True, **changes):
    small = {
        "hidden_size": 16,
        "context_dim": 24,
        "mlp_size": 32,
        "num_layers": 2,
        "num_heads": 2,
        "sized_for": "cpu",
    }
    recipe = load_recipe("demo", {**small, "model": model, "optimizer": optimizer, **changes})
    torch.manual_seed(0)
    built = build_model(recipe, 50)
    if not tie:
        built.config.tie_word_embeddings = False
        built.lm_head.weight = torch.nn.Parameter(built.lm_head.weight.detach().clone())
    return recipe, built


def gradients(model, seed):
    torch.manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.randn_like(p)


@pytest.mark.parametrize("model", ["new_llm", "tiny_gpt2"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("tie", [True, False])
def test_every_parameter_is_in_one_group_and_only_vectors_do_not_decay(model, optimizer, tie):
    recipe, built = setting(model, optimizer, tie)
    groups = build_optimizer(built, recipe).param_groups
    seen = [id(p) for group in groups for p in group["params"]]
    assert sorted(seen) == sorted(id(p) for p in built.parameters())
    assert all((group["weight_decay"] == 0) == (p.ndim < 2) for group in groups for p in group["params"])


@pytest.mark.parametrize("model", ["new_llm", "tiny_gpt2"])
def test_muon_takes_the_blocks_matrices_and_no_embedding_or_head(model):
    _, built = setting(model, tie=False)
    names = {id(p): name for name, p in built.named_parameters()}
    taken = {names[id(p)] for p in block_matrices(built)}
    assert taken and all((".layers." in n or ".h." in n) and n.endswith("weight") for n in taken)
    assert not any(part in n for n in taken for part in ("embed", "wte", "wpe", "lm_head", "conv."))


def test_muon_makes_updates_whose_singular_values_are_alike():
    recipe, built = setting(weight_decay=0.0)
    before = [p.detach().clone() for p in block_matrices(built)]
    gradients(built, 1)
    build_optimizer(built, recipe).step()
    for p, old in zip(block_matrices(built), before, strict=True):
        values = torch.linalg.svdvals((p.detach() - old) / recipe.muon_learning_rate)
        assert values.max() / values.min() < 3  # a random gradient's own are far apart


def test_muon_in_batches_is_torchs_muon():
    """Matrices of several shapes, two steps: near to what torch does one by one, and the saved state fits
    both.
    """
    torch.manual_seed(0)
    sizes = [(8, 24), (24, 8), (8, 24), (16, 16)]
    start = [torch.randn(size) for size in sizes]
    ours, theirs = ([torch.nn.Parameter(x.clone()) for x in start] for _ in range(2))
    settings = {"lr": 0.02, "weight_decay": 0.1, "adjust_lr_fn": "original"}
    steppers = BatchedMuon(ours, **settings), torch.optim.Muon(theirs, **settings)
    for _ in range(2):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        for stepper in steppers:
            stepper.step()
    for one, other, before in zip(ours, theirs, start, strict=True):
        moved = (other - before).norm()
        assert moved > 0.01 and (one - other).norm() < 0.02 * moved  # both compute in bfloat16
    steppers[1].load_state_dict(steppers[0].state_dict())


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_saved_optimizer_goes_on_as_if_nothing_happened(optimizer, tmp_path):
    recipe, one = setting(optimizer=optimizer)
    _, two = setting(optimizer=optimizer)
    stepped = build_optimizer(one, recipe)
    course = build_scheduler(stepped, 10, recipe)
    for seed in range(3):
        gradients(one, seed)
        stepped.step()
        course.step()
    two.load_state_dict(one.state_dict())
    torch.save({"optimizer": stepped.state_dict(), "course": course.state_dict()}, tmp_path / "saved.pt")
    saved = torch.load(tmp_path / "saved.pt", weights_only=True)
    again = build_optimizer(two, recipe)
    course_again = build_scheduler(again, 10, recipe)
    again.load_state_dict(saved["optimizer"])
    course_again.load_state_dict(saved["course"])
    for seed in range(3, 6):
        for model, optim, schedule in ((one, stepped, course), (two, again, course_again)):
            gradients(model, seed)
            optim.step()
            schedule.step()
    for p, q in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd", "constant"])
def test_the_learning_rate_warms_up_and_falls_to_its_floor(schedule):
    recipe, _ = setting(schedule=schedule, warmup_steps=10, min_learning_rate_ratio=0.1)
    factors = [learning_rate_factor(step, 100, recipe) for step in range(101)]
    assert factors[0] < 0.1 and factors[10] == pytest.approx(1.0)
    assert factors[:11] == sorted(factors[:11]) and factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[100] == pytest.approx(1.0 if schedule == "constant" else 0.1)
    by_share, _ = setting(schedule=schedule, warmup_steps=0.1, min_learning_rate_ratio=0.1)
    assert factors == [learning_rate_factor(step, 100, by_share) for step in range(101)]
