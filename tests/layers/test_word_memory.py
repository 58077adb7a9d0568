"""The memory of words: counts as a loop over the tokens would make them, the same loss however the text is cut."""

import pytest
import torch
import torch.nn.functional as F

from newllm_lib.layers import word_memory
from newllm_lib.layers.word_memory import Said, Slots, WordMemory, WordSlots

WORDS, SLOTS = 11, 3


def looped(ids, starts, valid, before, keep, shares=None):
    """Counts after each token, (time, *before.shape), of one text; `shares` of each token's word that each row gets."""
    counts, found = before.clone(), []
    for t, (token, start, counted) in enumerate(zip(ids, starts, valid, strict=True)):
        if counted:
            counts = keep * (torch.zeros_like(counts) if start else counts)
            counts[..., token] += 1.0 if shares is None else shares[t]
        found.append(counts.clone())
    return torch.stack(found)


def texts(batch, time, seed=0):
    """ids, starts, valid (padding on the left, as in generation), counts before, and slots."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, WORDS, (batch, time), generator=generator)
    starts = torch.rand(batch, time, generator=generator) < 0.2
    valid = torch.arange(time) >= torch.arange(batch).unsqueeze(1)
    written, read = torch.rand(2, batch, time, SLOTS, generator=generator)
    slots = Slots(written, read, torch.rand(batch, SLOTS, WORDS, generator=generator))
    return ids, starts, valid, torch.rand(batch, WORDS, generator=generator), slots


@pytest.mark.parametrize("time", [1, 2, 17])
def test_counts_are_those_of_a_loop(time):
    ids, starts, valid, before, slots = texts(4, time)
    said = Said(ids, starts, valid, before, slots)
    rows = list(zip(ids, starts, valid, strict=True))
    expected = torch.stack([looped(*row, before[i], 0.9) for i, row in enumerate(rows)])
    apart = torch.stack([looped(*row, slots.before[i], 0.9, slots.written[i]) for i, row in enumerate(rows)])
    counts, looked_up = said.counts(0.9)
    torch.testing.assert_close(counts, expected)
    torch.testing.assert_close(looked_up, torch.einsum("bts,btsv->btv", slots.read, apart))
    after, stored = said.after(0.9)
    torch.testing.assert_close(after, expected[:, -1])
    torch.testing.assert_close(stored, apart[:, -1])
    (counts,) = Said(ids, None, None, before).counts(0.9)
    torch.testing.assert_close(counts[0], looped(ids[0], [False] * time, [True] * time, before[0], 0.9))


def made(kinds=2):
    torch.manual_seed(0)
    memory = WordMemory(6, WORDS, 10.0, kinds)
    memory.reset(torch.nn.init)
    torch.nn.init.normal_(memory.trust.weight)
    return memory


@pytest.mark.parametrize("with_slots", [True, False])
def test_loss_logits_and_gradients_are_the_same_in_chunks(monkeypatch, with_slots):
    memory, (ids, starts, _, before, slots) = made(1 + with_slots), texts(3, 13)
    slots.written.requires_grad_(), slots.read.requires_grad_()
    said = Said(ids, starts, None, before, slots if with_slots else None)
    hidden, weight = torch.randn(3, 13, 6, requires_grad=True), torch.randn(WORDS, 6, requires_grad=True)
    labels = torch.randint(0, WORDS, (3, 13))
    labels[0, 4:7] = -100
    inputs = [hidden, weight, *memory.parameters(), *([slots.written, slots.read] if with_slots else [])]
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


def test_a_word_is_stored_under_what_came_before_it():
    torch.manual_seed(0)
    slots, hidden, last = WordSlots(6, SLOTS), torch.randn(2, 5, 6), torch.rand(2, SLOTS)
    keys = torch.softmax(slots.project(hidden).chunk(2, -1)[0], -1)
    starts = torch.zeros(2, 5, dtype=torch.bool)
    starts[1, 3] = True
    written, read, newest = slots(hidden, starts, None, last)
    torch.testing.assert_close(written[0], torch.cat([last[:1], keys[0, :-1]]))
    assert (written[1, 3] == 0).all()  # nothing came before a document's first word
    torch.testing.assert_close(newest, keys[:, -1])
    torch.testing.assert_close(read.mean(-1), torch.ones(2, 5))
    # padding, on the left or in the middle, is passed over
    valid = torch.tensor([[False, False, True, True, True], [True, True, False, True, False]])
    written, _, newest = slots(hidden, None, valid, last)
    torch.testing.assert_close(written[0, 2:], torch.stack([last[0], keys[0, 2], keys[0, 3]]))
    torch.testing.assert_close(written[1, [0, 1, 3]], torch.stack([last[1], keys[1, 0], keys[1, 1]]))
    torch.testing.assert_close(newest, torch.stack([keys[0, 4], keys[1, 3]]))
