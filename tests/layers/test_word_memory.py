"""The memory of words: counts as a loop over the tokens would make them, the same loss however the text is cut."""

import pytest
import torch
import torch.nn.functional as F

from newllm_lib.layers import word_memory
from newllm_lib.layers.word_memory import Said, WordMemory

WORDS = 11


def looped(ids, starts, valid, before, keep):
    """Counts after each token, (time, WORDS), of one text."""
    counts, found = before.clone(), []
    for token, start, counted in zip(ids, starts, valid, strict=True):
        if counted:
            counts = keep * (torch.zeros_like(counts) if start else counts)
            counts[token] += 1
        found.append(counts.clone())
    return torch.stack(found)


def texts(batch, time, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, WORDS, (batch, time), generator=generator)
    starts = torch.rand(batch, time, generator=generator) < 0.2
    valid = torch.arange(time) >= torch.arange(batch).unsqueeze(1)  # padding on the left, as in generation
    return ids, starts, valid, torch.rand(batch, WORDS, generator=generator)


@pytest.mark.parametrize("time", [1, 2, 17])
def test_counts_are_those_of_a_loop(time):
    ids, starts, valid, before = texts(4, time)
    said = Said(ids, starts, valid, before)
    expected = torch.stack([looped(*row, 0.9) for row in zip(ids, starts, valid, before, strict=True)])
    torch.testing.assert_close(said.counts(0.9), expected)
    torch.testing.assert_close(said.after(0.9), expected[:, -1])
    without = Said(ids, None, None, before)
    row = looped(ids[0], [False] * time, [True] * time, before[0], 0.9)
    torch.testing.assert_close(without.counts(0.9)[0], row)


def made():
    torch.manual_seed(0)
    memory = WordMemory(6, WORDS, 10.0)
    memory.reset(torch.nn.init)
    torch.nn.init.normal_(memory.trust.weight)
    return memory


def test_loss_logits_and_gradients_are_the_same_in_chunks(monkeypatch):
    memory, (ids, starts, _, before) = made(), texts(3, 13)
    said = Said(ids, starts, None, before)
    hidden, weight = torch.randn(3, 13, 6, requires_grad=True), torch.randn(WORDS, 6, requires_grad=True)
    labels = torch.randint(0, WORDS, (3, 13))
    labels[0, 4:7] = -100
    inputs = [hidden, weight, *memory.parameters()]
    logits = memory.logits(hidden, weight, said)
    expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
    gradients = torch.autograd.grad(expected, inputs)
    monkeypatch.setattr(word_memory, "CHUNK", 4)
    torch.testing.assert_close(memory.logits(hidden, weight, said), logits)
    torch.testing.assert_close(memory.logits(hidden, weight, said, last=3), logits[:, -3:])
    loss = memory.loss(hidden, weight, said, labels)
    torch.testing.assert_close(loss, expected)
    for one, other in zip(torch.autograd.grad(loss, inputs), gradients, strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(memory.loss(hidden, weight, said, labels, 72), expected * 36 / 72)
    assert memory.loss(hidden, weight, said, torch.full_like(labels, -100)) == 0


def test_a_word_that_was_said_becomes_likelier_and_a_new_document_forgets_it():
    memory = WordMemory(6, WORDS, 10.0)
    memory.reset(torch.nn.init)
    said = Said(torch.tensor([[5, 3, 7, 4]]), torch.tensor([[False, False, True, False]]), None, torch.zeros(1, WORDS))
    logits = memory.logits(torch.zeros(1, 4, 6), torch.zeros(WORDS, 6), said)[0]
    assert logits[1, 3] > logits[1, 5] > logits[1, 0] == 0  # the longer ago, the less
    assert logits[3, 5] == logits[3, 3] == 0 < logits[3, 7]
