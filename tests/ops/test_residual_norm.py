"""The residual sum and its norm: torch's own, and the kernels in the interpreter and on a GPU."""

import pytest
import torch

from newllm_lib.ops.residual_norm import residual_norm
from tests.ops import kernel_checks as checks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_is_the_sum_and_torchs_norm_of_it(dtype):
    draw = checks.Draw("cpu", dtype)
    x, y, weight = draw.normal(2, 3, 8), draw.normal(2, 3, 8), draw.normal(8, dtype=torch.float32)
    total, normed = residual_norm(x, y, weight, 1e-5)
    assert total.dtype == normed.dtype == dtype
    assert torch.equal(total, x + y)
    expected = torch.nn.functional.rms_norm(total.float(), (8,), weight, 1e-5)
    torch.testing.assert_close(normed, expected.to(dtype))
    assert torch.equal(residual_norm(total, None, weight, 1e-5)[1], normed)


def test_in_the_interpreter():
    checks.run_interpreted("residual")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("rows", "dim", "summed"), [(1, 1, True), (37, 100, False), (5000, 2048, True), (700, 2048, False)])
def test_on_a_gpu(dtype, rows, dim, summed):
    checks.check_residual_norm("cuda", dtype, rows, dim, summed)
