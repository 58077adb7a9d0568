"""Trust that is learned from the text: against one text read token by token in float64, however it is cut, and as a kernel."""

import math

import pytest
import torch

from newllm_lib.ops.online_trust import Trust, online_trust
from tests.ops import kernel_checks as checks


def by_hand(logits, parts, ids, starts, prior=20.0, keep=0.999):
    """d after each token of one text of lists; logits and parts one longer than ids: the first is of the token before."""
    d, information, found = [0.0] * len(parts), [0.0] * len(parts), []
    for t, token in enumerate(ids):
        scores = [logits[t][v] + sum(d[k] * parts[k][t][v] for k in range(len(parts))) for v in range(len(logits[t]))]
        top = max(scores)
        mass = [math.exp(s - top) for s in scores]
        p = [m / sum(mass) for m in mass]
        for k, part in enumerate(parts):
            mean = sum(a * b for a, b in zip(p, part[t], strict=True))
            information[k] = keep * information[k] + sum(a * (b - mean) ** 2 for a, b in zip(p, part[t], strict=True))
            d[k] += (part[t][token] - mean) / (prior + information[k])
        if starts[t]:
            d, information = [0.0] * len(parts), [0.0] * len(parts)
        found.append(list(d))
    return found


def test_it_is_what_the_docstring_says():
    generator = torch.Generator().manual_seed(0)
    logits, a, b = (3 * torch.randn(9, 7, generator=generator) for _ in range(3))
    ids, starts = torch.randint(0, 7, (8,), generator=generator), [False] * 5 + [True] + [False] * 2
    expected = by_hand(logits.tolist(), [a.tolist(), b.tolist()], ids.tolist(), starts)
    start = Trust(torch.zeros(1, 2), torch.zeros(1, 2))
    before = logits[None, 0], [a[None, 0], b[None, 0]]
    parts = [a[None, 1:], b[None, 1:]]
    found, after = online_trust(logits[None, 1:], parts, before, ids[None], torch.tensor([starts]), None, start)
    torch.testing.assert_close(found[0], torch.tensor(expected), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(after.moved, found[:, -1])


@pytest.mark.parametrize("cut", [1, 4, 6])
def test_a_text_in_pieces_is_learned_like_the_whole(cut):
    logits, parts, before, ids, starts, valid, trust = checks.online_trust_inputs("cpu", 3, 9, 11, 2)
    whole, after = online_trust(logits, parts, before, ids, starts, None, trust)
    one, middle = online_trust(logits[:, :cut], [p[:, :cut] for p in parts], before, ids[:, :cut], starts[:, :cut], None, trust)
    last = logits[:, cut - 1], [p[:, cut - 1] for p in parts]
    rest = online_trust(logits[:, cut:], [p[:, cut:] for p in parts], last, ids[:, cut:], starts[:, cut:], None, middle)
    torch.testing.assert_close(torch.cat([one, rest[0]], 1), whole)
    torch.testing.assert_close(rest[1].information, after.information)


def test_padding_is_passed_over():
    logits, parts, before, ids, starts, valid, trust = checks.online_trust_inputs("cpu", 1, 9, 11, 2)
    found, after = online_trust(logits, parts, before, ids, starts, valid, trust)
    keep = valid[0]
    expected, expected_after = online_trust(
        logits[:, keep], [p[:, keep] for p in parts], before, ids[:, keep], starts[:, keep], None, trust
    )
    torch.testing.assert_close(found[:, keep], expected)
    torch.testing.assert_close(after.moved, expected_after.moved)


def test_a_part_that_is_right_is_trusted_more_and_one_that_is_wrong_less():
    ids = torch.full((1, 50), 3)
    right, wrong = torch.zeros(1, 50, 5), torch.zeros(1, 50, 5)
    right[..., 3], wrong[..., 2] = 1.0, 1.0
    before = torch.zeros(1, 5), [right[:, 0], wrong[:, 0]]
    found, _ = online_trust(torch.zeros(1, 50, 5), [right, wrong], before, ids, None, None, Trust(*torch.zeros(2, 1, 2)))
    assert found[0, -1, 0] > 0.5 and found[0, -1, 1] < -0.2


def test_in_the_interpreter():
    checks.run_interpreted("online_trust")


@pytest.mark.gpu
@pytest.mark.parametrize("sizes", [(1, 1, 5, 1), (3, 40, 4096, 5), (128, 128, 4096, 5), (2, 9, 50_257, 3)], ids=str)
def test_on_a_gpu(sizes):
    checks.check_online_trust("cuda", *sizes)
