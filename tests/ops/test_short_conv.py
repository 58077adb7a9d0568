"""The short convolution: documents, tails and padding by their meaning; the kernels against the plain version."""

import pytest
import torch
import torch.nn.functional as F

from newllm_lib.ops.short_conv import reference, short_conv
from tests.ops import kernel_checks as checks


def test_is_torchs_convolution():
    draw = checks.Draw("cpu", torch.float64)
    x, weight = draw.normal(2, 9, 3), draw.normal(3, 4)
    u, _ = short_conv(x, weight)
    conv = F.conv1d(F.pad(x.transpose(1, 2), (3, 0)), weight.flip(1).unsqueeze(1), groups=3).transpose(1, 2)
    torch.testing.assert_close(u, x + conv)


@pytest.mark.parametrize("cut", [1, 2, 6])
def test_goes_on_from_its_tail_and_never_across_a_document_start(cut):
    draw = checks.Draw("cpu", torch.float64)
    x, weight = draw.normal(2, 12, 3), draw.normal(3, 4)
    starts = torch.zeros(2, 12, dtype=torch.bool)
    starts[0, 5] = starts[1, 0] = starts[1, 11] = True
    whole, tail = short_conv(x, weight, starts)
    first, middle = short_conv(x[:, :cut], weight, starts[:, :cut])
    second, last = short_conv(x[:, cut:], weight, starts[:, cut:], tail=middle)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    torch.testing.assert_close(last, tail)
    alone, _ = short_conv(x[:1, 5:], weight)
    torch.testing.assert_close(whole[:1, 5:], alone)


def test_padding_changes_nothing():
    """Each row with padding anywhere gives what its tokens give without it, the new tail included."""
    draw = checks.Draw("cpu", torch.float64)
    x, weight, tail = draw.normal(4, 10, 3), draw.normal(3, 4), draw.normal(4, 3, 3)
    starts, valid = draw.flags(4, 10, share=0.2), draw.flags(4, 10, share=0.6)
    valid[3] = False
    u, new_tail = short_conv(x, weight, starts, valid, tail)
    for row in range(3):
        kept = valid[row]
        expected, expected_tail = short_conv(
            x[row : row + 1, kept], weight, starts[row : row + 1, kept], None, tail[row : row + 1]
        )
        torch.testing.assert_close(u[row : row + 1, kept], expected)
        torch.testing.assert_close(new_tail[row : row + 1], expected_tail)
    torch.testing.assert_close(new_tail[3], tail[3])


def test_follows_autocast_and_still_splits_exactly():
    draw = checks.Draw("cpu", torch.float32)
    x, weight = draw.normal(2, 8, 3), draw.normal(3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        whole, _ = short_conv(x, weight)
        first, tail = short_conv(x[:, :5], weight)
        second, _ = short_conv(x[:, 5:], weight, tail=tail.float())
    assert whole.dtype == torch.bfloat16
    torch.testing.assert_close(torch.cat([first, second], 1), whole, rtol=0, atol=0)


def test_gradients_equal_finite_differences():
    draw = checks.Draw("cpu", torch.float64)
    starts, valid = draw.flags(2, 6, share=0.3), draw.flags(2, 6, share=0.7)
    inputs = draw.normal(2, 6, 2), draw.normal(2, 4), draw.normal(2, 3, 2)
    torch.autograd.gradcheck(lambda x, w, t: reference.short_conv(x, w, starts, t), inputs)

    def padded(x, w, t):
        u, tail = short_conv(x, w, starts, valid, t)
        return u * valid.unsqueeze(-1), tail

    torch.autograd.gradcheck(padded, inputs)


def test_in_the_interpreter():
    checks.run_interpreted("short_conv and not operator")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", [(3, 1, 1), (2, 63, 100), (2, 1000, 513), (2, 1000, 1), (600, 40, 256)])
def test_on_a_gpu(sizes, dtype):
    checks.check_short_conv("cuda", dtype, *sizes)


@pytest.mark.gpu
def test_on_a_gpu_without_tail_and_with_padding():
    checks.check_short_conv("cuda", torch.float16, 2, 63, 64, flags=False, with_tail=False)
    draw = checks.Draw("cuda", torch.float32)
    x, weight, valid = draw.normal(3, 20, 64), draw.normal(64, 4), draw.flags(3, 20, share=0.7)
    u, tail = short_conv(x, weight, None, valid)
    exact, exact_tail = short_conv(x.double(), weight.double(), None, valid)
    checks.assert_near(u * valid.unsqueeze(-1), exact * valid.unsqueeze(-1), 1e-5)
    checks.assert_near(tail, exact_tail, 1e-5)
