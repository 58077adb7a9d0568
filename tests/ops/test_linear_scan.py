"""The chunked scan equals the loop: outputs, final state and every gradient, at odd sizes and with documents
that start anew.
"""

import pytest
import torch

from newllm_lib.ops.common.linear_scan import linear_scan


def _loop(a, b, state=None):
    """c_t = a_t * c_{t-1} + b_t, one step at a time."""
    state, contexts = torch.zeros_like(b[:, 0]) if state is None else state, []
    for t in range(b.shape[1]):
        state = a[:, t] * state + b[:, t]
        contexts.append(state)
    return torch.stack(contexts, 1), state


def _inputs(batch, time, dim, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    a = torch.rand(batch, time, dim, generator=generator, dtype=torch.float64)
    a[torch.rand(batch, time, 1, generator=generator).expand_as(a) < 0.2] = 0.0  # document starts
    b = torch.randn(batch, time, dim, generator=generator, dtype=torch.float64)
    state = torch.randn(batch, dim, generator=generator, dtype=torch.float64)
    return [x.to(dtype).requires_grad_() for x in (a, b, state)]


def _results(scan, inputs, with_state=True):
    a, b, state = inputs
    c, final = scan(a, b, state if with_state else None)
    weight = torch.linspace(0.5, 1.5, c.numel(), dtype=torch.float64).reshape(c.shape)
    loss = (c.double() * weight).sum() + (final.double() ** 2).sum()
    wanted = [a, b, state] if with_state else [a, b]
    return [c, final, *torch.autograd.grad(loss, wanted)]


@pytest.mark.parametrize(
    ("batch", "time", "dim"), [(1, 1, 1), (2, 2, 3), (3, 7, 5), (1, 63, 1), (2, 64, 17), (1, 1000, 3)]
)
@pytest.mark.parametrize("with_state", [True, False])
def test_chunked_equals_loop(batch, time, dim, with_state):
    expected = _results(_loop, _inputs(batch, time, dim), with_state)
    found = _results(linear_scan, _inputs(batch, time, dim), with_state)
    for x, y in zip(expected, found, strict=True):
        torch.testing.assert_close(y, x, rtol=1e-10, atol=1e-10)


def test_gradients_equal_finite_differences():
    torch.autograd.gradcheck(linear_scan, _inputs(2, 6, 3))


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)]
)
def test_low_precision_accumulates_in_float32(dtype, tolerance):
    low = _inputs(2, 200, 9, dtype)
    exact = _loop(*[x.detach().double() for x in low])
    c, final = linear_scan(*low)
    assert c.dtype == dtype and final.dtype == torch.float32
    for x, y in zip(exact, (c, final), strict=True):
        assert (y.double() - x).norm() / x.norm() < tolerance


def test_a_split_sequence_continues_from_its_state():
    a, b, state = _inputs(2, 50, 4)
    whole, final = linear_scan(a, b, state)
    first, middle = linear_scan(a[:, :17], b[:, :17], state)
    second, last = linear_scan(a[:, 17:], b[:, 17:], middle)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    torch.testing.assert_close(last, final)
