"""What followed the same words: against a loop over one text, and as a kernel."""

import pytest
import torch

from newllm_lib.ops.followers import followers, reference
from tests.ops import kernel_checks as checks


def by_hand(words, here, first, reach, keep, size):
    """Both counts for the token at `here`, by going through the places before it."""
    found = [[0.0] * size, [0.0] * size]
    for at in range(max(first + 1, here - reach + 2), here + 1):
        if words[here] and words[at - 1] == words[here]:
            found[0][words[at] - 1] += keep ** (here - at)
            inside = here > first and at > max(first + 1, here - reach + 2)
            if inside and words[here - 1] and words[at - 2] == words[here - 1]:
                found[1][words[at] - 1] += keep ** (here - at)
    return found


@pytest.mark.parametrize("reach", [2, 3, 9, 40])
def test_counts_are_those_of_a_loop(reach):
    words, place, first = checks.followers_inputs("cpu", 3, 20, 4, reach, seed=reach)
    found = followers(words, place, first, reach, 0.9, torch.zeros(4))
    for row in range(3):
        for t in range(20):
            here = int(place[row, t])
            expected = by_hand(words[row].tolist(), here, int(first[row, t]), reach, 0.9, 4) if here >= 0 else [[0.0] * 4] * 2
            for counts, wanted in zip(found, expected, strict=True):
                torch.testing.assert_close(counts[row, t], torch.tensor(wanted))
    for counts, wanted in zip(found, reference.followers(words, place, first, reach, 0.9, 4), strict=True):
        torch.testing.assert_close(counts, wanted)


def test_what_followed_two_words_is_told_apart_from_what_followed_one():
    words = torch.tensor([[1, 2, 3, 4, 2, 5, 1, 2]])  # after 2 came 3 and 5; after 1 and 2 came 3
    here, first = torch.tensor([[7]]), torch.tensor([[0]])
    one, two = followers(words, here, first, 8, 1.0, torch.zeros(5))
    assert one[0, 0].tolist() == [0, 0, 1, 0, 1] and two[0, 0].tolist() == [0, 0, 1, 0, 0]
    one, two = followers(words, here, first, 5, 1.0, torch.zeros(5))  # 3 is too long ago
    assert one[0, 0].tolist() == [0, 0, 0, 0, 1] and not two.any()


def test_in_the_interpreter():
    checks.run_interpreted("followers")


@pytest.mark.gpu
@pytest.mark.parametrize("sizes", [(1, 1, 5, 3), (4, 128, 50, 4096), (128, 128, 4096, 4096)], ids=str)
def test_on_a_gpu(sizes):
    checks.check_followers("cuda", *sizes)
