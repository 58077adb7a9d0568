"""Phase 7 on the common path: a run like any other; what each switch of its recipe changes, and that the
result stays.
"""

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from newllm_lib.device import probe
from newllm_lib.errors import NewLLMError, UsageError
from newllm_lib.evaluation.evaluate_run import evaluate_run
from newllm_lib.generation.generate import complete
from newllm_lib.generation.stateful import IncrementalDecoder
from newllm_lib.ops.common.dispatch import kernels, runs_triton
from newllm_lib.recipe import load_recipe
from newllm_lib.training import run as running, train
from newllm_lib.training.estimate import check_memory, estimate
from newllm_lib.training.loop import TrainingLoop
from newllm_lib.training.optim.build import build_optimizer
from tests.helpers.loading import load_run
from tests.helpers.small_runs import losses, stopped_after, write_text


def recipe(folder, name="run", **changes):
    return load_recipe(
        "phase7_small",
        {
            "data_dir": str(folder / "text"),
            "vocab_size": 300,
            "max_seq_length": 16,
            "batch_size": 8,
            "hidden_size": 16,
            "context_dim": 16,
            "ssm_ranks": 4,
            "mlp_size": 16,
            "num_layers": 2,
            "num_heads": 2,
            "attention_window": 6,
            "htt_rank": 4,
            "epochs": 2,
            "evals_per_epoch": 1,
            "logging_steps": 1,
            "warmup_steps": 2,
            "optimizer": "adamw",
            "output_dir": str(folder / name),
            **changes,
        },
        device_kind="cpu",
    )


def test_it_is_trained_evaluated_and_talked_to_like_any_other(folder):
    run = train(recipe(folder, carry_state=True))
    found = losses(run)
    assert found[-1] < found[0]
    model, tokenizer, _ = load_run(run)
    assert float(load_run(run, "last")[0].model.curvature_factor) == 1.0
    assert evaluate_run(run)["bits_per_byte"] > 0
    assert isinstance(complete(model, tokenizer, "one two", temperature=0, max_new_tokens=5), str)
    reader = IncrementalDecoder(model)
    sizes = []
    for token in (5, 6, 7):
        reader.read([token])
        sizes.append(reader.carried_bytes())
    assert len(set(sizes)) == 1  # constant memory, however long the text


def test_a_stopped_run_goes_on_with_the_same_losses_and_curvature(folder, monkeypatch):
    whole = train(recipe(folder, "whole"))
    with stopped_after(3):
        train(recipe(folder, "stopped"))
    stopped = train(recipe(folder, "stopped"))
    assert losses(stopped) == losses(whole)


SAME_RESULT = {  # switches that change how it is computed, not what
    "gradient_checkpointing": {"gradient_checkpointing": "on"},
    "accumulation": {"micro_batch_size": 2},
    "optimizer": {"fused_optimizer": False},
    "attention": {"flash_attention": False},
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    write_text(folder)
    return losses(train(recipe(folder, max_steps=4)))


@pytest.mark.parametrize("switch", SAME_RESULT)
def test_a_switch_changes_no_loss_beyond_rounding(folder, plain, switch):
    found = losses(train(recipe(folder, max_steps=4, **SAME_RESULT[switch])))
    assert found == pytest.approx(plain, rel=1e-4)


OTHER_RESULT = {  # switches that change the mathematics
    "HTT": {"embedding": "dense"},
    "AR-SSM": {"ar_ssm": False},
    "curvature": {"curvature_schedule": "off"},
    "geometry": {"attention": "dot"},
}


@pytest.mark.parametrize("switch", OTHER_RESULT)
def test_a_switch_of_the_mathematics_changes_the_losses_and_still_learns(folder, plain, switch):
    found = losses(train(recipe(folder, max_steps=4, **OTHER_RESULT[switch])))
    assert found != plain and found[-1] < found[0]


def test_switches_reach_what_they_switch(folder, monkeypatch):
    checkpointed, step = [], TrainingLoop.train_step
    with monkeypatch.context() as patch:
        patch.setattr(
            TrainingLoop,
            "train_step",
            lambda self, batches: (
                checkpointed.append(self.model.is_gradient_checkpointing) or step(self, batches)
            ),
        )
        for choice in ("true", "false"):
            train(recipe(folder, choice, gradient_checkpointing=choice, max_steps=1))
    assert checkpointed == [True, False]
    for fused in (True, False):
        optimizer = build_optimizer(torch.nn.Linear(2, 2), recipe(folder, fused_optimizer=fused))
        assert all(group["fused"] is fused for group in optimizer.param_groups)
    on_a_gpu, seen = SimpleNamespace(is_cuda=True, dtype=torch.float32), []
    monkeypatch.setattr(running, "_train_locked", lambda *_, **__: seen.append(runs_triton(on_a_gpu)))
    train(recipe(folder, kernels="auto")), train(recipe(folder, kernels="off"))
    assert seen == [runs_triton(on_a_gpu), False]
    with kernels(False), kernels(True):
        assert runs_triton(on_a_gpu) == seen[0]


# --- sizes that fail early
# --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["t4", "l4"])
def test_what_cannot_fit_is_refused_before_anything_is_made(kind, monkeypatch, tmp_path):
    monkeypatch.setenv("NEWLLM_DEVICE", kind)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    heavy = {
        "gradient_checkpointing": "off",
        "optimizer": "adamw",
        "weights_dtype": "fp32",
        "optimizer_in_backward": False,
    }
    large = load_recipe("phase7_1.5b", {"output_dir": str(tmp_path / "run"), **heavy})
    with pytest.raises((NewLLMError, UsageError)) as error:
        train(large)
    words = str(error.value)
    assert (
        "\n" not in words
        and "GiB" in words
        and "--gradient_checkpointing on" in words
        and "--num_layers" in words
    )
    half = "fp16" if kind == "t4" else "bf16"  # which a T4 has not
    assert f"--weights_dtype {half}" in words and "--optimizer adafactor" in words
    assert not (tmp_path / "run").exists()


def test_what_fits_is_not_refused(monkeypatch):
    monkeypatch.setenv("NEWLLM_DEVICE", "h100")
    check_memory(load_recipe("phase7_1.5b"), probe())
    monkeypatch.setenv("NEWLLM_DEVICE", "t4")
    check_memory(load_recipe("phase7_small"), probe())


def test_the_estimate_knows_checkpointing_and_plain_attention(monkeypatch):
    monkeypatch.setenv("NEWLLM_DEVICE", "h100")
    base = load_recipe("phase7_100m", {"micro_batch_size": 16})
    changed = [
        {"gradient_checkpointing": "off"},
        {"flash_attention": False},
        {"max_seq_length": 2048},
        {"num_layers": 24},
    ]
    need = estimate(base, probe())["memory_estimate_gib"]
    assert all(
        estimate(dataclasses.replace(base, **c), probe())["memory_estimate_gib"] > need + 0.5 for c in changed
    )
