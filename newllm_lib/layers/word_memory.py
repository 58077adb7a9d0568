"""What a text has said so far, in words: those that came before come again.

    n_t[v] = keep * n_{t-1}[v] + [x_t is v]                 how often each word was said, the longer ago the less
    N_t[i, v] = keep * N_{t-1}[i, v] + k_{t-1}[i] [x_t is v]   the same, apart for each kind of situation in which it was said
    logits_t[v] += Σ s(h_t) w_v log(1 + g n_t[v])           over n and q_t N_t; s, w and g are learned

k and q are shares of a few slots, computed from the hidden state: a word is stored under the situation that it followed, and
looked up by the present one. Context vectors over the vocabulary, of fixed size like the others; they start anew at each
document. Where a unigram cache (Kuhn & De Mori, 1990, IEEE TPAMI 12) mixes probabilities, this adds to the logits, by as much as
the model trusts it at each token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

CHUNK = 128  # tokens whose counts of all words exist at once


@dataclass
class Slots:
    """`written`, `read` (batch, time, slots): where each token's word is stored and looked up; `before` (batch, slots, words)."""

    written: Tensor
    read: Tensor
    before: Tensor


@dataclass
class Said:
    """What is counted: ids (batch, time), starts and valid (batch, time) bool or None, and the counts before (batch, words)."""

    ids: Tensor
    starts: Tensor | None
    valid: Tensor | None
    before: Tensor
    slots: Slots | None = None

    def part(self, begin: int, end: int, kept: list[Tensor]) -> Said:
        """The tokens from `begin` up to `end`, after others that left `kept` (what `after` returns)."""
        cut = [None if t is None else t[:, begin:end] for t in (self.ids, self.starts, self.valid)]
        slots = self.slots and Slots(self.slots.written[:, begin:end], self.slots.read[:, begin:end], kept[1])
        return Said(*cut, kept[0], slots)

    def counts(self, keep: float) -> list[Tensor]:
        """(batch, time, words) float32 after each token: of all, and of what the slots hold for it."""
        place, document, counted = self._places()
        old = (keep**place) * (document == 0)
        lag = (place.unsqueeze(2) - place.unsqueeze(1)).clamp_min(0)
        seen = torch.ones_like(lag, dtype=torch.bool).tril() & (document.unsqueeze(2) == document.unsqueeze(1))
        shares = (keep**lag) * seen * counted.unsqueeze(1)
        found = [self._added(old.unsqueeze(2) * self.before.unsqueeze(1), shares)]
        if self.slots is not None:
            with torch.autocast(self.ids.device.type, enabled=False):  # counts are more than half precision can count
                earlier = old.unsqueeze(2) * (self.slots.read @ self.slots.before)
                found.append(self._added(earlier, shares * (self.slots.read @ self.slots.written.mT)))
        return found

    def after(self, keep: float) -> list[Tensor]:
        """(batch, words), and with slots (batch, slots, words), float32: after the last token."""
        place, document, counted = self._places()
        shares = keep ** (place[:, -1:] - place) * (document == document[:, -1:]) * counted
        old = (keep ** place[:, -1:]) * (document[:, -1:] == 0)
        found = [(old * self.before).scatter_add(1, self.ids, shares)]
        if self.slots is not None:
            shares = shares.unsqueeze(1) * self.slots.written.mT
            found.append(self._added(old.unsqueeze(2) * self.slots.before, shares))
        return found

    def _added(self, counts: Tensor, shares: Tensor) -> Tensor:
        """counts (batch, n, words) and what each token adds to each of n, (batch, n, time)."""
        return counts.scatter_add(2, self.ids.unsqueeze(1).expand_as(shares), shares)

    def _places(self) -> tuple[Tensor, Tensor, Tensor]:
        """How many tokens up to each, how many documents began, and whether it counts: padding does not."""
        counted = torch.ones_like(self.ids) if self.valid is None else self.valid.long()
        begun = torch.zeros_like(self.ids) if self.starts is None else self.starts.long() * counted
        return counted.cumsum(1).float(), begun.cumsum(1), counted.float()


def decay(tokens: float) -> float:
    """`keep` of a memory that lasts so many tokens."""
    return math.exp(-1 / tokens)


class WordSlots(nn.Module):
    """Which slots a token's situation writes to and reads from."""

    def __init__(self, hidden_size: int, slots: int):
        super().__init__()
        self.project = nn.Linear(hidden_size, 2 * slots, bias=False)
        self.slots = slots

    def forward(self, hidden: Tensor, starts: Tensor | None, valid: Tensor | None, last: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """
        Args:
            hidden: (batch, time, hidden_size). last: (batch, slots), the key of the token before; zeros at the very start.
        Returns:
            Each token's place of writing, which is the key of the token before it (none where a document starts), and of
            reading, both (batch, time, slots) float32; and the key of the last token.
        """
        key, query = self.project(hidden).float().chunk(2, -1)
        keys, read = torch.softmax(key, -1), torch.softmax(query, -1) * self.slots
        keys = torch.cat([last.unsqueeze(1), keys], 1)
        if valid is None:
            written, last = keys[:, :-1], keys[:, -1]
        else:  # the token before is the last one that is no padding
            place = torch.arange(1, keys.shape[1], device=keys.device)
            newest = F.pad(torch.where(valid, place, 0).cummax(1).values, (1, 0))
            keys = keys.gather(1, newest.unsqueeze(2).expand_as(keys))
            written, last = keys[:, :-1], keys[:, -1]
        return (written if starts is None else written * ~starts.unsqueeze(2)), read, last


class WordMemory(nn.Module):
    """What the counts add to the logits.

    Args:
        tokens: after so many, a word's count has fallen to 1/e. kinds: of counts: 2 with slots.
    """

    def __init__(self, hidden_size: int, vocab_size: int, tokens: float, kinds: int = 1):
        super().__init__()
        self.keep = decay(tokens)
        self.trust = nn.Linear(hidden_size, kinds)
        self.words = nn.Parameter(torch.ones(kinds, vocab_size))
        self.gain = nn.Parameter(torch.zeros(kinds))  # logarithms

    def reset(self, init) -> None:
        """The first weights, by transformers' `initialization` or torch's `nn.init`: the same small trust everywhere."""
        init.zeros_(self.trust.weight)
        init.constant_(self.trust.bias, 0.1)
        init.ones_(self.words)
        init.zeros_(self.gain)

    def forward(self, hidden: Tensor, counts: list[Tensor]) -> Tensor:
        """hidden (batch, time, hidden_size), counts each (batch, time, words) -> (batch, time, words) float32."""
        trust = self.trust(hidden).float().unbind(-1)
        kinds = zip(trust, self.words, self.gain.exp(), counts, strict=True)
        return sum(t.unsqueeze(-1) * (words * torch.log1p(gain * n)) for t, words, gain, n in kinds)

    def logits(self, hidden: Tensor, weight: Tensor, said: Said, last: int | None = None) -> Tensor:
        """hidden @ weight.T and what the words add, (batch, time, words) float32; with `last` only of so many last positions."""
        time = said.ids.shape[1]
        begin = max(0, time - last) if last else 0
        kept = _before(said)
        kept = said.part(0, begin, kept).after(self.keep) if begin else kept
        found = []
        for start in range(begin, time, CHUNK):
            part = said.part(start, start + CHUNK, kept)
            kept = part.after(self.keep) if start + CHUNK < time else kept
            here = hidden[:, start : start + CHUNK]
            found.append(F.linear(here, weight).float() + self(here, part.counts(self.keep)))
        return torch.cat(found, 1)

    def loss(self, hidden: Tensor, weight: Tensor, said: Said, labels: Tensor, tokens: Tensor | int | None = None) -> Tensor:
        """Cross-entropy in nats of labels (batch, time; -100: not predicted), summed and divided by `tokens` or their number.

        Of a longer text one chunk's logits exist at a time: they are computed again in the backward pass.
        """
        total, kept, time = hidden.new_zeros((), dtype=torch.float32), _before(said), said.ids.shape[1]
        for start in range(0, time, CHUNK):
            part = said.part(start, start + CHUNK, kept)
            kept = part.after(self.keep) if start + CHUNK < time else kept
            arguments = hidden[:, start : start + CHUNK], weight, part, labels[:, start : start + CHUNK]
            if time > CHUNK and torch.is_grad_enabled():
                total = total + checkpoint(self._summed, *arguments, use_reentrant=False)
            else:
                total = total + self._summed(*arguments)
        count = (labels >= 0).sum() if tokens is None else torch.as_tensor(tokens, device=total.device)
        return total / count.clamp_min(1)

    def _summed(self, hidden: Tensor, weight: Tensor, said: Said, labels: Tensor) -> Tensor:
        logits = F.linear(hidden, weight).float() + self(hidden, said.counts(self.keep))
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")


def _before(said: Said) -> list[Tensor]:
    return [said.before] if said.slots is None else [said.before, said.slots.before]
