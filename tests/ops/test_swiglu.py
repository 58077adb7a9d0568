"""Gated products: by finite differences, and the kernels in the interpreter and on a GPU."""

import pytest
import torch

from newllm_lib.ops.swiglu import reference
from tests.helpers import kernel_checks as checks, phase7_checks


def test_gradients_equal_finite_differences():
    draw = checks.Draw("cpu", torch.float64)
    x = [draw.normal(2, 6) for _ in range(3)]
    torch.autograd.gradcheck(reference.swiglu, x[0])
    torch.autograd.gradcheck(reference.mix, x)
    torch.autograd.gradcheck(reference.group_gate, (x[0], draw.normal(2, 3)))


def test_an_open_gate_takes_the_first_and_a_shut_one_the_second():
    a, b = torch.ones(1), torch.zeros(1)
    assert [float(reference.mix(a, b, torch.tensor([g]))) for g in (100.0, -100.0)] == [1.0, 0.0]
    x = torch.ones(1, 4)
    assert reference.group_gate(x, torch.tensor([[100.0, -100.0]])).tolist() == [[1.0, 1.0, 0.0, 0.0]]


def test_in_the_interpreter():
    checks.run_interpreted("gates")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("rows", "dim", "groups"), [(1, 1, 1), (37, 90, 6), (3000, 2048, 16)])
def test_on_a_gpu(dtype, rows, dim, groups):
    phase7_checks.check_gates("cuda", dtype, rows, dim, groups)
