"""Hyperbolic attention: the plain version against the textbook's formulas, the faster ones against the plain one."""

import pytest
import torch

from newllm_lib.ops.hyperbolic_attention import hyperbolic_attention
from tests.ops import kernel_checks as checks


def _into_ball(u, c):
    scaled = c.sqrt() * u.norm(dim=-1, keepdim=True)
    return torch.tanh(scaled) * u / scaled


def _textbook(q, k, v, beta, curvature, seen):
    """The Poincaré ball as textbooks write it, a head at a time; `seen` (batch, queries, keys) bool."""
    out = []
    for head, c in enumerate(curvature):
        x, y = _into_ball(q[:, head], c).unsqueeze(2), _into_ball(k[:, head], c).unsqueeze(1)
        apart = (x - y).square().sum(-1)
        inside = (1 - c * x.square().sum(-1)) * (1 - c * y.square().sum(-1))
        distance = torch.acosh(1 + 2 * c * apart / inside) / c.sqrt()
        out.append((-beta[head] * distance).masked_fill(~seen, float("-inf")).softmax(-1) @ v[:, head])
    return torch.stack(out, 1)


def _seen(starts, window, queries):
    """By brute force: (batch, queries, keys), True where the query may look."""
    batch, keys = starts.shape
    seen = torch.zeros(batch, keys, keys, dtype=torch.bool)
    for b in range(batch):
        for i in range(keys):
            for j in range(i, -1, -1):
                if window is not None and i - j >= window:
                    break
                seen[b, i, j] = True
                if starts[b, j]:
                    break
    return seen[:, keys - queries :]


def _inputs(batch=2, heads=3, queries=11, keys=11, dim=5, dtype=torch.float64, scale=0.6):
    draw = checks.Draw("cpu", dtype)
    q, k, v = (draw.normal(batch, heads, time, dim, scale=scale) for time in (queries, keys, keys))
    beta = torch.linspace(0.5, 2.0, heads, dtype=torch.float64).requires_grad_()
    curvature = torch.linspace(1.5, 0.3, heads, dtype=torch.float64).requires_grad_()
    return [q, k, v, beta, curvature], draw.flags(batch, keys, share=0.2)


@pytest.mark.parametrize(("queries", "window"), [(11, None), (11, 4), (3, None), (1, 5)])
def test_plain_version_is_the_textbook(queries, window):
    inputs, starts = _inputs(queries=queries)
    results = []
    for out in (
        _textbook(*inputs, _seen(starts, window, queries)),
        hyperbolic_attention(*inputs, window=window, starts=starts, backend="reference"),
    ):
        results.append([out, *torch.autograd.grad((out**2 * torch.linspace(0.5, 1.5, 5)).sum(), inputs)])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
