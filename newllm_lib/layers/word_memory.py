"""What a text has said so far, in words: those that came before come again.

    n_t[v] = keep * n_{t-1}[v] + [x_t is v]           how often each word was said, the longer ago the less
    logits_t[v] += s(h_t) w_v log(1 + g n_t[v])       s, w and g are learned

A context vector over the vocabulary, of fixed size like the others; it starts anew at each document. Where a unigram cache
(Kuhn & De Mori, 1990, IEEE TPAMI 12) mixes probabilities, this adds to the logits, by as much as the model trusts it at each
token. Nothing is learned through the counts, so they need no gradient.
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
class Said:
    """What is counted: ids (batch, time), starts and valid (batch, time) bool or None, and the counts before (batch, words)."""

    ids: Tensor
    starts: Tensor | None
    valid: Tensor | None
    before: Tensor

    def part(self, begin: int, end: int, before: Tensor) -> Said:
        cut = (None if t is None else t[:, begin:end] for t in (self.ids, self.starts, self.valid))
        return Said(*cut, before)

    def counts(self, keep: float) -> Tensor:
        """(batch, time, words) float32: after each token."""
        batch, time = self.ids.shape
        place, document, counted = self._places()
        old = (keep**place) * (document == 0)
        lag = (place.unsqueeze(2) - place.unsqueeze(1)).clamp_min(0)
        seen = torch.ones_like(lag, dtype=torch.bool).tril() & (document.unsqueeze(2) == document.unsqueeze(1))
        shares = (keep**lag) * seen * counted.unsqueeze(1)
        counts = old.unsqueeze(2) * self.before.unsqueeze(1)
        return counts.scatter_add(2, self.ids.unsqueeze(1).expand(batch, time, time), shares)

    def after(self, keep: float) -> Tensor:
        """(batch, words) float32: after the last token."""
        place, document, counted = self._places()
        shares = keep ** (place[:, -1:] - place) * (document == document[:, -1:]) * counted
        old = (keep ** place[:, -1:]) * (document[:, -1:] == 0)
        return (old * self.before).scatter_add(1, self.ids, shares)

    def _places(self) -> tuple[Tensor, Tensor, Tensor]:
        """How many tokens up to each, how many documents began, and whether it counts: padding does not."""
        counted = torch.ones_like(self.ids) if self.valid is None else self.valid.long()
        begun = torch.zeros_like(self.ids) if self.starts is None else self.starts.long() * counted
        return counted.cumsum(1).float(), begun.cumsum(1), counted.float()


def decay(tokens: float) -> float:
    """`keep` of a memory that lasts so many tokens."""
    return math.exp(-1 / tokens)


class WordMemory(nn.Module):
    """What the counts add to the logits.

    Args:
        tokens: after so many, a word's count has fallen to 1/e.
    """

    def __init__(self, hidden_size: int, vocab_size: int, tokens: float):
        super().__init__()
        self.keep = decay(tokens)
        self.trust = nn.Linear(hidden_size, 1)
        self.words = nn.Parameter(torch.ones(vocab_size))
        self.gain = nn.Parameter(torch.zeros(1))  # a logarithm

    def reset(self, init) -> None:
        """The first weights, by transformers' `initialization` or torch's `nn.init`: the same small trust everywhere."""
        init.zeros_(self.trust.weight)
        init.constant_(self.trust.bias, 0.1)
        init.ones_(self.words)
        init.zeros_(self.gain)

    def forward(self, hidden: Tensor, counts: Tensor) -> Tensor:
        """hidden (batch, time, hidden_size), counts (batch, time, words) -> (batch, time, words) float32."""
        return self.trust(hidden).float() * (self.words * torch.log1p(self.gain.exp() * counts))

    def logits(self, hidden: Tensor, weight: Tensor, said: Said, last: int | None = None) -> Tensor:
        """hidden @ weight.T and what the words add, (batch, time, words) float32; with `last` only of so many last positions."""
        time = said.ids.shape[1]
        begin = max(0, time - last) if last else 0
        before = said.part(0, begin, said.before).after(self.keep) if begin else said.before
        found = []
        for start in range(begin, time, CHUNK):
            part = said.part(start, start + CHUNK, before)
            counts = part.counts(self.keep)
            before = counts[:, -1]
            here = hidden[:, start : start + CHUNK]
            found.append(F.linear(here, weight).float() + self(here, counts))
        return torch.cat(found, 1)

    def loss(self, hidden: Tensor, weight: Tensor, said: Said, labels: Tensor, tokens: Tensor | int | None = None) -> Tensor:
        """Cross-entropy in nats of labels (batch, time; -100: not predicted), summed and divided by `tokens` or their number.

        Of a longer text one chunk's logits exist at a time: they are computed again in the backward pass.
        """
        total, before, time = hidden.new_zeros((), dtype=torch.float32), said.before, said.ids.shape[1]
        for start in range(0, time, CHUNK):
            inside = slice(start, start + CHUNK)
            part = said.part(start, start + CHUNK, before)
            before = part.after(self.keep) if start + CHUNK < time else before
            arguments = hidden[:, inside], weight, part.ids, part.starts, part.valid, part.before, labels[:, inside]
            if time > CHUNK and torch.is_grad_enabled():
                total = total + checkpoint(self._summed, *arguments, use_reentrant=False)
            else:
                total = total + self._summed(*arguments)
        count = (labels >= 0).sum() if tokens is None else torch.as_tensor(tokens, device=total.device)
        return total / count.clamp_min(1)

    def _summed(self, hidden, weight, ids, starts, valid, before, labels) -> Tensor:
        counts = Said(ids, starts, valid, before).counts(self.keep)
        logits = F.linear(hidden, weight).float() + self(hidden, counts)
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")
