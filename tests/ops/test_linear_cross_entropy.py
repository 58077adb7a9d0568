"""The chunked head and loss against torch's own cross-entropy on all logits, and the kernel in Triton's
interpreter.
"""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from newllm_lib.ops.linear_cross_entropy import IGNORE, chunked, linear_cross_entropy


def inputs(tokens, dim, vocabulary, dtype=torch.float64, device="cpu"):
    generator = torch.Generator().manual_seed(tokens)
    hidden = torch.randn(tokens, dim, generator=generator, dtype=torch.float64)
    weight = (
        torch.randn(vocabulary, dim, generator=generator, dtype=torch.float64) / dim**0.5
    )  # logits near 1, as in training
    labels = torch.randint(0, vocabulary, (tokens,), generator=generator)
    labels[::3] = IGNORE
    return [x.to(device, dtype).requires_grad_() for x in (hidden, weight)] + [labels.to(device)]


def with_gradients(loss, *leaves):
    return loss, *torch.autograd.grad(loss, leaves)


def compare(found, expected, tolerance):
    for x, y in zip(found, expected, strict=True):
        assert ((x.double() - y).norm() / y.norm()) < tolerance


@pytest.mark.parametrize(("tokens", "dim", "vocabulary"), [(2, 3, 5), (17, 8, 33), (100, 5, 7)])
@pytest.mark.parametrize("chunk", [1, 64, 1 << 20])
def test_loss_and_gradients_are_those_of_all_logits_at_once(tokens, dim, vocabulary, chunk, monkeypatch):
    monkeypatch.setattr(chunked, "CHUNK_ELEMENTS", chunk)
    hidden, weight, labels = inputs(tokens, dim, vocabulary)
    expected = F.cross_entropy(hidden @ weight.T, labels, ignore_index=IGNORE)
    found = linear_cross_entropy(hidden, weight, labels)
    compare(with_gradients(found, hidden, weight), with_gradients(expected, hidden, weight), 1e-6)


@pytest.mark.parametrize("vocabulary", [5, 8, 33])
def test_an_odd_vocabulary_meets_the_kernel_in_whole_eights(vocabulary, monkeypatch):
    widths = []

    def overwrite(logits, target, losses):
        widths.append((logits.stride(0), logits.shape[1]))
        logits.copy_(chunked.by_torch(logits, target, losses))

    stand_ins = {
        "runs_triton": lambda x: True,
        "_takes_exponentials": lambda x: False,
        "max_vocabulary": lambda: 40,
    }
    for name, stand_in in {**stand_ins, "by_kernel": overwrite}.items():
        monkeypatch.setattr(chunked, name, stand_in)
    hidden, weight, labels = inputs(9, 4, vocabulary)
    expected = F.cross_entropy(hidden @ weight.T, labels, ignore_index=IGNORE)
    found = linear_cross_entropy(hidden, weight, labels)
    compare(with_gradients(found, hidden, weight), with_gradients(expected, hidden, weight), 1e-6)
    assert widths == [(-(-vocabulary // 8) * 8, vocabulary)]


def test_a_given_count_divides_the_sum_and_no_label_gives_zero():
    hidden, weight, labels = inputs(12, 4, 9)
    counted = int((labels != IGNORE).sum())
    by_hundred, mean = (
        linear_cross_entropy(hidden, weight, labels, 100),
        linear_cross_entropy(hidden, weight, labels),
    )
    torch.testing.assert_close(by_hundred * 100 / counted, mean)
    for tokens in (None, 0, torch.tensor(0)):
        assert linear_cross_entropy(hidden, weight, torch.full_like(labels, IGNORE), tokens) == 0
    with torch.no_grad():
        assert torch.isfinite(linear_cross_entropy(hidden, weight, labels))


def test_it_traces_without_a_graph_break():
    hidden, weight, labels = inputs(12, 4, 9, torch.float32)
    compiled = torch.compile(linear_cross_entropy, backend="aot_eager", fullgraph=True)
    expected = linear_cross_entropy(hidden, weight, labels)
    found = compiled(hidden, weight, labels)
    compare(with_gradients(found, hidden, weight), with_gradients(expected, hidden, weight), 1e-6)


KERNEL = """
import torch, torch.nn.functional as F
from newllm_lib.ops.linear_cross_entropy import triton
from newllm_lib.ops.linear_cross_entropy.triton import softmax_gradient_
whole, parts = (triton.WHOLE, triton.PART), (16, 16)
sizes = (
    (3, 5, torch.float32, 1e-5, whole),
    (4, 33, torch.float16, 2e-3, whole),
    (2, 129, torch.float32, 1e-5, whole),
    (3, 17, torch.float32, 1e-5, parts),
    (4, 33, torch.float16, 2e-3, parts),
    (2, 128, torch.float32, 1e-5, parts),
)
for rows, vocabulary, dtype, tolerance, (triton.WHOLE, triton.PART) in sizes:
    # what stands beside a row is never read
    wide = torch.full((rows, vocabulary + 7), float("nan"), dtype=dtype)
    wide[:, :vocabulary] = torch.randn(rows, vocabulary)
    logits, labels = wide[:, :vocabulary], torch.randint(0, vocabulary, (rows,))
    labels[1] = -100
    exact = logits.double().detach().clone().requires_grad_()
    loss = F.cross_entropy(exact, labels, reduction="none", ignore_index=-100)
    loss.sum().backward()
    losses = torch.full((rows,), float("nan"))
    softmax_gradient_(logits, labels, -100, losses)
    assert (losses.double() - loss.detach()).abs().max() < 10 * tolerance, (losses, loss)
    assert (logits.double() - exact.grad).abs().max() < tolerance
    assert wide[:, vocabulary:].isnan().all()
print("equal")
"""

EXPONENTIALS = """
import math, torch, torch.nn.functional as F
from newllm_lib.ops.linear_cross_entropy import exponentials
exponentials._TILES, exponentials._ROWS = [(16, 16, 4)], 16
cases = (3, 5, 40, torch.float32), (37, 33, 21, torch.float32), (17, 16, 16, torch.float16)
for rows, dim, words, dtype in cases:
    hidden, head = torch.randn(rows, dim).to(dtype), torch.randn(words, dim).div(dim**0.5).to(dtype)
    labels = torch.randint(0, words, (rows,))
    labels[1] = -100
    logits = (hidden.double() @ head.double().T).requires_grad_()
    expected = F.cross_entropy(logits, labels, reduction="none", ignore_index=-100)
    expected.sum().backward()
    losses, factors = torch.full((2, rows), float("nan"))
    e, scaled = exponentials.softmax_factors(hidden, head, labels, -100, losses, factors)
    tolerance = 1e-5 if dtype == torch.float32 else 3e-3
    assert (losses.double() - expected.detach()).abs().max() < tolerance
    assert (e.double() * factors.double()[:, None] - logits.grad).abs().max() < tolerance
    assert (scaled.double() - hidden.double() * factors.double()[:, None]).abs().max() < tolerance
# Nearly certain, hopeless and broken rows: the loss keeps its digits, saturates, and stays NaN.
head = torch.tensor([[1.0] * 16, [-1.0] * 16])
hidden = torch.tensor([[1.0] * 16, [-20.0] * 16, [float("nan")] * 16])
losses, factors = torch.empty(2, 3)
e, _ = exponentials.softmax_factors(hidden, head, torch.zeros(3, dtype=torch.long), -100, losses, factors)
assert abs(losses[0] / math.log1p(math.exp(-32.0)) - 1) < 1e-5, losses
assert 69 < losses[1] < 70 and e[:2].isfinite().all() and losses[2].isnan(), losses
print("equal")
"""


SCORES = """
import torch, torch.nn.functional as F
from newllm_lib.ops.linear_cross_entropy import chunked
from newllm_lib.ops.linear_cross_entropy.triton import row_scores
for rows, vocabulary, dtype in ((3, 5, torch.float32), (40, 33, torch.float16), (2, 129, torch.float32)):
    wide = torch.full((rows, vocabulary + 7), float("nan"), dtype=dtype)
    wide[:, :vocabulary] = (4 * torch.randn(rows, vocabulary)).round() / 4  # many are equal
    logits = wide[:, :vocabulary]
    labels = torch.where(torch.arange(rows) % 2 == 0, logits.argmax(1), torch.randint(0, vocabulary, (rows,)))
    losses, hits = row_scores(logits, labels)
    plain, expected = chunked.row_scores(logits, labels)
    exact = F.cross_entropy(logits.double(), labels, reduction="none")
    assert (losses.double() - exact).abs().max() < 1e-5 and (plain.double() - exact).abs().max() < 1e-5
    assert hits.tolist() == expected.tolist() and hits[0]
print("equal")
"""


@pytest.mark.parametrize("script", [KERNEL, EXPONENTIALS, SCORES], ids=["in place", "exponentials", "scores"])
def test_the_kernels_in_the_interpreter(script):
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.stdout.strip() == "equal", done.stderr[-2000:]


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)]
)
@pytest.mark.parametrize(
    ("tokens", "dim", "vocabulary"),
    [(1, 16, 8192), (1000, 64, 50257), (5000, 32, 1000), (3000, 250, 8001), (500, 300, 1000)],
)
def test_on_a_gpu_against_float64(tokens, dim, vocabulary, dtype, tolerance):
    torch.backends.cuda.matmul.allow_tf32 = False
    hidden, weight, labels = inputs(tokens + 1, dim, vocabulary, dtype, "cuda")
    exact = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    expected = F.cross_entropy(exact[0] @ exact[1].T, labels, ignore_index=IGNORE)
    found = linear_cross_entropy(hidden, weight, labels)
    compare(with_gradients(found, hidden, weight), with_gradients(expected, *exact), tolerance)
