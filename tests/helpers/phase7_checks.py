"""Checks of Phase 7's and Phase 8's kernels, and of the memory-saving optimizers' norms; how, `kernel_checks`
says.
"""

import torch

from tests.helpers.kernel_checks import (
    TOLERANCE,
    Draw,
    assert_near,
    compare,
    outputs_and_gradients,
    poisoned_buffers,
)


def check_gates(device, dtype, rows, dim, groups, seed=0):
    from newllm_lib.ops.swiglu import reference, triton

    draw = Draw(device, dtype, seed)
    x = [draw.normal(2, rows, dim) for _ in range(3)]
    for name, inputs in (
        ("swiglu", [draw.normal(2, rows, 2 * dim)]),
        ("mix", x),
        ("group_gate", [x[0], draw.normal(2, rows, groups)]),
    ):
        run, plain = (
            lambda *t, module=module, name=name: (getattr(module, name)(*t),)
            for module in (triton, reference)
        )
        compare([name], run, plain, inputs, TOLERANCE[dtype])


def check_packed_attention(device, dtype, batch, heads, time, dim, window, documents=False, seed=0):
    """Against rotating, then attending: the projection's gradient and those of beta and curvature."""
    from newllm_lib.layers.rotary import rotated, rotation
    from newllm_lib.ops.hyperbolic_attention import hyperbolic_attention
    from newllm_lib.ops.hyperbolic_attention.triton import packed_attention_

    draw, turn, scale = Draw(device, dtype, seed), rotation(time, dim, device), dim**-0.5
    doc_starts = draw.flags(batch, time, share=0.05) if documents else None
    positive = [
        torch.linspace(*ends, heads, device=device).requires_grad_() for ends in ((0.5, 2.0), (1.5, 0.3))
    ]

    def packed(qkv, *parameters):
        sizes = {"window": window, "heads": heads, "scale": scale, "doc_starts": doc_starts}
        return (packed_attention_(qkv * 1, turn, *parameters, **sizes),)

    def plain(qkv, *parameters):
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in qkv.chunk(3, -1))
        q, k = (rotated(x, tuple(t.double() for t in turn), scale) for x in (q, k))
        y = hyperbolic_attention(
            q, k, v, *parameters, window=window, doc_starts=doc_starts, backend="reference"
        )
        return (y.transpose(1, 2).flatten(2),)

    # The rotated vectors are stored in `dtype`, which the gradients see twice.
    tolerance = {torch.float32: 5e-5, torch.float16: 1e-2, torch.bfloat16: 3e-2}[dtype]
    inputs = [draw.normal(batch, time, 3 * heads * dim), *positive]
    compare(["out", "dqkv", "dbeta", "dcurvature"], packed, plain, inputs, tolerance)


def check_visibility(device):
    from newllm_lib.ops.hyperbolic_attention import reference, triton

    draw = Draw(device, torch.float32)
    for batch, time, window, share in (
        (1, 1, 1, 0.5),
        (3, 50, 7, 0.1),
        (2, 1500, 64, 0.01),
        (2, 40, 40, 0.0),
    ):
        doc_starts = draw.flags(batch, time, share=share)
        first = triton.first_visible_on_gpu(doc_starts, window)
        assert torch.equal(
            first, reference.first_visible(batch, time, window, doc_starts, torch.device(device))
        )
        assert torch.equal(triton.last_seeing_on_gpu(first), reference.last_seeing(first))


def check_gradient_norms(device, dtype, rows, columns, seed=0):
    """Each function against the plain one in the same precision, and averages that a gradient without a norm
    leaves alone.
    """
    from newllm_lib.ops.gradient_norms import reference, triton

    draw = Draw(device, dtype, seed)
    x = draw.normal(rows, columns).detach()

    def run(module, scale):
        known, averages = (
            torch.arange(5.0, device=device),
            [torch.full((n,), 0.5, device=device) for n in (rows, columns)],
        )
        sums = module.squares(x)
        clipped = [module.clip(known, 3, sums[0].sum() * scale, limit) for limit in (0.0, 1.5)]
        skipped, loss_scale = torch.zeros(5, device=device), torch.tensor(8.0, device=device)
        clipped += [module.clip(known, 2, sums[0].sum() * scale, 1.5, loss_scale, skipped), skipped]
        factors = module.second_moment(sums, *averages, scale, 0.1, 0.7)
        limits = [module.limited(x, factors, s) for s in (scale, 0.01 * scale)]
        return [*sums, known, *clipped, *averages, *factors, *limits]

    with poisoned_buffers():
        for scale in (2.0, float("nan"), float("inf")):
            scale = torch.full((1,), scale, device=device)
            found, expected = run(triton, scale), run(reference, scale)
            for a, b in zip(found, expected, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=0.0, equal_nan=True)
    assert (found[7] == 0.5).all() and (found[8] == 0.5).all()


def check_hyperbolic_attention(
    device,
    dtype,
    batch,
    heads,
    queries,
    keys,
    dim,
    window=None,
    documents=False,
    backend="triton",
    scale=1.5,
    seed=0,
):
    """Outputs and the gradients of q, k and v as near as elsewhere; those of beta and curvature against their
    own terms.

    Both are sums over all queries of terms of either sign, which random gradients let cancel: the error is
    compared with the norm of the queries' terms, of which the sum of random ones would be as large.
    """
    from newllm_lib.ops.hyperbolic_attention import hyperbolic_attention

    draw = Draw(device, dtype, seed)
    times = (queries, scale * dim**-0.5), (keys, scale * dim**-0.5), (keys, 1.0)
    q, k, v = (draw.normal(batch, heads, time, dim, scale=size) for time, size in times)
    beta = torch.linspace(0.5, 2.0, heads, device=device).requires_grad_()
    curvature = torch.linspace(1.5, 0.3, heads, device=device).requires_grad_()
    doc_starts = draw.flags(batch, keys, share=0.05) if documents else None

    def run(backend):
        return lambda *inputs: (
            hyperbolic_attention(*inputs, window=window, doc_starts=doc_starts, backend=backend),
        )

    inputs = [q, k, v, beta, curvature]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    expected, upstream = outputs_and_gradients(run("reference"), exact, None, seed)
    with poisoned_buffers():
        found, _ = outputs_and_gradients(run(backend), inputs, upstream, seed)
    tolerance = {torch.float32: 2e-5, torch.float16: 3e-3, torch.bfloat16: 1e-2}[dtype]
    for name, x, y in zip(["out", "dq", "dk", "dv"], found, expected, strict=False):
        assert_near(x, y, tolerance, name)
    assert_sums_near(
        run("reference"), exact, upstream[0], found, expected, {3: "dbeta", 4: "dcurvature"}, 3 * tolerance
    )


def assert_sums_near(reference, exact, upstream, found, expected, parameters, tolerance):
    """The gradients of some inputs (heads,), each a sum over all vectors of its head of terms of either sign.

    Args:
        exact: all inputs in float64. upstream: of the only output (batch, heads, time, …). found, expected:
        output and gradients.
        parameters: place among the inputs -> name.
    """
    for index, name in parameters.items():
        # Only a head's own output depends on its parameter: one derivative forward gives the terms of all
        # vectors.
        tangents = [
            torch.ones_like(x) if place == index else torch.zeros_like(x) for place, x in enumerate(exact)
        ]
        (_, moved) = torch.func.jvp(reference, tuple(x.detach() for x in exact), tuple(tangents))
        terms = (moved[0] * upstream.double()).sum(-1)
        size = torch.maximum(terms.norm(dim=(0, 2)), expected[index + 1].abs()).clamp_min(
            1e-30
        )  # far out all is flat
        error = (found[index + 1].double() - expected[index + 1]).abs() / size
        assert error.max() < tolerance, f"{name}: {error.tolist()}"


def check_linear_attention(
    device,
    dtype,
    batch,
    heads,
    time,
    features,
    dim,
    documents=False,
    backend="triton",
    loss_in_state=True,
    seed=0,
):
    """Outputs, the new state, and the gradients of all that goes in."""
    from newllm_lib.ops.linear_attention import linear_attention

    draw = Draw(device, dtype, seed)
    q, k = (draw.normal(batch, heads, time, features).detach().softmax(-1).requires_grad_() for _ in range(2))
    v = draw.normal(batch, time, heads, dim).transpose(1, 2)  # as a projection gives it
    log_decay = (
        draw.normal(batch, heads, time, dtype=torch.float32)
        .detach()
        .sigmoid()
        .mul(0.5)
        .add(0.5)
        .log()
        .requires_grad_()
    )
    state = draw.normal(batch, heads, dim + 1, features, dtype=torch.float32).detach().abs().requires_grad_()
    doc_starts = draw.flags(batch, time, share=0.05) if documents else None

    def run(backend):
        def function(*x):
            out, new = linear_attention(*x[:4], doc_starts=doc_starts, state=x[4], backend=backend)
            return (out, new) if loss_in_state else (out,)

        return function

    names = ["out", "state"][: 1 + loss_in_state] + ["dq", "dk", "dv", "dlog_decay", "dstate"]
    tolerance = {torch.float32: 3e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}[dtype]
    compare(
        names,
        run(backend),
        run("reference"),
        [q, k, v.detach().requires_grad_(), log_decay, state],
        tolerance,
    )


def check_horosphere_features(device, dtype, batch, heads, time, features, dim, scale=1.0, seed=0):
    """Features and the gradients of vectors and boundary points as near as elsewhere; those of sharpness and
    curvature against their own terms, as in `check_hyperbolic_attention`."""
    from newllm_lib.ops.linear_attention import horosphere_features

    draw = Draw(device, dtype, seed)
    u = (
        draw.normal(batch, time, heads, dim, scale=scale * dim**-0.5)
        .detach()
        .transpose(1, 2)
        .requires_grad_()
    )
    directions = draw.normal(heads, features, dim, dtype=torch.float32)
    sharpness = torch.linspace(3.0, 9.0, heads, device=device).requires_grad_()
    curvature = torch.linspace(1.5, 0.3, heads, device=device).requires_grad_()

    def run(backend):
        return lambda *x: (horosphere_features(*x, backend=backend),)

    tolerance = {torch.float32: 3e-5, torch.float16: 3e-3, torch.bfloat16: 1e-2}[dtype]
    inputs = [u, directions, sharpness, curvature]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    expected, upstream = outputs_and_gradients(run("reference"), exact, None, seed + 1)
    with poisoned_buffers():
        found, _ = outputs_and_gradients(run("triton"), inputs, upstream, seed + 1)
    for name, x, y in zip(["features", "du", "ddirections"], found, expected, strict=False):
        assert_near(x, y, tolerance, name)
    sums = {2: "dsharpness", 3: "dcurvature"}
    assert_sums_near(run("reference"), exact, upstream[0], found, expected, sums, 3 * tolerance)


def check_extreme_points(device, dtype, backend):
    """Everything finite with points at the origin, at and far beyond the boundary's last digit, together and
    opposite.
    """
    from newllm_lib.ops.hyperbolic_attention import hyperbolic_attention

    draw = Draw(device, dtype)
    u, v = draw.normal(1, 1, 40, 16).detach(), draw.normal(1, 1, 40, 16)
    u = torch.nn.functional.normalize(u.float(), dim=-1) * torch.tensor(
        [0.0, 1e-6, 1e-3, 1.0, 9.0, 30.0, 100.0, 500.0]
    )[torch.arange(40, device="cpu") % 8].to(device).unsqueeze(-1)
    u[:, :, 16:24] = u[:, :, 8:16]
    u[:, :, 24:32] = -u[:, :, 8:16]
    q, k = (u.to(dtype).requires_grad_() for _ in "qk")
    for beta, curvature in ((1.0, 1.0), (20.0, 1e-2), (0.1, 10.0)):
        parameters = [torch.full((1,), x, device=device, requires_grad=True) for x in (beta, curvature)]
        with poisoned_buffers():
            out = hyperbolic_attention(q, k, v, *parameters, backend=backend)
            gradients = torch.autograd.grad(out.float().sum(), [q, k, v, *parameters])
        assert all(x.isfinite().all() for x in (out, *gradients)), (beta, curvature)
        assert_near(
            out[:, :, 0], v[:, :, 0].detach().double(), 1e-6, "the first token, which sees itself alone"
        )
