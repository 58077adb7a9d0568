"""Training on a GPU: bf16, fp16 as a T4 would, kernels against plain torch, and resume."""

import pytest
import torch

from newllm_lib.device import probe
from newllm_lib.recipe import load_recipe
from newllm_lib.training import loop, train
from newllm_lib.training.model_config import build_model
from tests.helpers.small_runs import curve, losses, stopped_after, write_text

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]


def recipe(folder, **changes):
    return load_recipe(
        "demo",
        {
            "sized_for": "h100",
            "data_dir": str(folder / "text"),
            "vocab_size": 300,
            "max_seq_length": 32,
            "batch_size": 8,
            "hidden_size": 64,
            "context_dim": 96,
            "mlp_size": 128,
            "num_layers": 2,
            "epochs": 30,
            "evals_per_epoch": 1,
            "logging_steps": 1,
            "output_dir": str(folder / "run"),
            "compile": "off",
            "warmup_steps": 5,
            "force": True,  # tests side by side share the GPU
            **changes,
        },
    )


@pytest.mark.parametrize(
    ("model", "kind", "dtype", "compile"),
    [
        ("new_llm", "h100", "bf16", "graphs"),
        ("tiny_gpt2", "h100", "bf16", "graphs"),
        ("new_llm", "h100", "bf16", "on"),
        ("new_llm", "h100", "bf16", "replay"),
        ("tiny_gpt2", "h100", "bf16", "replay"),
        ("new_llm", "t4", "fp16", "off"),
        ("tiny_gpt2", "t4", "fp16", "off"),
        ("new_llm", "t4", "fp16", "replay"),
        ("tiny_gpt2", "t4", "fp16", "replay"),
        ("phase7", "h100", "bf16", "graphs"),
        ("phase7", "t4", "fp16", "off"),
    ],
)
def test_it_learns_in_half_precision(tmp_path, monkeypatch, model, kind, dtype, compile):
    monkeypatch.setenv("NEWLLM_DEVICE", kind)
    assert probe().dtype == dtype
    write_text(tmp_path)
    found = losses(
        train(
            recipe(
                tmp_path,
                model=model,
                compile=compile,
                carry_state=model == "new_llm",
                optimizer="muon",
                num_heads=2,
            )
        )
    )
    assert found[-1] < 0.7 * found[0]


@pytest.mark.parametrize("recurrence", ["parallel", "sequential"])
def test_gpu_and_cpu_agree(recurrence, tmp_path):
    torch.manual_seed(0)
    model = build_model(recipe(tmp_path, recurrence=recurrence, dropout=0.0), 300)
    model.config.bos_token_id = 0
    ids = torch.randint(0, 300, (3, 77))
    ids[1, 40] = 0
    model.train()
    model(ids, labels=ids).loss.backward()
    on_cpu = [p.grad.clone() for p in model.parameters()]
    cpu_logits = model.eval()(ids).logits
    model.zero_grad()
    model.cuda().train()
    model(ids.cuda(), labels=ids.cuda()).loss.backward()
    for p, expected in zip(model.parameters(), on_cpu, strict=True):
        torch.testing.assert_close(p.grad.cpu(), expected, rtol=2e-3, atol=2e-5)
    torch.testing.assert_close(model.eval()(ids.cuda()).logits.cpu(), cpu_logits, rtol=1e-3, atol=1e-3)


def test_a_stopped_run_goes_on_with_the_same_losses(tmp_path, monkeypatch):
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
        write_text(tmp_path / name)
    whole = losses(train(recipe(tmp_path / "whole", epochs=2)))
    with stopped_after(9):
        train(recipe(tmp_path / "stopped", epochs=2))
    stopped = losses(train(recipe(tmp_path / "stopped", epochs=2)))
    assert stopped == pytest.approx(whole, abs=1e-3)


@pytest.mark.parametrize(
    "changes",
    [
        {"carry_state": True, "optimizer": "muon"},
        {"carry_state": True, "optimizer": "muon", "micro_batch_size": 4, "dropout": 0.1, "schedule": "wsd"},
        {"hidden_size": 288, "num_heads": 8, "optimizer": "adamw", "carry_state": False},
        {"model": "tiny_gpt2", "optimizer": "muon", "num_heads": 2, "carry_state": False},
    ],
    ids=str,
)
def test_fp16_replayed_is_fp16_step_by_step_and_goes_on_to_the_last_bit(tmp_path, monkeypatch, changes):
    """Scale, overflows and rates on the device are GradScaler's: the same rows within what other sums round
    to, overflows where the first scale is too large, and a stopped run as if it had not been stopped."""
    monkeypatch.setenv("NEWLLM_DEVICE", "t4")
    write_text(tmp_path)
    found = {}
    accelerator = loop.make_accelerator
    for how in ("off", "replay", "stopped"):

        def scaled(*words):
            made = accelerator(*words)
            made.scaler = torch.amp.GradScaler("cuda", init_scale=2.0**40, growth_interval=7)
            return made

        monkeypatch.setattr(loop, "make_accelerator", scaled)
        keys = {
            "compile": how.replace("stopped", "replay"),
            "max_steps": 40,
            "output_dir": str(tmp_path / how),
        }
        keys = {"dropout": 0.0, **keys, **changes}
        if how == "stopped":
            with stopped_after(25):
                train(recipe(tmp_path, **keys))
        run = train(recipe(tmp_path, **keys))
        found[how] = [row for row in curve(run) if "loss" in row]
    assert found["stopped"] == found["replay"]
    skipped = [row["skipped"] for row in found["replay"]]
    assert 5 < sum(skipped) < 30 and skipped[0] == 1 and skipped == [row["skipped"] for row in found["off"]]
    for ours, theirs in zip(found["replay"], found["off"], strict=True):
        assert ours["learning_rate"] == theirs["learning_rate"]
        if not changes.get("dropout"):  # whose numbers a recording draws in another order
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=2e-2)
    assert found["replay"][-1]["loss"] < 0.9 * found["replay"][0]["loss"]


def test_fp16_weights_step_in_the_backward_pass_and_a_stopped_run_goes_on(tmp_path, monkeypatch):
    """As `phase7_1.5b` on a T4: replayed block by block, without a float32 copy of any matrix."""
    monkeypatch.setenv("NEWLLM_DEVICE", "t4")
    write_text(tmp_path)
    sizes = {"num_heads": 2, "ssm_ranks": 8, "attention_window": 16, "htt_rank": 8, "dropout": 0.0}
    keys = {"optimizer_in_backward": True, "gradient_checkpointing": "offload", "optimizer": "adafactor"}
    keys |= {"compile": "replay", "micro_batch_size": 4, "hidden_size": 128, "context_dim": 128, "epochs": 6}
    keys |= {"model": "phase7", "weights_dtype": "fp16", **sizes}
    whole = train(recipe(tmp_path, **keys, output_dir=str(tmp_path / "whole")))
    assert losses(whole)[-1] < 0.8 * losses(whole)[0]
    with stopped_after(9):
        train(recipe(tmp_path, **keys))
    # the embedding's gradients are added up in whatever order they come
    assert losses(train(recipe(tmp_path, **keys))) == pytest.approx(losses(whole), rel=1e-3)


def test_phase7_learns_on_a_gpu_with_kernels_and_without(tmp_path):
    """The same losses, within what other sums round to, whether our kernels run or plain torch."""
    write_text(tmp_path)
    found = []
    for kernels in ("auto", "off"):
        sizes = {"num_heads": 2, "ssm_ranks": 8, "attention_window": 16, "htt_rank": 8, "dropout": 0.0}
        path = str(tmp_path / kernels)
        changes = {"kernels": kernels, "output_dir": path, "dtype": "fp32", "optimizer": "adamw", **sizes}
        found.append(losses(train(recipe(tmp_path, model="phase7", **changes))))
    assert found[0][-1] < 0.7 * found[0][0]
    assert found[0][:20] == pytest.approx(found[1][:20], rel=2e-3)


@pytest.mark.parametrize("changes", [{}, {"attention": "dot", "embedding": "dense"}, {"ar_ssm": False}])
def test_phase7_on_gpu_and_cpu_agree(changes, tmp_path):
    torch.manual_seed(0)
    sizes = {"num_heads": 2, "ssm_ranks": 8, "attention_window": 16, "htt_rank": 8, "dropout": 0.0}
    model = build_model(recipe(tmp_path, model="phase7", **sizes, **changes), 300)
    model.config.bos_token_id = 0
    ids = torch.randint(0, 300, (3, 77))
    mask = torch.ones(3, 77, dtype=torch.long)
    mask[1, :9] = 0
    on_cpu, on_gpu = [], []
    for place, results in (("cpu", on_cpu), ("cuda", on_gpu)):
        model.to(place).train()
        model.zero_grad()
        model(ids.to(place), labels=ids.to(place)).loss.backward()
        results.extend(p.grad.cpu().clone() for p in model.parameters())  # `to` moves gradients in place
        output = model.eval()(ids.to(place), attention_mask=mask.to(place), use_cache=True)
        step = model(ids[:, :1].to(place), state=output.state)
        results.extend(x.cpu() for x in (output.logits[mask.bool().to(place)], output.state, step.logits))
    for found, expected in zip(on_gpu, on_cpu, strict=True):
        torch.testing.assert_close(found, expected, rtol=2e-3, atol=1e-4)
