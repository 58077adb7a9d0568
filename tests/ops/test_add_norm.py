"""The residual stream's sum, norm and convolution: what they are made of, and the kernels against the plain
version.
"""

import pytest
import torch

from newllm_lib.ops.add_norm import add_norm, add_norm_conv
from newllm_lib.ops.short_conv import short_conv
from tests.helpers import kernel_checks as checks


def draw(batch=2, time=12, dim=3):
    """x, branch, weight, conv_weight and a tail, in float64."""
    random = checks.Draw("cpu", torch.float64)
    stream = random.normal(batch, time, dim), random.normal(batch, time, dim), random.normal(dim)
    return *stream, random.normal(dim, 4), random.normal(batch, 3, dim)


def test_is_a_sum_then_torchs_norm_then_the_short_convolution():
    x, residual, weight, conv_weight, conv_state = draw()
    r, n = add_norm(x, residual, weight)
    torch.testing.assert_close(r, x + residual)
    torch.testing.assert_close(n, torch.nn.functional.rms_norm(x + residual, (3,), weight, 1e-6))
    assert add_norm(x, None, weight)[0] is x
    doc_starts = torch.zeros(2, 12, dtype=torch.bool)
    doc_starts[0, 4] = doc_starts[1, 11] = True
    found, u, new_conv_state = add_norm_conv(x, residual, weight, conv_weight, doc_starts, conv_state)
    expected, expected_tail = short_conv(n, conv_weight, doc_starts, None, conv_state)
    torch.testing.assert_close(found, r)
    torch.testing.assert_close(u, expected)
    torch.testing.assert_close(new_conv_state, expected_tail, check_dtype=False, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_sum_is_rounded_once_and_its_norm_is_of_what_is_stored(dtype):
    draw = checks.Draw("cpu", dtype)
    x, residual, weight = draw.normal(2, 3, 8), draw.normal(2, 3, 8), draw.normal(8, dtype=torch.float32)
    r, n = add_norm(x, residual, weight, 1e-5)
    assert r.dtype == n.dtype == dtype
    assert torch.equal(r, x + residual)
    expected = torch.nn.functional.rms_norm(r.float(), (8,), weight, 1e-5)
    torch.testing.assert_close(n, expected.to(dtype))
    assert torch.equal(add_norm(r, None, weight, 1e-5)[1], n)


@pytest.mark.parametrize("cut", [1, 2, 6])
def test_goes_on_from_its_tail(cut):
    x, residual, weight, conv_weight, _ = (part.detach().float() for part in draw())
    _, whole, end = add_norm_conv(x, residual, weight, conv_weight)
    _, first, conv_state = add_norm_conv(x[:, :cut], residual[:, :cut], weight, conv_weight)
    _, second, last = add_norm_conv(x[:, cut:], residual[:, cut:], weight, conv_weight, None, conv_state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    torch.testing.assert_close(last, end)


def test_in_the_interpreter():
    checks.run_interpreted("add_norm and not operator")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", [(3, 1, 1), (2, 63, 100), (2, 1000, 513), (600, 40, 256)])
def test_on_a_gpu(sizes, dtype):
    batch, time, dim = sizes
    checks.check_add_norm("cuda", dtype, batch * time, dim)
    checks.check_add_norm_conv("cuda", dtype, *sizes)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("rows", "dim", "summed"), [(1, 1, True), (37, 100, False), (5000, 2048, True), (700, 2048, False)]
)
def test_the_sum_and_norm_alone_on_a_gpu(dtype, rows, dim, summed):
    checks.check_add_norm("cuda", dtype, 2 * rows, dim, summed)


@pytest.mark.gpu
def test_on_a_gpu_bare():
    checks.check_add_norm("cuda", torch.float16, 33, 64, with_branch=False)
    checks.check_add_norm_conv(
        "cuda", torch.float16, 2, 63, 64, flags=False, with_tail=False, with_branch=False
    )


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sizes", [(512, 128, 256), (3, 4, 35), (1, 63, 513), (2, 9, 2048)], ids=str)
def test_last_rows_on_a_gpu(sizes, dtype):
    for flags in (True, False):
        checks.check_last_rows("cuda", dtype, *sizes, flags=flags)
