"""Hyperbolic attention: the plain version against the textbook's formulas, the faster ones against the plain
one.
"""

import pytest
import torch

from newllm_lib.ops.hyperbolic_attention import chunked, hyperbolic_attention, operator
from tests.helpers import kernel_checks as checks, phase7_checks


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


def _seen(doc_starts, window, queries):
    """By brute force: (batch, queries, keys), True where the query may look."""
    batch, keys = doc_starts.shape
    seen = torch.zeros(batch, keys, keys, dtype=torch.bool)
    for b in range(batch):
        for i in range(keys):
            for j in range(i, -1, -1):
                if window is not None and i - j >= window:
                    break
                seen[b, i, j] = True
                if doc_starts[b, j]:
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
    inputs, doc_starts = _inputs(queries=queries)
    results = []
    for out in (
        _textbook(*inputs, _seen(doc_starts, window, queries)),
        hyperbolic_attention(*inputs, window=window, doc_starts=doc_starts, backend="reference"),
    ):
        results.append([out, *torch.autograd.grad((out**2 * torch.linspace(0.5, 1.5, 5)).sum(), inputs)])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_gradients_of_the_plain_version_are_finite_differences():
    inputs, doc_starts = _inputs(batch=1, heads=2, queries=4, keys=5, dim=3)
    with torch.no_grad():
        inputs[0][0, 0, 1] = (
            0  # a point at the origin, where the direction has no meaning but the gradient has
        )
    for backend in ("reference", "chunked"):

        def function(*inputs, backend=backend):
            return hyperbolic_attention(*inputs, window=3, doc_starts=doc_starts, backend=backend)

        assert torch.autograd.gradcheck(function, inputs, eps=1e-6, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("queries", "window"), [(37, None), (37, 7), (9, None), (1, 5)])
@pytest.mark.parametrize("documents", [False, True])
def test_in_chunks(queries, window, documents, monkeypatch):
    monkeypatch.setattr(chunked, "_CHUNK", 400)
    monkeypatch.setattr(chunked, "_WINDOWED_ROWS", 5)
    phase7_checks.check_hyperbolic_attention(
        "cpu", torch.float32, 2, 3, queries, 37, 5, window, documents, backend="chunked"
    )


@pytest.mark.parametrize("backend", ["reference", "chunked"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_finite_everywhere(backend, dtype):
    """Points at the origin, beyond where float32 tells 1 - c|x|² from 0, on top of each other, and
    opposite.
    """
    phase7_checks.check_extreme_points("cpu", dtype, backend)


def test_far_points_keep_their_distances():
    """From |u| = 9 on the textbook's 1 - c|x|² is 0 in float32, the points lie on the boundary; ours keeps
    its digits.
    """
    draw = checks.Draw("cpu", torch.float32)
    q, k, v = (draw.normal(1, 1, 6, 8).detach() for _ in "qkv")
    inputs = [30 * torch.nn.functional.normalize(q, dim=-1), 25 * torch.nn.functional.normalize(k, dim=-1), v]
    parameters = [torch.ones(1) / 20, torch.ones(1)]
    exact = hyperbolic_attention(*(x.double() for x in (*inputs, *parameters)), backend="reference")
    for backend in ("reference", "chunked"):
        checks.assert_near(hyperbolic_attention(*inputs, *parameters, backend=backend), exact, 1e-5)


def test_documents_do_not_see_each_other_nor_padding():
    inputs, _ = _inputs(batch=2, heads=2, queries=12, keys=12)
    doc_starts = torch.zeros(2, 12, dtype=torch.bool)
    doc_starts[:, 5] = True  # two documents, or five places of padding and a text
    together = hyperbolic_attention(*inputs, doc_starts=doc_starts)
    alone = hyperbolic_attention(*(x[:, :, 5:] for x in inputs[:3]), *inputs[3:])
    torch.testing.assert_close(together[:, :, 5:], alone)
    gradients = torch.autograd.grad(together[:, :, 5:].sum(), inputs[:3])
    assert all((x[:, :, :5] == 0).all() for x in gradients)


def test_queries_of_the_last_positions_see_what_they_would_in_the_whole():
    inputs, doc_starts = _inputs(batch=2, heads=2, queries=12, keys=12)
    whole = hyperbolic_attention(*inputs, window=5, doc_starts=doc_starts)
    for count in (1, 4):
        last = hyperbolic_attention(inputs[0][:, :, -count:], *inputs[1:], window=5, doc_starts=doc_starts)
        torch.testing.assert_close(last, whole[:, :, -count:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": torch.zeros(1, 2, 3, 5)}, "do not fit"),
        ({"q": torch.zeros(1, 2, 4, 4)}, "do not fit"),
        ({"beta": torch.ones(3)}, "beta"),
        ({"window": 0}, "window=0"),
        ({"doc_starts": torch.zeros(1, 4, dtype=torch.bool)}, "doc_starts"),
        ({"backend": "fast"}, "backend='fast'"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change, message):
    x = torch.zeros(1, 2, 3, 4)
    arguments = dict(q=x, k=x, v=x, beta=torch.ones(2), curvature=torch.ones(2)) | change
    with pytest.raises(ValueError, match=message):
        hyperbolic_attention(**arguments)


def test_operator_is_well_formed():
    inputs, doc_starts = _inputs(batch=1, heads=2, queries=3, keys=5, dtype=torch.float32)
    torch.library.opcheck(
        torch.ops.newllm.hyperbolic_attention.default,
        (*inputs[:3], *(x.detach().float().requires_grad_() for x in inputs[3:]), doc_starts, 3, "chunked"),
    )


def test_compiles_without_graph_break():
    inputs, doc_starts = _inputs(dtype=torch.float32)

    def function(*inputs):
        return hyperbolic_attention(*inputs, window=4, doc_starts=doc_starts).tanh()

    eager, compiled = (
        torch.autograd.grad(f(*inputs).square().sum(), inputs)
        for f in (function, torch.compile(function, fullgraph=True, backend="aot_eager"))
    )
    for x, y in zip(compiled, eager, strict=True):
        torch.testing.assert_close(x, y)


def test_a_gpu_without_tensor_core_dot_runs_plain_torch(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setattr("newllm_lib.ops.common.dispatch.runs_triton", lambda x: True)
    monkeypatch.setenv("NEWLLM_DEVICE", "t4")
    assert operator._implementation(torch.zeros(1)) is chunked
    monkeypatch.setenv("NEWLLM_DEVICE", "a100")
    assert operator._implementation(torch.zeros(1)) is not chunked


def test_in_the_interpreter():
    checks.run_interpreted("hyperbolic")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dim", [32, 80, 112, 128, 256])
def test_on_a_gpu(dtype, dim):
    phase7_checks.check_hyperbolic_attention("cuda", dtype, 2, 3, 333, 333, dim)
    phase7_checks.check_hyperbolic_attention("cuda", dtype, 2, 2, 300, 300, dim, 70, True)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_new_queries_and_extreme_points_on_a_gpu(dtype):
    phase7_checks.check_hyperbolic_attention("cuda", dtype, 2, 2, 1, 200, 64, 50)
    phase7_checks.check_hyperbolic_attention("cuda", dtype, 2, 2, 70, 200, 64, None, True)
    phase7_checks.check_extreme_points("cuda", dtype, "triton")
    phase7_checks.check_hyperbolic_attention("cuda", dtype, 1, 2, 100, 100, 64, 30, True, backend="chunked")


@pytest.mark.gpu
def test_long_windows_need_little_memory_on_a_gpu():
    """65,536 positions: scores of all pairs would take 16 GiB a head."""
    q = torch.randn(1, 2, 65536, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    beta = torch.ones(2, device="cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    hyperbolic_attention(q, q, q, beta, beta, window=128).sum().backward()
    assert torch.cuda.max_memory_allocated() - before < 2**28


@pytest.mark.gpu
def test_compiles_without_graph_break_on_a_gpu():
    draw = checks.Draw("cuda", torch.bfloat16)
    inputs = [*(draw.normal(2, 2, 100, 64) for _ in range(3)), *(draw.uniform(2) for _ in range(2))]

    def function(*inputs):
        return hyperbolic_attention(*inputs, window=40).tanh()

    eager, compiled = (
        torch.autograd.grad(f(*inputs).float().square().sum(), inputs)
        for f in (function, torch.compile(function, fullgraph=True))
    )
    for x, y in zip(compiled, eager, strict=True):
        checks.assert_near(x, y.double(), 1e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "case", [(2, 3, 77, 40, 64, True), (2, 16, 1024, 128, 128), (1, 2, 300, 64, 1000, True)], ids=str
)
def test_packed_on_a_gpu(dtype, case):
    phase7_checks.check_packed_attention("cuda", dtype, *case)


@pytest.mark.gpu
def test_what_is_visible_on_a_gpu():
    phase7_checks.check_visibility("cuda")
