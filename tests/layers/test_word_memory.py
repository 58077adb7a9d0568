"""The memory of words: counts as a loop over the tokens would make them, the same loss however the text is cut."""

import pytest
import torch
import torch.nn.functional as F

from newllm_lib.layers.word_memory import Experience, Said, Table, Trust, WordMemory, WordSlots, decay, history_of, memory

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
    slots = Table(0.8, torch.rand(batch, SLOTS, WORDS, generator=generator), written, read)
    return ids, starts, valid, Table(0.9, torch.rand(batch, 1, WORDS, generator=generator)), slots


@pytest.mark.parametrize("time", [1, 2, 17])
def test_counts_are_those_of_a_loop(time):
    ids, starts, valid, before, slots = texts(4, time)
    said = Said(ids, starts, valid, [before, slots])
    rows = list(zip(ids, starts, valid, strict=True))
    expected = torch.stack([looped(*row, before.before[i, 0], 0.9) for i, row in enumerate(rows)])
    apart = torch.stack([looped(*row, slots.before[i], 0.8, slots.written[i]) for i, row in enumerate(rows)])
    counts, looked_up = said.counts()
    torch.testing.assert_close(counts, expected)
    torch.testing.assert_close(looked_up, torch.einsum("bts,btsv->btv", slots.read, apart))
    after, stored = said.after()
    torch.testing.assert_close(after[:, 0], expected[:, -1])
    torch.testing.assert_close(stored, apart[:, -1])
    (counts,) = Said(ids, None, None, [before]).counts()
    torch.testing.assert_close(counts[0], looped(ids[0], [False] * time, [True] * time, before.before[0, 0], 0.9))


def made(kinds=2):
    torch.manual_seed(0)
    words = WordMemory(6, WORDS, kinds)
    words.reset(torch.nn.init)
    torch.nn.init.normal_(words.trust.weight)
    return words


@pytest.mark.parametrize("learns", [True, False])
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("with_slots", [True, False])
@pytest.mark.parametrize("with_history", [True, False])
def test_loss_logits_and_gradients_are_the_same_in_chunks(monkeypatch, with_history, with_slots, padded, learns):
    kinds = 1 + with_slots + 2 * with_history
    words, (ids, starts, valid, before, slots) = made(kinds), texts(3, 13)
    if with_history:
        ids = ids % 3  # few words, so that much comes again
    slots.written.requires_grad_(), slots.read.requires_grad_()
    valid = valid if padded else None
    history = history_of(ids, starts, valid, 10.0, ids[:, -6:] + 1.0) if with_history else None
    said = Said(ids, starts, valid, [before] + [slots] * with_slots, history)
    hidden, weight = torch.randn(3, 13, 6, requires_grad=True), torch.randn(WORDS, 6, requires_grad=True)
    trust = Trust(torch.randn(3, 1 + kinds), torch.rand(3, 1 + kinds))
    known = Experience(torch.randn(3, 6), [None] + [torch.rand(3, SLOTS)] * with_slots, trust) if learns else None
    labels = torch.randint(0, WORDS, (3, 13))
    labels[0, 4:7] = -100
    inputs = [hidden, weight, *words.parameters(), *([slots.written, slots.read] if with_slots else [])]
    logits, after = words.logits(hidden, weight, said, known)
    expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
    gradients = torch.autograd.grad(expected, inputs)
    monkeypatch.setattr(memory, "CHUNK", 4)
    found, after_chunks = words.logits(hidden, weight, said, known)
    torch.testing.assert_close(found, logits)
    torch.testing.assert_close(words.logits(hidden, weight, said, known, last=3)[0], logits[:, -3:])
    loss, after_loss = words.loss(hidden, weight, said, known, labels)
    torch.testing.assert_close(loss, expected)
    for one, other in zip(torch.autograd.grad(loss, inputs), gradients, strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(words.loss(hidden, weight, said, known, labels, 72)[0], expected * 36 / 72)
    assert words.loss(hidden, weight, said, known, torch.full_like(labels, -100))[0] == 0
    for learned in (after_chunks, after_loss) if learns else ():
        torch.testing.assert_close(learned.moved, after.moved)
        torch.testing.assert_close(learned.information, after.information)


def test_a_word_that_was_said_becomes_likelier_and_a_new_document_forgets_it():
    words = WordMemory(6, WORDS)
    words.reset(torch.nn.init)
    table = Table(0.9, torch.zeros(1, 1, WORDS))
    said = Said(torch.tensor([[5, 3, 7, 4]]), torch.tensor([[False, False, True, False]]), None, [table])
    logits = words.logits(torch.zeros(1, 4, 6), torch.zeros(WORDS, 6), said, None)[0][0]
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


def test_the_words_kept_are_those_of_the_last_document_and_no_padding():
    ids = torch.tensor([[5, 6, 7, 8], [5, 6, 7, 8]])
    starts = torch.tensor([[False, False, True, False], [False] * 4])
    valid = torch.tensor([[True] * 4, [False, True, False, True]])
    recent = torch.tensor([[0.0, 2.0, 3.0], [0.0, 0.0, 4.0]])
    history = history_of(ids, starts, valid, 10.0, recent)
    assert history.after().tolist() == [[0, 8, 9], [4, 7, 9]]
    assert history_of(ids, None, None, 10.0, recent).after().tolist() == [[7, 8, 9]] * 2


def told(words, keep, reach):
    """Of one document's words so far, what followed the last one, and the last two, within `reach` tokens before it."""
    counts = torch.zeros(2, WORDS)
    here = len(words) - 1
    for at in range(max(1, here - reach + 2), here + 1):
        if words[at - 1] == words[here]:
            counts[0, words[at]] += keep ** (here - at)
            if at > max(1, here - reach + 2) and words[at - 2] == words[here - 1]:
                counts[1, words[at]] += keep ** (here - at)
    return counts


@pytest.mark.parametrize("reach", [3, 6, 40])
@pytest.mark.parametrize("padded", [True, False])
def test_what_followed_is_looked_up_in_each_document_however_the_text_is_cut(padded, reach):
    generator = torch.Generator().manual_seed(reach)
    ids = torch.randint(0, 3, (8, 30), generator=generator)
    starts, valid = torch.rand(2, 8, 30, generator=generator) < torch.tensor([0.07, 0.7]).view(2, 1, 1)
    valid = valid if padded else torch.ones_like(valid)
    keep, expected = decay(4 * 10.0), []
    for row in zip(ids.tolist(), starts.tolist(), valid.tolist(), strict=True):
        document, found = [], []
        for word, start, counted in zip(*row, strict=True):
            if counted:
                document = [word] if start else [*document, word]
            found.append(told(document, keep, reach) if document else torch.zeros(2, WORDS))
        expected.append(torch.stack(found, 1))
    expected = torch.stack(expected, 1)
    like, kept = torch.zeros(WORDS), torch.zeros(8, reach)
    valid = valid if padded else None
    whole = history_of(ids, starts, valid, 10.0, kept)
    torch.testing.assert_close(torch.stack(whole.counts(like)), expected)
    cuts = [0, 1, 9, 10, 23, 30]
    for begin, end in zip(cuts, cuts[1:], strict=False):
        before = expected[:, :, begin - 1] if begin else torch.zeros(2, 8, WORDS)
        part = history_of(ids[:, begin:end], starts[:, begin:end], None if valid is None else valid[:, begin:end], 10.0, kept)
        for one in (part, whole.part(begin, end)):
            torch.testing.assert_close(torch.stack(one.counts(like)), expected[:, :, begin:end])
            torch.testing.assert_close(torch.stack(one.counts_before(like)), before)
        kept = part.after()
    torch.testing.assert_close(kept, whole.after())
