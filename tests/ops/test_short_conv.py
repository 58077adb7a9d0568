"""The short convolution: documents, tails and padding by their meaning; the kernels against the plain
version.
"""

import pytest
import torch
import torch.nn.functional as F

from newllm_lib.ops.short_conv import reference, short_conv
from tests.helpers import kernel_checks as checks


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
    doc_starts = torch.zeros(2, 12, dtype=torch.bool)
    doc_starts[0, 5] = doc_starts[1, 0] = doc_starts[1, 11] = True
    whole, conv_state = short_conv(x, weight, doc_starts)
    first, middle = short_conv(x[:, :cut], weight, doc_starts[:, :cut])
    second, last = short_conv(x[:, cut:], weight, doc_starts[:, cut:], conv_state=middle)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    torch.testing.assert_close(last, conv_state)
    alone, _ = short_conv(x[:1, 5:], weight)
    torch.testing.assert_close(whole[:1, 5:], alone)


def test_padding_changes_nothing():
    """Each row with padding anywhere gives what its tokens give without it, the new tail included."""
    draw = checks.Draw("cpu", torch.float64)
    x, weight, conv_state = draw.normal(4, 10, 3), draw.normal(3, 4), draw.normal(4, 3, 3)
    doc_starts, mask = draw.flags(4, 10, share=0.2), draw.flags(4, 10, share=0.6)
    mask[3] = False
    u, new_conv_state = short_conv(x, weight, doc_starts, mask, conv_state)
    for row in range(3):
        kept = mask[row]
        expected, expected_tail = short_conv(
            x[row : row + 1, kept], weight, doc_starts[row : row + 1, kept], None, conv_state[row : row + 1]
        )
        torch.testing.assert_close(u[row : row + 1, kept], expected)
        torch.testing.assert_close(new_conv_state[row : row + 1], expected_tail)
    torch.testing.assert_close(new_conv_state[3], conv_state[3])


def test_follows_autocast_and_still_splits_exactly():
    draw = checks.Draw("cpu", torch.float32)
    x, weight = draw.normal(2, 8, 3), draw.normal(3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        whole, _ = short_conv(x, weight)
        first, conv_state = short_conv(x[:, :5], weight)
        second, _ = short_conv(x[:, 5:], weight, conv_state=conv_state.float())
    assert whole.dtype == torch.bfloat16
    torch.testing.assert_close(torch.cat([first, second], 1), whole, rtol=0, atol=0)


def test_gradients_equal_finite_differences():
    draw = checks.Draw("cpu", torch.float64)
    doc_starts, mask = draw.flags(2, 6, share=0.3), draw.flags(2, 6, share=0.7)
    inputs = draw.normal(2, 6, 2), draw.normal(2, 4), draw.normal(2, 3, 2)
    torch.autograd.gradcheck(lambda x, w, t: reference.short_conv(x, w, doc_starts, t), inputs)

    def padded(x, w, t):
        u, conv_state = short_conv(x, w, doc_starts, mask, t)
        return u * mask.unsqueeze(-1), conv_state

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
    x, weight, mask = draw.normal(3, 20, 64), draw.normal(64, 4), draw.flags(3, 20, share=0.7)
    u, conv_state = short_conv(x, weight, None, mask)
    exact, exact_tail = short_conv(x.double(), weight.double(), None, mask)
    checks.assert_near(u * mask.unsqueeze(-1), exact * mask.unsqueeze(-1), 1e-5)
    checks.assert_near(conv_state, exact_tail, 1e-5)
