"""Passes recorded and replayed do what the passes do: on a processor, where a recording is the function
itself, and on a GPU.
"""

import contextlib
import copy
import gc
from types import SimpleNamespace

import pytest
import torch

from newllm_lib.ops.common.dispatch import uncollected
from newllm_lib.recipe import load_recipe
from newllm_lib.training.cuda_graphs import Recorder, StepGraph
from newllm_lib.training.memory.blocks import checkpoint_blocks
from newllm_lib.training.model_config import build_model
from newllm_lib.training.optim.adafactor import Adafactor
from newllm_lib.training.optim.build import build_optimizer
from newllm_lib.training.optim.in_backward import OptimizerInBackward
from tests.helpers.small_models import model

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def phase7(device):
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 64,
        "context_dim": 64,
        "mlp_size": 128,
        "num_layers": 3,
        "num_heads": 2,
        "attention_window": 8,
    }
    return (
        build_model(load_recipe("phase7_small", {**sizes, "htt_rank": 8, "sized_for": "cpu"}), 60)
        .to(device)
        .train()
    )


def batches(device, count=3, sequences=7):
    draw = torch.Generator().manual_seed(0)
    return [torch.randint(0, 60, (sequences, 12), generator=draw).to(device) for _ in range(count)]


def trained(m, graphs, sequences, optimizer="adafactor"):
    """Losses and norms of some steps in the backward pass."""
    recipe = load_recipe(
        "demo",
        {"optimizer": optimizer, "optimizer_in_backward": True, "sized_for": "cpu", "momentum_bits": 32},
    )
    hooks = OptimizerInBackward(
        m, build_optimizer(m, recipe), 0.5, checkpoint_blocks(m, sequences, graphs=graphs)
    )
    found = []
    for ids in batches(next(m.parameters()).device):
        loss = m(ids, labels=ids, use_cache=False).loss
        loss.backward()
        found.append((float(loss.detach()), float(hooks.finish())))
        assert all(p.grad is None for p in m.parameters())
    return found


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("name", "sequences"), [("phase7", 3), ("phase7", None), ("llama", 2), ("new_llm", 4)]
)
def test_block_by_block_in_the_backward_pass(device, name, sequences):
    plain = phase7(device) if name == "phase7" else model(name).to(device)
    again = copy.deepcopy(plain)
    expected, found = trained(plain, False, sequences), trained(again, True, sequences)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0.0)
    for a, b in zip(plain.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    ids = batches(device)[0]
    again.eval()  # what was replaced in training is as it was outside it
    plain.eval()
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, plain(ids).logits, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("device", DEVICES)
def test_a_whole_step_accumulates_over_micro_batches_and_begins_again(device):
    plain = phase7(device)
    again = copy.deepcopy(plain)
    graph = StepGraph(again, torch.device(device), None)
    recipe = load_recipe("demo", {"optimizer": "adafactor", "sized_for": "cpu", "momentum_bits": 32})
    steppers = [build_optimizer(m, recipe) for m in (plain, again)]
    tokens = torch.full((), 2 * 7 * 12, device=device)
    for ids, other in zip(batches(device, 3), batches(device, 6)[3:], strict=True):
        for part in (ids, other):
            inputs = {"input_ids": part, "shift_labels": part, "num_items_in_batch": tokens}
            loss = plain(**inputs, use_cache=False).loss
            loss.backward()
            torch.testing.assert_close(graph(inputs, use_cache=False)[0], loss.detach(), rtol=1e-4, atol=0.0)
        for a, b in zip(plain.parameters(), again.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-6)
        for m, stepper in zip((plain, again), steppers, strict=True):
            stepper.step()
            m.zero_grad()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bits", [0, 32])
def test_a_recorded_step_is_the_step_with_the_rate_it_has_by_then(device, bits):
    """Rates, corrections and seeds change from step to step; a recording must not keep those it was made
    with.
    """
    torch.manual_seed(0)
    shapes = (130, 140), (200, 128), (7,), (3, 5)
    plain = [torch.randn(shape, device=device, requires_grad=True) for shape in shapes]
    again = [p.detach().clone().requires_grad_() for p in plain]
    pair = []
    for parameters in (plain, again):
        groups = [
            {"params": parameters[:2], "weight_decay": 0.1},
            {"params": parameters[2:], "weight_decay": 0.0},
        ]
        pair.append(Adafactor(groups, lr=0.01, momentum_bits=bits))
    pair[1].recorder = Recorder(torch.device(device))
    for number in range(5):
        norms = []
        for optimizer, parameters in zip(pair, (plain, again), strict=True):
            for i, p in enumerate(parameters):
                gradient = torch.randn(p.shape, generator=torch.Generator().manual_seed(10 * number + i)).to(
                    device
                )
                p.grad = gradient if p.grad is None else p.grad.copy_(gradient)  # where it lay
            for group in optimizer.param_groups:
                group["lr"] = 0.01 / (1 + number)
            norms.append(float(optimizer.clip_norm(2.0)))
            optimizer.step()
        assert norms[0] == pytest.approx(norms[1]) and norms[0] > 2
        for a, b in zip(plain, again, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert all(optimizer.state[p]["step"] == 5 for optimizer in pair for p in optimizer.state)


def test_nothing_is_collected_while_a_graph_is_recorded(monkeypatch):
    """A kernel that an earlier model left in a cycle would unload its module in the middle."""
    collects = []

    class Graph:
        def capture_begin(self, **_):
            collects.append(gc.isenabled())

        def capture_end(self):
            collects.append(gc.isenabled())

        def replay(self):
            pass

    stream = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    recorder = Recorder(torch.device("cpu"))
    recorder.on_gpu, recorder.stream, recorder.pool, recorder.warm = True, stream, None, {"step"}
    recorder.record(lambda: collects.append(gc.isenabled()), "step", [])
    assert collects == [False] * 3 and gc.isenabled()


def test_the_collector_is_left_as_it_was_found():
    gc.disable()
    try:
        with uncollected():
            assert not gc.isenabled()
        assert not gc.isenabled()
    finally:
        gc.enable()
    with pytest.raises(ValueError), uncollected():
        raise ValueError
    assert gc.isenabled()
