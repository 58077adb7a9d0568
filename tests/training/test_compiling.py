"""What is compiled for a recipe, and what its way of computing means for the time that it will take."""

import pytest

from newllm_lib.device import probe
from newllm_lib.errors import UsageError
from newllm_lib.recipe import load_recipe
from newllm_lib.training.compile import compilation
from newllm_lib.training.estimate import tokens_per_second


def walker(**changes):
    return load_recipe("demo", {"recurrence": "sequential", **changes})


@pytest.mark.parametrize(("kind", "expected"), [("cpu", "off"), ("t4", "replay"), ("h100", "replay")])
def test_the_sequential_recurrence_is_replayed_where_a_step_can_be_and_never_compiled(
    kind, expected, monkeypatch
):
    monkeypatch.setenv("NEWLLM_DEVICE", kind)
    assert compilation(walker(), probe()) == expected
    assert compilation(walker(compile="off"), probe()) == "off"
    for asked in ("on", "graphs"):
        with pytest.raises(UsageError, match=f"--compile {asked} .* leave it at auto"):
            compilation(walker(compile=asked), probe())


@pytest.mark.parametrize("kind", ["t4", "h100"])
def test_torchs_compiler_is_waited_for_where_it_finds_something_to_fuse(kind, monkeypatch):
    monkeypatch.setenv("NEWLLM_DEVICE", kind)
    for changes in ({}, {"hidden_size": 1024, "num_heads": 8}, {"model": "tiny_gpt2", "carry_state": False}):
        assert compilation(load_recipe("demo", changes), probe()) == "replay", changes
    for changes in ({"lora_rank": 4}, {"kernels": "off"}, {"gradient_checkpointing": "on"}):
        assert compilation(load_recipe("demo", changes), probe()) in ("on", "graphs"), changes
    assert compilation(load_recipe("phase7_small", {}), probe()) == ("on" if kind == "t4" else "graphs")


def test_the_estimate_says_how_long_walking_takes(monkeypatch):
    monkeypatch.setenv("NEWLLM_DEVICE", "cpu")
    (parallel, _), (sequential, _) = (
        tokens_per_second(r, probe(), 4_200_000) for r in (load_recipe("demo"), walker())
    )
    assert parallel / sequential == pytest.approx(2_880 / 653, rel=0.01)
    monkeypatch.setenv("NEWLLM_DEVICE", "h100")
    rate, _ = tokens_per_second(walker(micro_batch_size="64", batch_size="64"), probe(), 4_200_000)
    assert rate == pytest.approx(64 / 0.6e-3)  # a step of the walk takes as long for one text as for many
