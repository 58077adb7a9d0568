"""Gates, scan and read-out: the plain version against the equations, the kernels against the plain
version.
"""

import pytest
import torch
import torch.nn.functional as F

from newllm_lib.ops.gated_scan import gated_scan
from tests.helpers import kernel_checks as checks


def _by_hand(projection, bias, weight, doc_starts, mask, state, eps):
    """The token mixer's equations, one token at a time."""
    ys, contexts = [], []
    for t in range(projection.shape[1]):
        i, f, z = projection[:, t].chunk(3, -1)
        a = torch.sigmoid(f + bias)
        a = torch.where(doc_starts[:, t, None], 0.0, a)
        new = a * state + (1 - a) * F.silu(i)
        state = torch.where(mask[:, t, None], new, state)
        contexts.append(state)
        ys.append(F.rms_norm(state, state.shape[-1:], weight, eps) * F.silu(z))
    return torch.stack(ys, 1), torch.stack(contexts, 1), state


@pytest.mark.parametrize(("batch", "time", "dim"), [(1, 1, 1), (2, 7, 3), (3, 30, 5)])
def test_plain_version_is_the_equations(batch, time, dim):
    draw = checks.Draw("cpu", torch.float64)
    doc_starts, mask = draw.flags(batch, time, share=0.2), draw.flags(batch, time, share=0.8)
    projection, bias, weight, state = (
        draw.normal(*s) for s in ((batch, time, 3 * dim), (dim,), (dim,), (batch, dim))
    )
    inputs = [projection, bias, weight, state]
    results = []
    for outputs in (
        _by_hand(projection, bias, weight, doc_starts, mask, state, 1e-6),
        gated_scan(projection, bias, weight, doc_starts, mask, state, 1e-6),
    ):
        loss = sum((x.double() ** 2 * torch.linspace(0.5, 1.5, x.shape[-1])).sum() for x in outputs)
        results.append([*outputs, *torch.autograd.grad(loss, inputs)])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_low_precision_computes_in_float32():
    draw = checks.Draw("cpu", torch.bfloat16)
    projection, weight = draw.normal(2, 60, 12), torch.ones(4)
    y, c, final = gated_scan(projection, None, weight)
    exact, exact_c, _ = gated_scan(projection.double(), None, weight.double())
    assert y.dtype == c.dtype == torch.bfloat16 and final.dtype == torch.float32
    checks.assert_near(c, exact_c, 4e-3)
    checks.assert_near(y, exact, 1e-2)


def test_gates_near_one_keep_their_digits():
    """1 - a of a very long memory: 1e-6 wrong by 6e-8 would be 6 %."""
    projection = torch.tensor([1.0, 13.8, 1.0]).expand(1, 4, 3)
    found = gated_scan(projection, None, torch.ones(1))[1]
    exact = gated_scan(projection.double(), None, torch.ones(1).double())[1]
    checks.assert_near(found, exact, 1e-6)


def test_in_the_interpreter():
    checks.run_interpreted("gated or operator or compiles")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "sizes", [(3, 1, 1), (2, 63, 100), (2, 1000, 513), (2, 1000, 1), (2, 63, 513), (3, 1000, 100)]
)
def test_on_a_gpu(sizes, dtype):
    checks.check_gated_scan("cuda", dtype, *sizes)


@pytest.mark.gpu
def test_other_dtypes_and_a_batch_that_fills_the_gpu():
    checks.check_gated_scan("cuda", torch.float16, 5, 64, 256)
    checks.check_gated_scan("cuda", torch.bfloat16, 600, 40, 256, flags=False, with_state=False)


@pytest.mark.gpu
def test_long_sequences_are_cut_and_agree_with_the_plain_version():
    from newllm_lib.ops.gated_scan import triton

    assert triton.count_chunks(2, 20_000, torch.device("cuda", 0)) > 64
    checks.check_gated_scan("cuda", torch.float32, 1, 20_000, 128)


@pytest.mark.gpu
def test_compiles_without_graph_break():
    draw = checks.Draw("cuda", torch.float32)
    x, weight, bias, norm = draw.normal(2, 40, 32), draw.normal(96, 32), draw.normal(32), draw.normal(32)
    doc_starts = draw.flags(2, 40, share=0.1)

    def function(x, weight, bias, norm):
        y, _, final = gated_scan(F.linear(x, weight), bias, norm, doc_starts)
        return y + x, final

    compiled = torch.compile(function, fullgraph=True)
    results = []
    for version in (function, compiled):
        outputs = version(x, weight, bias, norm)
        results.append(
            [*outputs, *torch.autograd.grad([o.square().sum() for o in outputs], [x, weight, bias, norm])]
        )
    for eager, found in zip(*results, strict=True):
        checks.assert_near(found, eager.double(), 1e-5)
