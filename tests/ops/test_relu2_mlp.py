"""The token MLP: the plain one by finite differences, the kernels in the interpreter and on a GPU against it
in float64.
"""

import pytest
import torch

from newllm_lib.layers.context_block import TokenMLP
from newllm_lib.ops import relu2_mlp as op
from newllm_lib.ops.relu2_mlp import reference
from tests.helpers import kernel_checks as checks


def test_gradients_equal_finite_differences():
    draw = checks.Draw("cpu", torch.float64)
    torch.autograd.gradcheck(
        reference.relu2_mlp, (draw.normal(2, 3, 4), draw.normal(5, 4), draw.normal(4, 5))
    )


def test_follows_autocast():
    draw = checks.Draw("cpu", torch.float32)
    x, up, down = draw.normal(2, 3, 4), draw.normal(5, 4), draw.normal(4, 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert op.relu2_mlp(x, up, down).dtype == torch.bfloat16
    assert op.relu2_mlp(x, up, down).dtype == torch.float32


def test_an_adapter_on_either_layer_is_heard():
    mlp, x = TokenMLP(4, 8), torch.randn(2, 3, 4)

    class Doubled(torch.nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    plain = mlp(x)
    down = mlp.down
    mlp.down = Doubled(8, 4, bias=False)
    mlp.down.weight = down.weight
    torch.testing.assert_close(mlp(x), 2 * plain)


def test_in_the_interpreter():
    checks.run_interpreted("relu2")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (63, 100, 513), (1000, 256, 1024), (20_000, 130, 100)])
def test_on_a_gpu(sizes, dtype):
    checks.check_relu2_mlp("cuda", dtype, *sizes)


@pytest.mark.gpu
def test_compiles_without_graph_break_and_a_t4_takes_the_plain_one(monkeypatch):
    draw = checks.Draw("cuda", torch.bfloat16)
    inputs = draw.normal(2, 40, 64), draw.normal(128, 64, scale=0.1), draw.normal(64, 128, scale=0.1)
    compiled = torch.compile(lambda x, up, down: op.relu2_mlp(x * 2, up, down) + 1, fullgraph=True)(*inputs)
    torch.testing.assert_close(compiled, op.relu2_mlp(inputs[0] * 2, *inputs[1:]) + 1)
    expected = torch.autograd.grad(compiled.sum(), inputs)
    monkeypatch.setenv("NEWLLM_DEVICE", "t4")
    from newllm_lib.ops.common.dispatch import runs_triton_dot

    assert not runs_triton_dot(inputs[0])
    found = torch.autograd.grad((op.relu2_mlp(inputs[0] * 2, *inputs[1:]) + 1).sum(), inputs)
    for x, y in zip(found, expected, strict=True):
        checks.assert_near(x, y.double(), 1e-2)
