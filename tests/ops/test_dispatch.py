"""One mechanism chooses an operation's implementation."""

import sys
from types import SimpleNamespace

import pytest
import torch

from newllm_lib.ops.common import dispatch
from newllm_lib.ops.common.dispatch import Operation, kernels, runs_cpu_kernel, runs_triton

PLAIN, SMALL, LONG = (SimpleNamespace(name=name) for name in ("plain", "small", "long"))


@pytest.fixture
def operation():
    chosen = Operation(PLAIN)

    @chosen.register(lambda x, *_: x.ndim == 1)
    def _small():
        return SMALL

    @chosen.register(lambda x, *_: len(x) > 3)
    def _long():
        return LONG

    return chosen


def test_the_first_that_takes_the_tensors_is_chosen_else_the_reference(operation):
    assert (
        operation(torch.zeros(9)) is SMALL
        and operation(torch.zeros(9, 1)) is LONG
        and operation(torch.zeros(2, 1)) is PLAIN
    )


def test_a_backend_can_be_named(operation):
    assert (
        operation.named("long", torch.zeros(1)) is LONG and operation.named("plain", torch.zeros(1)) is PLAIN
    )
    assert operation.named("auto", torch.zeros(1)) is SMALL


def test_a_choice_is_traced_and_what_is_not_chosen_not_loaded(operation):
    def never():
        raise AssertionError("loaded without being chosen")

    operation.reference = torch
    operation.better.insert(0, (lambda x: x.ndim == 5, never))
    compiled = torch.compile(lambda x: operation(x).sin(x), fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 2)
    torch.testing.assert_close(compiled(x), x.sin())


def test_kernels_are_for_gpus_and_can_be_switched_off(monkeypatch):
    monkeypatch.setattr(dispatch, "_HAS_TRITON", True)
    on_a_gpu = SimpleNamespace(is_cuda=True, dtype=torch.bfloat16)
    assert runs_triton(on_a_gpu) and not runs_triton(torch.zeros(1))
    assert not runs_triton(SimpleNamespace(is_cuda=True, dtype=torch.float64))
    with kernels(False):
        assert not runs_triton(on_a_gpu)
    assert runs_triton(on_a_gpu)


def test_the_processors_gradients_want_one_exact_dtype():
    x = torch.zeros(2)
    assert (
        runs_cpu_kernel(x, None, x)
        and not runs_cpu_kernel(x, x.double())
        and not runs_cpu_kernel(x.bfloat16())
    )
    assert not runs_cpu_kernel(torch.zeros(1, device="meta"))


def test_a_model_is_built_and_run_on_a_processor_without_loading_triton():
    import subprocess

    code = (
        "import sys\nimport torch\nimport newllm_lib.models as m\nconfig = m.NewLLMConfig(vocab_size=32, "
        "hidden_size=8, context_dim=8, mlp_size=16, bos_token_id=0)\nids = torch.ones(1, 5, "
        "dtype=torch.long)\nm.NewLLMForCausalLM(config)(ids, labels=ids).loss.backward()\nours = [name for "
        "name in sys.modules if name.startswith('newllm_lib.ops') and name.endswith(('triton', "
        "'kernels'))]\nassert not ours, ours"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
