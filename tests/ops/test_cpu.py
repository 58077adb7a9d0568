"""Operations whose gradient is written by hand for processors: outputs and every gradient against plain
torch, in float64.
"""

import pytest
import torch

from newllm_lib.ops.add_norm import add_norm, add_norm_conv, reference as stream
from newllm_lib.ops.gated_scan import gated_scan, reference as gated
from newllm_lib.ops.linear_cross_entropy import IGNORE, linear_cross_entropy
from newllm_lib.ops.relu2_mlp import reference as mlp, relu2_mlp
from tests.helpers.kernel_checks import Draw

SIZES = [(1, 2, 1), (2, 9, 5), (3, 23, 7), (2, 16, 4), (1, 128, 6), (2, 67, 3)]


def compare(found, expected, inputs):
    """Outputs, and gradients by all of them together and by each alone: the others are then not needed."""
    random = Draw("cpu", torch.float64, seed=1)
    inputs = [x for x in inputs if x is not None]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
    weights = [random.normal(*y.shape).detach() for y in found]
    for chosen in [range(len(found)), *([i] for i in range(len(found)))]:
        pair = []
        for outputs in (found, expected):
            total = sum((outputs[i] * weights[i]).sum() for i in chosen)
            pair.append(
                torch.autograd.grad(
                    total, inputs, retain_graph=True, allow_unused=True, materialize_grads=True
                )
            )
        for a, b in zip(*pair, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("flags", [True, False])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_gated_scan(sizes, flags):
    draw, (batch, time, dim) = Draw("cpu", torch.float64), sizes
    doc_starts, mask = (draw.flags(batch, time, share=share) if flags else None for share in (0.2, 0.8))
    inputs = draw.normal(batch, time, 3 * dim), draw.normal(dim), draw.normal(dim), draw.normal(batch, dim)
    projection, bias, weight, initial = inputs
    arguments = projection, bias, weight, doc_starts, mask, initial, 1e-6
    compare(gated_scan(*arguments), gated.gated_scan(*arguments), inputs)
    plain = projection, None, weight
    compare(gated_scan(*plain), gated.gated_scan(*plain), [projection, weight])


@pytest.mark.parametrize("flags", [True, False])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_the_stream(sizes, flags):
    draw, (batch, time, dim) = Draw("cpu", torch.float64), sizes
    doc_starts = draw.flags(batch, time, share=0.2) if flags else None
    x, other, weight = draw.normal(batch, time, dim), draw.normal(batch, time, dim), draw.normal(dim)
    conv_weight, some = draw.normal(dim, 4), draw.normal(batch, 3, dim)
    for residual in (None, other):
        compare(
            add_norm(x, residual, weight, 1e-6),
            stream.add_norm(x, residual, weight, 1e-6),
            [x, residual, weight],
        )
        for conv_state in (None, some):
            arguments = x, residual, weight, conv_weight, doc_starts, conv_state, 1e-6
            compare(
                add_norm_conv(*arguments)[:2],
                stream.add_norm_conv(*arguments),
                [x, residual, weight, conv_weight, conv_state],
            )


@pytest.mark.parametrize("shape", [(7,), (2, 3), ()], ids=str)
def test_relu2_mlp(shape):
    draw = Draw("cpu", torch.float64)
    inputs = draw.normal(*shape, 5), draw.normal(11, 5), draw.normal(5, 11)
    compare([relu2_mlp(*inputs)], [mlp.relu2_mlp(*inputs)], inputs)


@pytest.mark.parametrize("ignored", [0, 2, 5])
def test_a_loss_is_exact_where_a_probability_is_not_a_float(ignored):
    torch.manual_seed(0)
    hidden, head = torch.randn(5, 4), torch.randn(9, 4)
    hidden[0] *= 300  # probabilities far below float32's smallest number
    labels = torch.tensor([int((hidden[0] @ head.T).argmin()), 1, 2, 3, 8])
    labels[5 - ignored :] = IGNORE
    hidden, head = hidden.requires_grad_(), head.requires_grad_()
    found = linear_cross_entropy(hidden, head, labels, 5)
    exact = [x.detach().double().requires_grad_() for x in (hidden, head)]
    expected = (
        torch.nn.functional.cross_entropy(exact[0] @ exact[1].T, labels, ignore_index=IGNORE, reduction="sum")
        / 5
    )
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)
    for a, b in zip(
        torch.autograd.grad(found, [hidden, head]), torch.autograd.grad(expected, exact), strict=True
    ):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5)
