"""One decoding step of the token mixer: the same as the sequence of length 1, plain and as kernels."""

import pytest
import torch

from newllm_lib.ops.gated_scan import reference as scan
from newllm_lib.ops.short_conv import reference as conv
from tests.helpers import kernel_checks as checks


@pytest.mark.parametrize(("width", "flags"), [(1, False), (2, True), (4, True), (4, False)])
def test_plain(width, flags):
    checks.check_steps("cpu", torch.float32, conv, scan, 3, 5, width, flags)


def test_in_the_interpreter():
    checks.run_interpreted("decoding_steps")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("batch", "dim", "width"), [(1, 1, 4), (3, 100, 4), (1, 513, 2), (64, 256, 4), (2, 1024, 1)]
)
def test_on_a_gpu(dtype, batch, dim, width):
    from newllm_lib.ops.gated_scan import triton as scan
    from newllm_lib.ops.short_conv import triton as conv

    checks.check_steps("cuda", dtype, conv, scan, batch, dim, width)
