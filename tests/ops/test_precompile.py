"""Kernels compiled before a first step: nothing is left to compile in it, and nothing else is left behind."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from newllm_lib.ops import precompile


def test_on_a_processor_nothing_is_rehearsed():
    precompile.trace_and_compile(nn.Linear(2, 2), lambda: pytest.fail("there is nothing to compile for"))


def test_only_the_first_blocks_are_gone_through():
    model = nn.Module()
    model.few, model.blocks = (
        nn.ModuleList([nn.Linear(1, 1)] * 3),
        nn.ModuleList(nn.Linear(9, 9) for _ in range(5)),
    )
    before = list(model.blocks)
    with precompile._first_blocks(model):
        assert list(model.blocks) == before[:2] and len(model.few) == 3
    assert list(model.blocks) == before


@pytest.mark.gpu
def test_a_rehearsed_step_finds_its_kernels_compiled_and_computes_as_ever(monkeypatch, tmp_path):
    from triton.runtime.jit import JITFunction

    from newllm_lib.models.new_llm import NewLLMConfig, NewLLMForCausalLM

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    compiled, compile_one = [], JITFunction._do_compile
    monkeypatch.setattr(
        JITFunction,
        "_do_compile",
        lambda self, *a, **k: (compiled.append(self), compile_one(self, *a, **k))[1],
    )
    sizes = {
        "vocab_size": 320,
        "hidden_size": 48,
        "context_dim": 48,
        "mlp_size": 80,
        "num_hidden_layers": 4,
        "bos_token_id": 0,
    }
    torch.manual_seed(0)
    model = NewLLMForCausalLM(NewLLMConfig(**sizes)).cuda().train()
    ids = torch.randint(1, 320, (16, 64), device="cuda")

    def loss():
        with torch.autocast("cuda", torch.bfloat16):
            return model(input_ids=ids, shift_labels=ids).loss

    drawn = torch.cuda.get_rng_state()
    precompile.trace_and_compile(model, loss)
    precompile.wait()
    assert compiled and torch.equal(drawn, torch.cuda.get_rng_state())
    assert all(p.grad is None for p in model.parameters())
    compiled.clear()
    found = loss()
    found.backward()
    assert not compiled, {kernel.__name__ for kernel in compiled}
    with (
        torch.no_grad()
    ):  # as on the processor, where no kernel runs (5.15: the labels are the inputs, which a tied head knows)
        expected = model.cpu()(input_ids=ids.cpu(), shift_labels=ids.cpu()).loss
    assert abs(found.item() - expected.item()) < 0.05


def test_a_launch_waits_for_what_threads_compile(monkeypatch):
    """Whatever launches: compiled twice at once, a kernel's first module would be unloaded."""
    jit = pytest.importorskip("triton.runtime.jit").JITFunction
    may_end, order = threading.Event(), []

    def compile_slowly(*_):
        assert may_end.wait(20)
        order.append("compiled")

    launch = lambda kernel, grid: lambda *arguments: order.append("launched")  # noqa: E731
    monkeypatch.setattr(jit, "__getitem__", launch)
    monkeypatch.setattr(precompile, "_compile", compile_slowly)
    with precompile._launches_become_compilations():
        jit.__getitem__("kernel", (1,))(1)
        assert not order
    threading.Timer(0.1, may_end.set).start()
    jit.__getitem__("kernel", (1,))(1)
    assert order == ["compiled", "launched"] and jit.__getitem__ is launch


def test_before_triton_3_9_no_two_threads_are_in_llvm_at_once(monkeypatch):
    """That Triton sets LLVM's options, which are the process's, without a lock."""
    compiler = pytest.importorskip("triton.backends.nvidia.compiler")
    inside, most = [], []

    def work(*_):
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.01)
        inside.pop()

    monkeypatch.setattr(compiler, "llvm", SimpleNamespace(**dict.fromkeys(precompile._OF_LLVM, work)))
    monkeypatch.delattr(compiler, "get_llvm_flags", raising=False)
    precompile._llvm_one_at_a_time.__wrapped__()
    with ThreadPoolExecutor(4) as pool:
        for name in precompile._OF_LLVM * 2:
            pool.submit(getattr(compiler.llvm, name), "module")
    assert len(most) == 12 and max(most) == 1


def test_a_triton_with_a_lock_of_its_own_is_left_alone(monkeypatch):
    compiler = pytest.importorskip("triton.backends.nvidia.compiler")
    before = {name: getattr(compiler.llvm, name) for name in precompile._OF_LLVM}
    monkeypatch.setattr(compiler, "get_llvm_flags", list, raising=False)
    precompile._llvm_one_at_a_time.__wrapped__()
    assert before == {name: getattr(compiler.llvm, name) for name in precompile._OF_LLVM}
