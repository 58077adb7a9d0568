"""The scan's kernels: in the interpreter everywhere, compiled at odd sizes where there is a GPU."""

import pytest
import torch

from tests.ops import kernel_checks as checks

# Every length with every width at least once; both lanes of a half-precision word, a part of a block, several blocks.
ODD_SIZES = [(3, 1, 1), (2, 63, 100), (2, 1000, 513), (1, 1000, 1), (2, 1, 513), (3, 1000, 100), (2, 63, 1)]


def test_in_the_interpreter():
    checks.run_interpreted("context_scan and not gated")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", ODD_SIZES)
def test_on_a_gpu(sizes, dtype):
    checks.check_context_scan("cuda", dtype, *sizes)


@pytest.mark.gpu
def test_float16_and_a_batch_that_fills_the_gpu():
    checks.check_context_scan("cuda", torch.float16, 3, 63, 100)
    checks.check_context_scan("cuda", torch.bfloat16, 600, 40, 256, with_state=False)


@pytest.mark.gpu
def test_long_sequences_are_cut_and_agree_with_the_plain_version():
    from newllm_lib.ops.context_scan import chunked, launch, triton

    draw = checks.Draw("cuda", torch.float32)
    a, b = (0.9 + 0.1 * draw.uniform(1, 20_000, 128)).detach().requires_grad_(), draw.normal(1, 20_000, 128)
    assert launch.count_chunks(2, 20_000, a.device) > 64
    checks.compare(["c", "final", "da", "db"], triton.context_scan, chunked.context_scan, [a, b], 1e-5)


@pytest.mark.gpu
def test_compiles_without_graph_break():
    from newllm_lib.ops.context_scan import triton

    draw = checks.Draw("cuda", torch.float32)
    inputs = [draw.uniform(2, 40, 64), draw.normal(2, 40, 64), draw.normal(2, 64)]

    def function(a, b, state):
        c, final = triton.context_scan(torch.sqrt(a), b * 2, state)
        return c * c, final

    compiled = torch.compile(function, fullgraph=True)
    results = []
    for version in (function, compiled):
        outputs = version(*inputs)
        results.append([*outputs, *torch.autograd.grad([x.sum() for x in outputs], inputs)])
    for eager, found in zip(*results, strict=True):
        torch.testing.assert_close(found, eager)
