"""Linear attention and its hyperbolic features: against textbook formulas, and the chunked version against
the plain one.
"""

import pytest
import torch

from newllm_lib.evaluation.memory import peak_memory
from newllm_lib.ops.linear_attention import chunked, horosphere_features, linear_attention
from newllm_lib.ops.linear_attention.reference import log_horospheres
from tests.helpers import kernel_checks as checks, phase7_checks

NAMES = ["out", "state", "dq", "dk", "dv", "dlog_decay", "dstate"]


def _inputs(batch=2, heads=3, time=11, features=5, dim=4, dtype=torch.float64, device="cpu", share=0.2):
    """Positive features that sum to 1, decays between 0.3 and 1, a state from earlier tokens; and document
    starts.
    """
    draw = checks.Draw(device, dtype)
    q, k = (draw.normal(batch, heads, time, features).detach().softmax(-1).requires_grad_() for _ in range(2))
    v = draw.normal(batch, heads, time, dim)
    log_decay = (
        draw.normal(batch, heads, time, dtype=torch.float32).detach().sigmoid().mul(0.7).add(0.3).log()
    )
    state = draw.normal(batch, heads, dim + 1, features, dtype=torch.float32).detach().abs()
    if dtype == torch.float64:
        log_decay, state = log_decay.double(), state.double()
    return [q, k, v, log_decay.requires_grad_(), state.requires_grad_()], draw.flags(batch, time, share=share)


def _token_by_token(q, k, v, log_decay, state, doc_starts):
    """The recurrence S_t = f_t S_{t-1} + [v_t, 1] k_t', out_t = S_t q_t, divided by its last number."""
    out = []
    for t in range(q.shape[2]):
        kept = log_decay[:, :, t].exp() * ~doc_starts[:, t : t + 1]
        value = torch.cat([v[:, :, t], torch.ones_like(v[:, :, t, :1])], -1)
        state = kept[..., None, None] * state + value.unsqueeze(-1) * k[:, :, t].unsqueeze(-2)
        sums = (state @ q[:, :, t].unsqueeze(-1)).squeeze(-1)
        out.append(sums[..., :-1] / sums[..., -1:])
    return torch.stack(out, 2), state


def _gradients(function, inputs):
    outputs = function(*inputs)
    loss = sum((x * torch.linspace(0.5, 1.5, x.shape[-1], dtype=x.dtype)).square().sum() for x in outputs)
    return [*outputs, *torch.autograd.grad(loss, inputs)]


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_plain_version_is_the_recurrence(share):
    inputs, doc_starts = _inputs(share=share)
    expected = _gradients(lambda *x: _token_by_token(*x, doc_starts), inputs)
    found = _gradients(
        lambda *x: linear_attention(*x[:4], doc_starts=doc_starts, state=x[4], backend="reference"), inputs
    )
    for name, a, b in zip(NAMES, found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("time", [1, 2, 7, 16, 37])
@pytest.mark.parametrize("with_starts", [True, False])
@pytest.mark.parametrize("chunk", [4, 16])
def test_chunks_change_nothing_nor_any_gradient(time, with_starts, chunk):
    inputs, doc_starts = _inputs(time=time)
    doc_starts = doc_starts if with_starts else None
    expected = _gradients(
        lambda *x: linear_attention(*x[:4], doc_starts=doc_starts, state=x[4], backend="reference"), inputs
    )
    found = _gradients(lambda *x: chunked.linear_attention(*x[:4], doc_starts, x[4], chunk), inputs)
    for name, a, b in zip(NAMES, found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")


def test_gradients_are_finite_differences():
    inputs, doc_starts = _inputs(batch=1, heads=2, time=5, features=3, dim=2)
    assert torch.autograd.gradcheck(lambda *x: chunked.linear_attention(*x[:4], doc_starts, x[4], 2), inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [(1, 2, 9, 8, 6), (2, 3, 65, 7, 5), (1, 2, 150, 16, 24)], ids=str)
def test_in_single_and_half_precision_it_is_near_the_plain_one(dtype, size):
    inputs, doc_starts = _inputs(*size, dtype=dtype)

    def plain(*x):
        return linear_attention(*x[:4], doc_starts=doc_starts, state=x[4], backend="reference")

    def found(*x):
        return linear_attention(*x[:4], doc_starts=doc_starts, state=x[4], backend="chunked")

    tolerance = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}[dtype]
    checks.compare(NAMES, found, plain, inputs, tolerance)


def test_later_tokens_change_nothing_before_them():
    (q, k, v, log_decay, state), doc_starts = _inputs(time=40)
    before, _ = chunked.linear_attention(q, k, v, log_decay, doc_starts, state, 8)
    for cut in (1, 7, 8, 23, 39):
        changed = [torch.cat([x[:, :, :cut], x[:, :, cut:].flip(2) * 0.5], 2) for x in (q, k, v, log_decay)]
        after, _ = chunked.linear_attention(*changed, doc_starts, state, 8)
        torch.testing.assert_close(after[:, :, :cut], before[:, :, :cut], rtol=0, atol=1e-12)
        assert not torch.allclose(after[:, :, cut], before[:, :, cut])


def test_a_text_in_pieces_is_the_whole_text():
    (q, k, v, log_decay, state), doc_starts = _inputs(time=50)
    whole, last = linear_attention(q, k, v, log_decay, doc_starts=doc_starts, state=state)
    cuts, parts = [0, 1, 2, 20, 33, 34, 50], []
    for begin, end in zip(cuts, cuts[1:], strict=False):
        piece = [x[:, :, begin:end] for x in (q, k, v, log_decay)]
        out, state = linear_attention(*piece, doc_starts=doc_starts[:, begin:end], state=state)
        parts.append(out)
    torch.testing.assert_close(torch.cat(parts, 2), whole)
    torch.testing.assert_close(state, last)


def test_a_document_is_read_as_if_alone_and_padding_leaves_no_trace():
    (q, k, v, log_decay, state), _ = _inputs(time=30)
    doc_starts = torch.zeros(2, 30, dtype=torch.bool)
    doc_starts[:, 13] = True
    out, last = chunked.linear_attention(q, k, v, log_decay, doc_starts, state, 8)
    conv_state = [x[:, :, 13:] for x in (q, k, v, log_decay)]
    alone, after = linear_attention(*conv_state)
    torch.testing.assert_close(out[:, :, 13:], alone)
    torch.testing.assert_close(last, after)
    padded = [torch.cat([x, torch.zeros_like(x)], 2) for x in conv_state[1:]]
    _, behind = chunked.linear_attention(
        torch.cat([conv_state[0], conv_state[0]], 2), *padded, None, torch.zeros_like(state), 8
    )
    torch.testing.assert_close(behind, after)


def test_where_nothing_is_seen_the_answer_is_finite():
    (q, k, v, log_decay, state), _ = _inputs(time=9)
    nothing = torch.zeros_like
    for backend in ("chunked", "reference"):
        out, last = linear_attention(
            q, nothing(k), v, nothing(log_decay), state=nothing(state), backend=backend
        )
        assert torch.equal(out, torch.zeros_like(out)) and not last.any()


def test_very_strong_forgetting_is_no_nan():
    (q, k, v, log_decay, state), doc_starts = _inputs(time=40, dtype=torch.float32)
    strong = (log_decay.detach() * 1e5).requires_grad_()
    out, last = chunked.linear_attention(q, k, v, strong, doc_starts, state, 8)
    torch.testing.assert_close(out, v)  # each token sees itself alone
    gradients = torch.autograd.grad(out.square().sum() + last.square().sum(), [q, k, v, strong, state])
    assert all(g.isfinite().all() for g in gradients)


def test_memory_for_a_token_is_the_same_however_long_the_text():
    def held(time):
        inputs, _ = _inputs(1, 2, time, 16, 16, torch.float32)

        def step():
            out, _ = linear_attention(*inputs[:4])
            torch.autograd.grad(out.sum(), inputs[:4])

        return peak_memory(step, torch.device("cpu")) / time

    assert held(4096) < 1.1 * held(512)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"k": (2, 3, 10, 5)}, "do not fit"),
        ({"doc_starts": (2, 10)}, "doc_starts"),
        ({"state": (2, 3, 4, 5)}, "dim \\+ 1"),
        ({"backend": "magic"}, "magic"),
    ],
)
def test_what_does_not_fit_is_named(change, words):
    (q, k, v, log_decay, state), doc_starts = _inputs()
    arguments = dict(doc_starts=doc_starts, state=state, backend="auto")
    k = torch.zeros(change.pop("k")) if "k" in change else k
    arguments |= {name: torch.zeros(x) if isinstance(x, tuple) else x for name, x in change.items()}
    with pytest.raises(ValueError, match=words):
        linear_attention(q, k, v, log_decay, **arguments)


def test_in_the_interpreter():
    checks.run_interpreted("linear")


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("dtype", "features", "dim"),
    [
        (torch.bfloat16, 64, 64),
        (torch.bfloat16, 64, 128),
        (torch.bfloat16, 20, 40),
        (torch.bfloat16, 128, 128),
        (torch.float32, 64, 64),
        (torch.float16, 64, 64),
    ],
)
def test_on_a_gpu(dtype, features, dim):
    phase7_checks.check_linear_attention("cuda", dtype, 2, 3, 333, features, dim, True)
    phase7_checks.check_linear_attention("cuda", dtype, 1, 2, 1, features, dim, True)
    phase7_checks.check_linear_attention("cuda", dtype, 2, 2, 130, features, dim, backend="chunked")


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("dtype", "features", "dim"),
    [(torch.bfloat16, 64, 64), (torch.bfloat16, 64, 128), (torch.float32, 20, 40), (torch.float16, 64, 64)],
)
def test_features_on_a_gpu(dtype, features, dim):
    phase7_checks.check_horosphere_features("cuda", dtype, 2, 3, 333, features, dim)


@pytest.mark.gpu
def test_one_document_on_a_gpu():
    phase7_checks.check_linear_attention("cuda", torch.bfloat16, 2, 3, 333, 64, 64)


@pytest.mark.gpu
def test_a_long_text_on_a_gpu_is_as_in_chunks_of_torch():
    """16,384 tokens: against the chunked version in float64, since all pairs at once would take gigabytes."""
    (q, k, v, log_decay, state), doc_starts = _inputs(
        1, 2, 16_384, 64, 64, torch.bfloat16, "cuda", share=0.001
    )
    log_decay = (log_decay.detach() * 0.01).requires_grad_()
    given, results = (q, k, v, log_decay, state), []
    for backend, precise in (("triton", False), ("chunked", True)):
        inputs = [(x.double() if precise else x).detach().requires_grad_() for x in given]
        out, new = linear_attention(*inputs[:4], doc_starts=doc_starts, state=inputs[4], backend=backend)
        weigh = torch.linspace(-1, 1, 64, device="cuda", dtype=out.dtype)
        results.append([out, new, *torch.autograd.grad((out * weigh).sum(), inputs)])
    for name, found, expected in zip(NAMES, *results, strict=True):
        checks.assert_near(found, expected.detach(), 3e-2, name)


@pytest.mark.gpu
def test_compiles_without_graph_break_on_a_gpu():
    (q, k, v, log_decay, state), doc_starts = _inputs(2, 2, 100, 32, 64, torch.bfloat16, "cuda")

    def function(*x):
        return linear_attention(*x[:4], doc_starts=doc_starts, state=x[4])[0].tanh()

    inputs = [q, k, v, log_decay, state]
    both = function, torch.compile(function, fullgraph=True)
    eager, compiled = (torch.autograd.grad(f(*inputs).float().square().sum(), inputs) for f in both)
    for x, y in zip(compiled, eager, strict=True):
        checks.assert_near(x, y.double(), 1e-2)


# --- the feature map
# --------------------------------------------------------------------------------------------------


def _points(count=6, dim=3, scale=0.5):
    return (
        torch.randn(1, 1, count, dim, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * scale
    )


def _distance(x, y, c):
    """The Poincaré ball's, of two tangent vectors at its centre."""
    x, y = (torch.tanh(c.sqrt() * u.norm()) * u / (c.sqrt() * u.norm()) for u in (x, y))
    share = 2 * c * (x - y).square().sum() / ((1 - c * x.square().sum()) * (1 - c * y.square().sum()))
    return torch.acosh(1 + share) / c.sqrt()


@pytest.mark.parametrize("curvature", [1.0, 0.4])
def test_averaged_over_the_boundary_horospheres_see_hyperbolic_distance_alone(curvature):
    """In three dimensions the spherical function is D / sinh D, with D = √c times the distance."""
    c, u = torch.tensor([curvature], dtype=torch.float64), _points()
    directions = torch.randn(1, 400_000, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    klein = torch.tanh(2 * c.sqrt() * u.norm(dim=-1))
    p = (log_horospheres(u, directions, c).neg().exp() * (1 - klein.square()).sqrt().unsqueeze(-1))[0, 0]
    for i in range(6):
        for j in range(i):
            D = c.sqrt() * _distance(u[0, 0, i], u[0, 0, j], c[0])
            torch.testing.assert_close((p[i] * p[j]).mean(), (D / torch.sinh(D)).squeeze(), rtol=0.03, atol=0)


def test_features_are_shares_and_near_points_have_near_ones():
    draw = checks.Draw("cpu", torch.float64)
    u, directions = draw.normal(2, 2, 7, 6, scale=0.4), draw.normal(2, 9, 6)
    sharpness, curvature = torch.tensor([5.0, 9.0]).double(), torch.tensor([1.0, 0.5]).double()
    found = horosphere_features(u, directions, sharpness, curvature)
    assert found.shape == (2, 2, 7, 9) and found.min() > 0
    torch.testing.assert_close(found.sum(-1), torch.ones(2, 2, 7, dtype=torch.float64))
    near, far = (horosphere_features(u + step, directions, sharpness, curvature) for step in (0.01, 1.0))
    assert ((near - found).abs().amax(-1) < (far - found).abs().amax(-1)).all()
    longer = horosphere_features(
        u, 3 * directions, sharpness, curvature
    )  # only where a direction points counts
    torch.testing.assert_close(longer, found)


@pytest.mark.parametrize("scale", [0.0, 1e-7, 1.0, 60.0])
def test_from_the_centre_to_the_boundary_features_and_gradients_are_finite(scale):
    draw = checks.Draw("cpu", torch.float32)
    u, directions = draw.normal(1, 2, 5, 4, scale=scale), draw.normal(2, 6, 4)
    with torch.no_grad():
        directions[0, 0] = u[0, 0, 0] if scale else 1.0  # a boundary point that a vector looks at straight
    parameters = [torch.full((2,), 8.0, requires_grad=True), torch.ones(2, requires_grad=True)]
    found = horosphere_features(u, directions, *parameters)
    assert found.isfinite().all()
    gradients = torch.autograd.grad((found * torch.arange(6.0)).sum(), [u, directions, *parameters])
    assert all(g.isfinite().all() for g in gradients)


def test_the_features_gradients_are_finite_differences():
    draw = checks.Draw("cpu", torch.float64)
    inputs = [draw.normal(1, 2, 3, 4, scale=0.5), draw.normal(2, 5, 4)]
    inputs += [(torch.rand(2, dtype=torch.float64) + 0.5).requires_grad_() for _ in range(2)]
    assert torch.autograd.gradcheck(horosphere_features, inputs)
