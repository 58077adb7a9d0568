"""Phase 7's layers against their equations, one token at a time, and their gradients against finite
differences.
"""

import math

import torch
import torch.nn.functional as F

from newllm_lib.layers.ar_ssm import ARSSM
from newllm_lib.layers.local_attention import LocalAttention
from newllm_lib.layers.phase7_block import SwiGLU
from newllm_lib.layers.rotary import rotated, rotation


def drawn(module, seed=0):
    """The module in float64, all its parameters drawn anew."""
    generator = torch.Generator().manual_seed(seed)
    module.double()
    for p in module.parameters():
        p.data = 0.5 * torch.randn(p.shape, generator=generator, dtype=torch.float64)
    return module


def normal(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_ar_ssm_is_its_equations():
    layer, x = drawn(ARSSM(6, 8, 3, 4)), normal(1, 9, 6)
    y, state = layer(x, torch.zeros(1, layer.state_size), None, None)
    c = torch.zeros(8, dtype=torch.float64)
    for t in range(9):
        u = x[0, t] + sum(layer.conv[:, k] * x[0, t - k] for k in range(3) if t >= k)
        i, f, z = (layer.project.weight @ u).chunk(3)
        a = torch.sigmoid(f + layer.forget_bias)
        c = a * c + (1 - a) * F.silu(i)
        read = c / torch.sqrt(c.square().mean() + 1e-6) * layer.norm * F.silu(z)
        ranks = torch.sigmoid(layer.ranks.weight @ u + layer.ranks.bias)
        torch.testing.assert_close(y[0, t], layer.out.weight @ (read * ranks.repeat_interleave(2)))
    torch.testing.assert_close(state[0, :8].double(), c, rtol=1e-6, atol=1e-6)


def test_attention_is_a_softmax_of_distances_in_the_ball():
    layer, x, window, factor = (
        drawn(LocalAttention(8, 2, 4, "hyperbolic", True)),
        normal(1, 7, 8),
        4,
        torch.tensor(0.7),
    )
    turn = rotation(7, 4, x.device)
    found, _ = layer(x, None, turn, None, None, factor, False)
    q, k, v = (t.view(7, 2, 4).transpose(0, 1) for t in layer.project(x)[0].chunk(3, -1))
    q, k = (rotated(t[None], turn)[0] / math.sqrt(4) for t in (q, k))

    def point(u, c):  # the exponential map at the origin
        norm = u.norm()
        return torch.tanh(c.sqrt() * norm) * u / (c.sqrt() * norm)

    def distance(a, b, c):
        share = 2 * c * (a - b).square().sum() / ((1 - c * a.square().sum()) * (1 - c * b.square().sum()))
        return torch.acosh(1 + share) / c.sqrt()

    for head in range(2):
        beta, c = layer.log_beta[head].exp(), layer.log_curvature[head].exp() * factor
        for t in range(7):
            seen = range(max(0, t - window + 1), t + 1)
            scores = torch.stack(
                [-beta * distance(point(q[head, t], c), point(k[head, s], c), c) for s in seen]
            )
            expected = scores.softmax(0) @ v[head, list(seen)]
            torch.testing.assert_close(found[0, t, 4 * head : 4 * head + 4], expected, rtol=1e-5, atol=1e-6)


def test_rotated_products_depend_on_how_far_apart_two_places_are():
    q, k = normal(1, 1, 1, 6), normal(1, 1, 1, 6, seed=2)
    turned = [
        [rotated(x.expand(1, 1, 9, 6), rotation(9, 6, x.device))[0, 0] for x in (a, b)] for a, b in ((q, k),)
    ][0]
    products = turned[0] @ turned[1].T
    for apart in range(-8, 9):
        found = products.diagonal(apart)
        torch.testing.assert_close(found, found[:1].expand_as(found), rtol=1e-5, atol=1e-5)


def test_gradients_are_finite_differences():
    ssm, mlp = drawn(ARSSM(3, 4, 2, 2)), drawn(SwiGLU(3, 4))
    x, state = normal(2, 4, 3).requires_grad_(), torch.zeros(2, ssm.state_size)
    doc_starts = torch.tensor([[True, False, False, False], [False, False, True, False]])
    assert torch.autograd.gradcheck(lambda x, *_: ssm(x, state, doc_starts, None)[0], (x, *ssm.parameters()))
    assert torch.autograd.gradcheck(lambda x, *_: mlp(x), (x, *mlp.parameters()))
