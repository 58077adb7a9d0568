"""Tensor-train rows, logits and loss against the dense matrix that they never build; what the phases add."""

import pytest
import torch
import torch.nn.functional as F

from newllm_lib.evaluation.memory import peak_memory
from newllm_lib.ops.linear_cross_entropy import IGNORE, chunked
from newllm_lib.ops.tensor_train import (
    factors,
    holographic,
    logits,
    matrix,
    pieces,
    rows,
    tensor_train_cross_entropy,
    tensor_train_logits,
    tensor_train_rows,
)

SIZES = [(7, 6, 2, 5), (33, 15, 3, 17), (50, 16, 1, 1), (11, 7, 4, 40)]  # vocabulary, dim, rank, tokens


def inputs(vocabulary, dim, rank, tokens, dtype=torch.float64, device="cpu"):
    generator = torch.Generator().manual_seed(tokens)
    v1, v2, d1, d2 = factors(vocabulary, dim)
    shapes = (tokens, dim), (v1, d1, rank), (v2, rank, d2)
    scale = 1.0, rank**-0.25 * dim**-0.25, rank**-0.25 * dim**-0.25  # logits near 1, as in training
    drawn = [
        s * torch.randn(*n, generator=generator, dtype=torch.float64)
        for n, s in zip(shapes, scale, strict=True)
    ]
    labels = torch.randint(0, vocabulary, (tokens,), generator=generator)
    ids = torch.randint(0, vocabulary, (tokens,), generator=generator)
    labels[::3] = IGNORE
    return [x.to(device, dtype).requires_grad_() for x in drawn], labels.to(device), ids.to(device)


def compare(found, expected, tolerance):
    for x, y in zip(found, expected, strict=True):
        assert (x.double() - y).norm() <= tolerance * y.norm()


def with_gradients(value, leaves):
    weight = torch.linspace(0.5, 1.5, value.numel(), dtype=torch.float64).to(value).view(value.shape)
    return value, *torch.autograd.grad((value * weight).sum(), leaves)


@pytest.fixture(params=["whole", "pieces"])
def cut(request, monkeypatch):
    """Everything at once, or in the smallest pieces: the same numbers."""
    if request.param == "pieces":
        monkeypatch.setattr(pieces, "ROW_ELEMENTS", 1)
        monkeypatch.setattr(rows, "GATHERED_ELEMENTS", 1)
        monkeypatch.setattr(logits, "CONTRACTED_ELEMENTS", 1)
        monkeypatch.setattr(chunked, "CHUNK_ELEMENTS", 1)


@pytest.mark.parametrize(
    ("vocabulary", "dim"), [(1, 1), (2, 7), (4096, 512), (50257, 2048), (50257, 1536), (301, 13)]
)
def test_factors_cover_the_matrix(vocabulary, dim):
    v1, v2, d1, d2 = factors(vocabulary, dim)
    assert vocabulary <= v1 * v2 < vocabulary + v1 and d1 * d2 == dim and d1 <= d2


@pytest.mark.parametrize("sizes", SIZES)
def test_rows_and_their_gradients_are_the_matrix(sizes, cut):
    (_, first, second), _, ids = inputs(*sizes)
    expected = matrix(first, second, sizes[0])[ids]
    compare(
        with_gradients(tensor_train_rows(ids, first, second), (first, second)),
        with_gradients(expected, (first, second)),
        1e-12,
    )


@pytest.mark.parametrize("contracting", [True, False])
@pytest.mark.parametrize("sizes", SIZES)
def test_logits_and_their_gradients_are_the_matrix(sizes, contracting, cut, monkeypatch):
    monkeypatch.setattr(logits, "contracting_is_less", lambda *_: contracting)
    leaves, _, _ = inputs(*sizes)
    hidden, first, second = leaves
    expected = hidden @ matrix(first, second, sizes[0]).T
    found = tensor_train_logits(hidden, first, second, sizes[0])
    compare(with_gradients(found, leaves), with_gradients(expected, leaves), 1e-12)


def test_one_token_is_contracted_and_many_are_not():
    sizes = factors(50257, 2048)
    assert logits.contracting_is_less(1, sizes, 128) and not logits.contracting_is_less(16384, sizes, 128)


@pytest.mark.parametrize("sizes", SIZES)
def test_loss_and_gradients_are_those_of_all_logits_at_once(sizes, cut):
    leaves, labels, _ = inputs(*sizes)
    hidden, first, second = leaves
    if not (labels != IGNORE).any():
        labels[0] = 0
    expected = F.cross_entropy(hidden @ matrix(first, second, sizes[0]).T, labels, ignore_index=IGNORE)
    found = tensor_train_cross_entropy(hidden, first, second, labels, sizes[0])
    compare(with_gradients(found, leaves), with_gradients(expected, leaves), 1e-12)


def test_blocks_of_any_size_give_one_loss():
    leaves, labels, _ = inputs(33, 15, 3, 17)
    whole, small = (
        tensor_train_cross_entropy(*leaves, labels, 33, block_elements=n) for n in (None, 80)
    )  # 80: two tokens
    compare(with_gradients(small, leaves), with_gradients(whole, leaves), 1e-12)


def test_gradients_are_finite_differences():
    (hidden, first, second), labels, ids = inputs(7, 6, 2, 4)
    assert torch.autograd.gradcheck(lambda a, b: tensor_train_rows(ids, a, b), (first, second))
    assert torch.autograd.gradcheck(lambda h, a, b: tensor_train_logits(h, a, b, 7), (hidden, first, second))
    assert torch.autograd.gradcheck(
        lambda h, a, b: tensor_train_cross_entropy(h, a, b, labels, 7), (hidden, first, second)
    )


def test_a_given_count_divides_the_sum_and_no_label_gives_zero():
    (hidden, first, second), labels, _ = inputs(33, 15, 3, 17)
    counted = int((labels != IGNORE).sum())
    mean, by_hundred = (tensor_train_cross_entropy(hidden, first, second, labels, 33, n) for n in (None, 100))
    torch.testing.assert_close(by_hundred * 100 / counted, mean)
    assert tensor_train_cross_entropy(hidden, first, second, torch.full_like(labels, IGNORE), 33) == 0


def phases(vocabulary, dim, rank, zero=False):
    (_, first, second), _, _ = inputs(vocabulary, dim, rank, 3)
    generator = torch.Generator().manual_seed(1)
    scale = 0.0 if zero else 3.0
    return (
        first,
        second,
        *(scale * torch.randn(len(x), rank, generator=generator, dtype=x.dtype) for x in (first, second)),
    )


def test_phases_make_the_terms_interfere_as_the_formula_says():
    first, second, a, b = phases(20, 12, 3)
    found = matrix(*holographic(first, second, a, b), 20)
    for word, column in [(0, 0), (7, 5), (19, 11)]:
        (i1, i2), (j1, j2) = divmod(word, len(second)), divmod(column, second.shape[2])
        expected = sum(
            first[i1, j1, r] * torch.cos(a[i1, r] + b[i2, r]) * second[i2, r, j2] for r in range(3)
        )
        torch.testing.assert_close(found[word, column], expected)


def test_phases_double_the_rank_for_a_few_more_numbers():
    first, second, a, b = phases(400, 64, 5)
    unfolded = lambda one, two: torch.einsum("ajr,brk->ajbk", one, two).flatten(2).flatten(0, 1)  # noqa: E731
    assert torch.linalg.matrix_rank(unfolded(first, second)) == 5
    assert torch.linalg.matrix_rank(unfolded(*holographic(first, second, a, b))) == 10
    assert a.numel() + b.numel() < 0.2 * (first.numel() + second.numel())


def test_without_phases_it_is_the_plain_tensor_train():
    first, second, a, b = phases(20, 12, 3, zero=True)
    torch.testing.assert_close(matrix(*holographic(first, second, a, b), 20), matrix(first, second, 20))


def test_neither_matrix_nor_logits_are_ever_held(monkeypatch):
    """512 tokens x 4,096 words x 128 channels: the matrix has 2 MiB, the logits 8; everything at once stays
    below one.
    """
    for module, name, value in (
        (pieces, "ROW_ELEMENTS", 1 << 14),
        (chunked, "CHUNK_ELEMENTS", 1 << 15),
        (rows, "GATHERED_ELEMENTS", 1 << 14),
    ):
        monkeypatch.setattr(module, name, value)
    leaves, labels, ids = inputs(4096, 128, 4, 512, torch.float32)
    hidden, first, second = leaves

    def step():
        loss = tensor_train_cross_entropy(hidden, first, second, labels, 4096)
        torch.autograd.grad(loss, leaves)
        torch.autograd.grad(tensor_train_rows(ids[:64], first, second).sum(), (first, second))

    assert peak_memory(step, torch.device("cpu")) < 2**20


def test_it_traces_without_a_graph_break():
    leaves, labels, ids = inputs(33, 15, 3, 17, torch.float32)

    def step(hidden, first, second):
        x = hidden + tensor_train_rows(ids, first, second)
        return (
            tensor_train_cross_entropy(x, first, second, labels, 33)
            + tensor_train_logits(x, first, second, 33).mean()
        )

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    compare(with_gradients(compiled(*leaves), leaves), with_gradients(step(*leaves), leaves), 1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1.5e-2), (torch.float16, 4e-3)]
)
@pytest.mark.parametrize("sizes", [(8192, 64, 8, 1), (50257, 64, 24, 1000), (1001, 60, 5, 5000)])
def test_on_a_gpu_against_float64(sizes, dtype, tolerance):
    torch.backends.cuda.matmul.allow_tf32 = False
    leaves, labels, ids = inputs(*sizes[:3], sizes[3] + 1, dtype, "cuda")
    exact = [x.detach().double().requires_grad_() for x in leaves]
    dense = matrix(exact[1], exact[2], sizes[0])
    expected = F.cross_entropy(exact[0] @ dense.T, labels, ignore_index=IGNORE)
    compare(
        with_gradients(tensor_train_cross_entropy(*leaves, labels, sizes[0]), leaves),
        with_gradients(expected, exact),
        tolerance,
    )
    expected = with_gradients(matrix(exact[1], exact[2], sizes[0])[ids], exact[1:])
    compare(with_gradients(tensor_train_rows(ids, *leaves[1:]), leaves[1:]), expected, tolerance)
    expected = exact[0][:50] @ matrix(exact[1], exact[2], sizes[0]).T
    compare([tensor_train_logits(leaves[0][:50], *leaves[1:], sizes[0])], [expected], tolerance)
