"""The kernels in Triton's interpreter, at tiny sizes: run by the test files beside this one, in a process of
their own.

(The interpreter must be chosen before triton is imported, and would make a GPU's tests in the same process
run on the CPU.)
"""

import os

import pytest
import torch

from tests.helpers import kernel_checks as checks, kernel_memory, phase7_checks

assert os.environ.get("TRITON_INTERPRET") == "1", "run these through the test files beside them"

DTYPES = [torch.float32, torch.float16]
CASES = [
    (torch.float32, 1, 1, 1),
    (torch.float32, 2, 11, 5),
    (torch.float16, 2, 10, 3),
    (torch.float32, 1, 9, 67),
]


@pytest.fixture(autouse=True)
def memory_checked():
    """No kernel leaves its tensors, and no two programs of a launch meet."""
    with kernel_memory.checked():
        yield


@pytest.fixture(autouse=True)
def short_unrolling(monkeypatch):
    """Three steps at a time instead of eight, which the interpreter would all walk through however short the
    input.
    """
    from newllm_lib.ops.add_norm import triton as stream
    from newllm_lib.ops.gated_scan import triton as scan
    from newllm_lib.ops.short_conv import triton as conv

    for tile in (scan.FORWARD, scan.BACKWARD, conv._FORWARD, conv._BACKWARD):
        monkeypatch.setitem(tile, "UNROLL", 3)
    monkeypatch.setattr(stream, "_UNROLL", 3)


@pytest.fixture(params=["whole", "chunked"])
def chunks(request, monkeypatch):
    """Time in one piece, and cut into pieces of at least 2 steps as where batch x dim does not fill a GPU."""
    from newllm_lib.ops.add_norm import triton as stream
    from newllm_lib.ops.gated_scan import triton as scan
    from newllm_lib.ops.short_conv import triton as conv

    wanted = 1 if request.param == "whole" else 3
    monkeypatch.setattr(scan, "count_chunks", lambda programs, time, device: max(1, min(wanted, time // 2)))
    for module in (conv, stream):
        monkeypatch.setattr(module, "_MIN_CHUNK", 10**6 if wanted == 1 else 2)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gated_scan(case, chunks):
    checks.check_gated_scan("cpu", *case)


def test_gated_scan_bare(chunks):
    checks.check_gated_scan("cpu", torch.float32, 2, 6, 3, flags=False, with_state=False)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_short_conv(case, chunks):
    checks.check_short_conv("cpu", *case)


@pytest.mark.parametrize(
    ("width", "flags", "conv_state"), [(1, True, True), (2, False, False), (4, False, True), (5, True, False)]
)
def test_short_conv_widths(width, flags, conv_state, chunks):
    checks.check_short_conv("cpu", torch.float32, 2, 7, 3, width=width, flags=flags, with_tail=conv_state)


@pytest.mark.parametrize("with_branch", [True, False])
def test_add_norm(with_branch):
    checks.check_add_norm("cpu", torch.float32, 37, 21, with_branch)
    checks.check_add_norm("cpu", torch.float16, 5, 130, with_branch)


@pytest.mark.parametrize(
    ("dtype", "rows", "dim", "with_branch"),
    [
        (torch.float32, 5, 37, True),
        (torch.float16, 3, 16, True),
        (torch.float32, 7, 130, False),
        (torch.float32, 1, 1, True),
    ],
)
def test_add_norm_in_several_programs(dtype, rows, dim, with_branch, monkeypatch):
    from newllm_lib.ops.add_norm import triton

    monkeypatch.setattr(triton, "_BACKWARD_TILE", 128)  # each walks over several blocks of rows
    checks.check_add_norm("cpu", dtype, 2 * rows, dim, with_branch)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_add_norm_conv(case, chunks):
    checks.check_add_norm_conv("cpu", *case)


@pytest.mark.parametrize(
    ("width", "flags", "conv_state", "residual"),
    [(1, True, True, True), (2, False, False, False), (5, True, False, True)],
)
def test_add_norm_conv_widths(width, flags, conv_state, residual, chunks):
    checks.check_add_norm_conv("cpu", torch.float32, 2, 7, 3, width, flags, conv_state, residual)


@pytest.mark.parametrize(
    ("tile", "case"),
    [
        ((16, 16), (torch.float32, 1, 2, 37, 37, 5)),
        ((16, 32), (torch.float32, 1, 1, 70, 70, 16, 20)),
        ((32, 16), (torch.float32, 2, 1, 50, 50, 16, None, True)),
        ((16, 16), (torch.float32, 1, 2, 60, 60, 3, 40, True)),
        ((32, 16), (torch.float32, 2, 1, 5, 50, 16, 20, True)),
        ((16, 32), (torch.float32, 2, 2, 1, 50, 4)),
        ((16, 16), (torch.float16, 1, 1, 20, 20, 80)),
        ((16, 16), (torch.float16, 1, 1, 20, 20, 112)),
        ((32, 16), (torch.float16, 1, 1, 20, 20, 128)),
    ],
    ids=str,
)
def test_hyperbolic_attention(tile, case, monkeypatch):
    """Tiles of few queries and keys, so that short inputs have whole tiles, edges on both sides and a ragged
    end.
    """
    from newllm_lib.ops.hyperbolic_attention import triton

    tile = dict(zip(("BLOCK_M", "BLOCK_N"), tile, strict=True), num_warps=4, num_stages=1)
    monkeypatch.setattr(triton, "_tiles", lambda x: dict(forward=tile, queries=tile, keys=tile))
    phase7_checks.check_hyperbolic_attention("cpu", *case)


@pytest.mark.parametrize(
    "case",
    [
        (torch.float32, 1, 1, 1, 3, 5),
        (torch.float32, 1, 2, 37, 20, 9),
        (torch.float32, 2, 1, 35, 16, 16, True),
        (torch.float16, 1, 1, 40, 8, 12, True),
        (torch.float32, 1, 1, 20, 4, 4, False, "triton", False),
    ],
    ids=str,
)
def test_linear_attention(case, monkeypatch):
    from newllm_lib.ops.linear_attention import sizes

    monkeypatch.setattr(sizes, "CHUNKS", (16,))
    phase7_checks.check_linear_attention("cpu", *case)


@pytest.mark.parametrize(
    "case",
    [
        (torch.float32, 1, 1, 1, 3, 5),
        (torch.float32, 2, 2, 37, 20, 9),
        (torch.float16, 1, 2, 70, 16, 16),
        (torch.float32, 1, 1, 20, 7, 4, 40.0),
        (torch.float32, 1, 1, 20, 7, 4, 0.05),
    ],
    ids=str,
)
def test_linear_attentions_features(case, monkeypatch):
    from newllm_lib.ops.linear_attention import triton

    monkeypatch.setattr(triton, "_ROWS", 16)
    monkeypatch.setattr(triton, "_PROGRAMS", 3)
    phase7_checks.check_horosphere_features("cpu", *case)


def test_linear_attention_is_a_well_formed_operator(monkeypatch):
    import newllm_lib.ops.linear_attention.triton  # noqa: F401  makes the operators
    from newllm_lib.ops.linear_attention import sizes

    monkeypatch.setattr(sizes, "CHUNKS", (16,))
    draw = checks.Draw("cpu", torch.float32)
    q, k = (draw.normal(1, 2, 18, 4).detach().softmax(-1).requires_grad_() for _ in "qk")
    log_decay = draw.uniform(1, 2, 18).detach().log().requires_grad_()
    arguments = (
        q,
        k,
        draw.normal(1, 2, 18, 3),
        log_decay,
        draw.flags(1, 18, share=0.1),
        draw.uniform(1, 2, 4, 4),
    )
    checks_of = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(torch.ops.newllm.linear_attention.default, arguments, test_utils=checks_of)

    arguments = draw.normal(1, 2, 5, 4), draw.normal(2, 6, 4), draw.uniform(2), draw.uniform(2)
    torch.library.opcheck(torch.ops.newllm.horosphere_features.default, arguments, test_utils=checks_of)


@pytest.mark.parametrize(
    "name",
    ["gated_scan", "short_conv", "add_norm", "add_norm_conv", "token_embedding"],
)
def test_operator_is_well_formed(name):
    """Schema, fake tensors, autograd and dynamic shapes, by torch's own check of custom operators."""
    import newllm_lib.ops.embedding.triton  # noqa: F401

    draw = checks.Draw("cpu", torch.float32)
    batch, time, dim = 2, 3, 5
    x, y, doc_starts = (
        draw.normal(batch, time, dim),
        draw.normal(batch, time, dim),
        draw.flags(batch, time, share=0.3),
    )
    arguments = {
        "gated_scan": (
            draw.normal(batch, time, 3 * dim),
            None,
            draw.normal(dim),
            doc_starts,
            None,
            None,
            1e-6,
        ),
        "short_conv": (x, draw.normal(dim, 4), doc_starts, draw.normal(batch, 3, dim)),
        "add_norm": (draw.normal(7, dim), draw.normal(7, dim), draw.normal(dim), 1e-6),
        "add_norm_conv": (
            x,
            y,
            draw.normal(dim),
            draw.normal(dim, 4),
            doc_starts,
            draw.normal(batch, 3, dim),
            1e-6,
        ),
        "token_embedding": (draw.normal(7, dim), torch.tensor([0, 6, 6]), torch.float32),
    }
    torch.library.opcheck(getattr(torch.ops.newllm, name).default, arguments[name])


def test_compiles_without_graph_break():
    from newllm_lib.ops.gated_scan import triton as gated
    from newllm_lib.ops.short_conv import triton as conv

    draw = checks.Draw("cpu", torch.float32)
    x, weight, conv_weight = draw.normal(2, 3, 15), draw.normal(5), draw.normal(15, 4)

    def block(x, weight, conv_weight):
        u = conv.short_conv(x, conv_weight)
        y, _, final = gated.gated_scan(torch.tanh(u), None, weight)
        return y * 2, final

    eager = torch.autograd.grad(
        [z.square().sum() for z in block(x, weight, conv_weight)], [x, weight, conv_weight]
    )
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    found = torch.autograd.grad(
        [z.square().sum() for z in compiled(x, weight, conv_weight)], [x, weight, conv_weight]
    )
    for a, b in zip(found, eager, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", DTYPES)
def test_token_embedding(dtype, monkeypatch):
    from newllm_lib.ops.embedding import triton

    monkeypatch.setattr(triton, "_TILE", 64)
    checks.check_token_embedding("cpu", dtype, 7, 35, (3, 19))
    checks.check_token_embedding("cpu", dtype, 1, 1, (1, 1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_relu2_mlp(dtype, monkeypatch):
    from newllm_lib.ops.relu2_mlp import triton

    monkeypatch.setattr(triton, "_TILES", [(16, 16, 4)])
    monkeypatch.setattr(triton.helpers, "multiprocessors", lambda device: 4)
    checks.check_relu2_mlp("cpu", dtype, 51, 35, 21)
    checks.check_relu2_mlp("cpu", dtype, 19, 32, 16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("time", "width", "flags"), [(4, 4, True), (9, 4, True), (7, 2, False)])
def test_add_norms_last_rows(dtype, time, width, flags):
    checks.check_last_rows("cpu", dtype, 3, time, 35, width, flags)


def test_scaled_rows():
    from newllm_lib.ops.linear_cross_entropy.exponentials import scaled_rows

    rows, factors, scale = torch.randn(37, 20), torch.randn(37), torch.tensor(0.5)
    torch.testing.assert_close(scaled_rows(rows, factors, scale), rows * factors.unsqueeze(1) * scale)


@pytest.mark.parametrize(
    ("dtype", "dim", "width", "flags"),
    [
        (torch.float32, 5, 4, True),
        (torch.float16, 3, 4, False),
        (torch.float32, 300, 2, True),
        (torch.float32, 7, 1, False),
    ],
)
def test_decoding_steps(dtype, dim, width, flags):
    from newllm_lib.ops.gated_scan import triton as scan
    from newllm_lib.ops.short_conv import triton as conv

    checks.check_steps("cpu", dtype, conv, scan, 3, dim, width, flags)


@pytest.mark.parametrize(
    ("dtype", "rows", "dim", "groups"),
    [
        (torch.float32, 3, 30, 5),
        (torch.float16, 2, 1100, 4),
        (torch.float32, 1, 1, 1),
    ],
)
def test_gates(dtype, rows, dim, groups):
    phase7_checks.check_gates("cpu", dtype, rows, dim, groups)


@pytest.mark.parametrize(
    "case", [(torch.float32, 2, 3, 20, 6, 8, True), (torch.float32, 1, 1, 9, 16, 64)], ids=str
)
def test_packed_hyperbolic_attention(case, monkeypatch):
    from newllm_lib.ops.hyperbolic_attention import triton

    tile = dict(BLOCK_M=16, BLOCK_N=16, num_warps=4, num_stages=1)
    monkeypatch.setattr(triton, "_tiles", lambda x: dict(forward=tile, queries=tile, keys=tile))
    phase7_checks.check_packed_attention("cpu", *case)


@pytest.mark.parametrize(
    ("dtype", "rows", "columns"), [(torch.float32, 70, 300), (torch.float16, 5, 3), (torch.float32, 1, 1100)]
)
def test_gradient_norms(dtype, rows, columns):
    phase7_checks.check_gradient_norms("cpu", dtype, rows, columns)


def test_hyperbolic_visibility():
    phase7_checks.check_visibility("cpu")


@pytest.mark.parametrize(
    ("launch", "told"),
    [
        (lambda k, x, y: k.copy[(3,)](x, y, 20, 20, BLOCK=8), None),
        (lambda k, x, y: k.copy[(3,)](x, y, 20, 21, BLOCK=8), "load: 4 bytes at byte 80 of x"),
        (lambda k, x, y: k.copy[(3,)](x[::2], y, 10, 20, BLOCK=8), "load: 4 bytes at byte 4 of x"),
        (lambda k, x, y: k.store_beyond[(1,)](y, 20, BLOCK=32), "store: 4 bytes at byte 80 of out"),
        (lambda k, x, y: k.all_store[(2,)](y, BLOCK=8), "stores where another program stores: program 0"),
        (lambda k, x, y: k.all_add[(2,)](y, BLOCK=8), None),
        (lambda k, x, y: k.shift[(2,)](x, 16, BLOCK=8), "stores what another program reads: program 0"),
        (lambda k, x, y: k.one_place[(1,)](y, BLOCK=8), "stores twice to one place"),
        (lambda k, x, y: k.there_and_back[(1,)](y, BLOCK=8, BARRIER=False), "with no barrier between"),
        (lambda k, x, y: k.there_and_back[(1,)](y, BLOCK=8, BARRIER=True), None),
    ],
)
def test_a_kernel_that_strays_is_told(launch, told):
    from tests.helpers import stray_kernels

    x, y = torch.randn(20), torch.zeros(20)
    if told is None:
        launch(stray_kernels, x, y)
        return
    with pytest.raises(kernel_memory.KernelMemoryError) as error:
        launch(stray_kernels, x, y)
    assert told in str(error.value) and "helpers/stray_kernels.py:" in str(error.value)
