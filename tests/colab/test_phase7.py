"""Notebook 5's estimate: what fits which GPU, what hours buy, which preset is recommended, and what is
measured.
"""

from __future__ import annotations

import re

import pytest

from newllm_lib.colab import phase7
from newllm_lib.colab.forms import FORM_DEVICE, OVERRIDES_VARIABLE
from newllm_lib.colab.settings import PHASE7
from newllm_lib.device import KNOWN_GPUS, known_gpu, probe
from newllm_lib.recipe import load_recipe
from newllm_lib.training import estimate


@pytest.fixture(autouse=True)
def _no_overrides(monkeypatch):
    monkeypatch.delenv(OVERRIDES_VARIABLE, raising=False)


@pytest.mark.parametrize("kind", KNOWN_GPUS)
def test_a_known_gpu_is_what_the_probe_answers_for_it(kind, monkeypatch):
    monkeypatch.setenv("NEWLLM_DEVICE", kind)
    asked, known = probe(), known_gpu(kind)
    assert (asked.dtype, asked.kernels, asked.memory_gib, asked.tensor_core_dot) == (
        known.dtype,
        known.kernels,
        known.memory_gib,
        known.tensor_core_dot,
    )


def test_every_preset_is_looked_at_on_every_gpu():
    for kind in phase7.GPUS:
        found = phase7.outlooks(known_gpu(kind))
        assert [o.preset for o in found] == list(phase7.PRESETS)
        sizes = [o.parameters for o in found]
        assert sizes == sorted(sizes) and sizes[-1] == 1_513_995_520
        assert [o.tokens_an_hour for o in found] == sorted((o.tokens_an_hour for o in found), reverse=True)
        assert found[0].fits  # the small one, anywhere
    speeds = [phase7.outlooks(known_gpu(kind))[-1].tokens_an_hour for kind in phase7.GPUS]
    assert speeds == sorted(speeds)


def test_what_does_not_fit_is_not_recommended():
    small = known_gpu("t4")
    tight = type(small)(**{**vars(small), "memory_gib": 3.0})
    found = phase7.outlooks(tight)
    assert [o.fits for o in found][0] and not found[-1].fits
    assert phase7.best(found, 10_000.0).fits


def test_more_hours_and_a_faster_gpu_are_for_larger_presets():
    chosen = [
        phase7.best(phase7.outlooks(known_gpu("h100")), hours).parameters for hours in (0.2, 3, 30, 3000)
    ]
    assert chosen == sorted(chosen) and chosen[0] < chosen[-1] == 1_513_995_520
    assert phase7.best(phase7.outlooks(known_gpu("t4")), 1).preset == "phase7_small"


def test_auto_follows_the_machine_and_a_name_is_meant_as_it_is(monkeypatch):
    monkeypatch.setenv("NEWLLM_DEVICE", "cpu")
    assert PHASE7.read().name == "phase7_small"
    assert PHASE7.read(recipe="phase7_1.5b").name == "phase7_1.5b"
    monkeypatch.setenv("NEWLLM_DEVICE", "h100")
    assert PHASE7.read(hours=3000.0).name == "phase7_1.5b" and PHASE7.read(hours=0.1).name != "phase7_1.5b"


def test_every_field_shows_what_each_preset_has():
    """Its defaults are phase7_small's; a field in which another preset differs would show what is not so."""
    for name in phase7.PRESETS:
        recipe = load_recipe(name, device_kind=FORM_DEVICE)
        for f in PHASE7.fields:
            assert not f.is_recipe_key or f.default_in(recipe) == PHASE7.defaults()[f.name], (name, f.name)


def test_speeds_say_whether_they_were_measured(monkeypatch):
    recipe, device = load_recipe("phase7_small", device_kind="h100"), known_gpu("h100")
    count = estimate.estimate(recipe, device)["parameters"]
    monkeypatch.setattr(estimate, "_MEASURED", {})
    computed = phase7.outlook(recipe, device)
    assert not computed.measured and 1e7 < computed.tokens_an_hour < 1e10
    monkeypatch.setattr(estimate, "_MEASURED", {("h100", count, recipe.gradient_checkpointing): 1000.0})
    measured = phase7.outlook(recipe, device)
    assert measured.measured and measured.tokens_an_hour == 3.6e6
    assert not phase7.outlook(recipe, known_gpu("a100")).measured


def test_the_two_ways_to_train_the_largest_have_speeds_of_their_own():
    device = known_gpu("h100")
    slow, fast = (
        phase7.outlook(load_recipe(name, device_kind="h100"), device)
        for name in ("phase7_1.5b", "phase7_1.5b_fast")
    )
    assert slow.measured and fast.measured and slow.parameters == fast.parameters
    assert 30_000 < slow.tokens_an_hour / 3600 < fast.tokens_an_hour / 3600


def test_a_large_model_gets_more_of_a_gpu_as_was_measured():
    device = known_gpu("h100")
    recipe = load_recipe("phase7_1.5b", device_kind="h100")
    speed, _ = estimate.tokens_per_second(recipe, device, 1_420_396_544)
    assert speed == pytest.approx(24_110, rel=0.02)


def test_the_plan_says_what_hours_reach_and_what_they_do_not(monkeypatch, capsys):
    monkeypatch.setenv("NEWLLM_DEVICE", "l4")
    phase7.plan(PHASE7.read(recipe="phase7_1.5b", hours=3.0))
    text = capsys.readouterr().out
    assert all(f"{kind.upper()}, " in text for kind in phase7.GPUS) and all(
        name in text for name in phase7.PRESETS
    )
    assert "makes the most of 3 h" in text and ("measured" in text or "computed" in text)
    assert "a smaller preset learns more in this time" in text and re.search(
        r"max_steps = [\d,]+ would end in about 3 h", text
    )


def test_the_plan_refuses_nothing_but_says_what_would_fit(monkeypatch, capsys):
    monkeypatch.setenv("NEWLLM_DEVICE", "t4")
    monkeypatch.setitem(KNOWN_GPUS, "t4", ((7, 5), 4.0))
    phase7.plan(PHASE7.read(recipe="phase7_1.5b"))
    assert re.search(r"even with one sequence at a time: choose phase7_\S+\.", capsys.readouterr().out)


def test_reach_follows_the_tokens_for_each_parameter():
    made = [
        phase7.reach(phase7.Outlook("x", 10**6, 1.0, True, rate, False), 1.0) for rate in (1e4, 3e5, 5e6, 3e7)
    ]
    said = "smaller preset", "Facts and reasoning: no", "fluent", "good use"
    assert all(words in text for words, text in zip(said, made, strict=True))


def test_without_a_gpu_the_check_says_that_there_is_nothing_to_check(monkeypatch, capsys):
    monkeypatch.setenv("NEWLLM_DEVICE", "cpu")
    phase7.check()
    assert "No kernels to check" in capsys.readouterr().out


@pytest.mark.gpu
def test_on_a_gpu_every_kernel_is_checked(capsys):
    from newllm_lib.ops.self_check import OPERATIONS

    phase7.check()
    assert capsys.readouterr().out.count("✓") == len(OPERATIONS)
