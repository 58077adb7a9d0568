"""What a text has said so far, in words: those that came before come again.

    logits_t = (1 + d0) h_t E + Σ_k (s_k(h_t) + d_k) w_k[v] log(1 + g_k n_k,t[v])

over kinds k of counts (`counts.py`): of all words; of the words that followed a situation, by learned keys of a few slots; of the
words that followed the same word as now, and the same two. s, w and g are learned in training. d is learned from the text itself,
while it is read (`ops.online_trust`): how far memory is to be trusted in this text.

All is of fixed size and starts anew at each document. Where a unigram cache (Kuhn & De Mori, 1990, IEEE TPAMI 12) mixes
probabilities, this adds to the logits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from newllm_lib.layers.word_memory.counts import Said, keys_before, newest_of
from newllm_lib.ops.online_trust import Trust, online_trust

CHUNK = 128  # tokens whose counts of all words exist at once


@dataclass
class Experience:
    """What trust is learned from: how the token before predicted. `hidden` (batch, hidden_size), `reads` (batch, rows) of each
    table or None, and what was learned so far."""

    hidden: Tensor
    reads: list[Tensor | None]
    trust: Trust


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
        written, last = keys_before(torch.softmax(key, -1), last, starts, valid)
        return written, torch.softmax(query, -1) * self.slots, last


class WordMemory(nn.Module):
    """What the counts add to the logits.

    Args:
        kinds: of counts.
    """

    def __init__(self, hidden_size: int, vocab_size: int, kinds: int = 1):
        super().__init__()
        self.trust = nn.Linear(hidden_size, kinds)
        self.words = nn.Parameter(torch.ones(kinds, vocab_size))
        self.gain = nn.Parameter(torch.zeros(kinds))  # logarithms

    def reset(self, init) -> None:
        """The first weights, by transformers' `initialization` or torch's `nn.init`: the same small trust everywhere."""
        init.zeros_(self.trust.weight)
        init.constant_(self.trust.bias, 0.1)
        init.ones_(self.words)
        init.zeros_(self.gain)

    def forward(self, hidden: Tensor, weight: Tensor, said: Said, experience: Experience | None = None):
        """Logits (batch, time, words) float32 and, with `experience`, the trust learned when they have been read (else None)."""
        heads, features = F.linear(hidden, weight).float(), self._features(said.counts())
        trust = self.trust(hidden).float()
        logits = heads + self._weighed(trust, features)
        if experience is None:
            return logits, None
        with torch.no_grad():
            before = self._before(weight, said, experience)
            learned, after = online_trust(logits, [heads, *features], before, said.ids, said.starts, said.valid, experience.trust)
        learned = learned.unbind(-1)
        return logits + sum(d.unsqueeze(-1) * f for d, f in zip(learned, [heads, *features], strict=True)), after

    def _features(self, counts: list[Tensor]) -> list[Tensor]:
        kinds = zip(self.words, self.gain.exp(), counts, strict=True)
        return [words * torch.log1p(gain * n) for words, gain, n in kinds]

    @staticmethod
    def _weighed(trust: Tensor, features: list[Tensor]) -> Tensor:
        return sum(t.unsqueeze(-1) * f for t, f in zip(trust.unbind(-1), features, strict=True))

    def _before(self, weight: Tensor, said: Said, experience: Experience) -> tuple[Tensor, list[Tensor]]:
        """Logits (batch, words) of the token before the first and what they are made of, as when it was read."""
        hidden = experience.hidden.to(weight.dtype)
        head = F.linear(hidden, weight).float()
        counts = [
            table.before[:, 0] if read is None else (read.unsqueeze(1) @ table.before).squeeze(1)
            for table, read in zip(said.tables, experience.reads, strict=True)
        ]
        if said.history is not None:
            counts += said.history.counts_before(self.words[0])
        features = self._features(counts)
        return head + self._weighed(self.trust(hidden).float(), features), [head, *features]

    def logits(
        self, hidden: Tensor, weight: Tensor, said: Said, experience: Experience | None, last: int | None = None
    ) -> tuple[Tensor, Trust | None]:
        """Logits (batch, time, words) float32, with `last` only of so many last positions; and the trust after them."""
        time = said.ids.shape[1]
        wanted = min(last or time, time)
        place = 0 if experience else time - wanted  # trust is learned from every token
        found, trust = [], experience and experience.trust
        for here, part, known in _chunks(hidden, said, experience, place):
            made, trust = self(here, weight, part, known and replace(known, trust=trust))
            place += here.shape[1]
            if place > time - wanted:
                found.append(made)
        return torch.cat(found, 1)[:, -wanted:], trust

    def loss(
        self, hidden: Tensor, weight: Tensor, said: Said, experience: Experience | None, labels: Tensor,
        tokens: Tensor | int | None = None,
    ) -> tuple[Tensor, Trust | None]:  # fmt: skip
        """Cross-entropy in nats of labels (batch, time; -100: not predicted), summed and divided by `tokens` or their number; and
        the trust after the last token.

        Of a longer text one chunk's logits exist at a time: they are computed again in the backward pass.
        """
        total, place, trust = hidden.new_zeros((), dtype=torch.float32), 0, experience and experience.trust
        for here, part, known in _chunks(hidden, said, experience):
            arguments = here, weight, part, known and replace(known, trust=trust), labels[:, place : place + CHUNK]
            if said.ids.shape[1] > CHUNK and torch.is_grad_enabled():
                added, trust = checkpoint(self._summed, *arguments, use_reentrant=False)
            else:
                added, trust = self._summed(*arguments)
            total, place = total + added, place + CHUNK
        count = (labels >= 0).sum() if tokens is None else torch.as_tensor(tokens, device=total.device)
        return total / count.clamp_min(1), trust

    def _summed(self, hidden, weight, said, experience, labels) -> tuple[Tensor, Trust | None]:
        logits, trust = self(hidden, weight, said, experience)
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum"), trust


def _chunks(hidden: Tensor, said: Said, experience: Experience | None, begin: int = 0):
    """From token `begin` on, CHUNK tokens at a time: their hidden states, what is counted, and what they go on from."""
    kept, time = [table.before for table in said.tables], said.ids.shape[1]
    if begin:
        kept = said.part(0, begin, kept).after()
    for start in range(begin, time, CHUNK):
        part = said.part(start, start + CHUNK, kept)
        known = experience and _at(start, hidden, said, experience)
        yield hidden[:, start : start + CHUNK], part, known
        kept = part.after() if start + CHUNK < time else kept


def _at(start: int, hidden: Tensor, said: Said, experience: Experience) -> Experience:
    """What the tokens from `start` on go on from, but for the trust: the newest token before them that is no padding."""
    if start == 0:
        return experience
    newest = said.newest(start)
    reads = [
        None if table.read is None else newest_of(newest, first, table.read)
        for table, first in zip(said.tables, experience.reads, strict=True)
    ]
    return replace(experience, hidden=newest_of(newest, experience.hidden, hidden.detach()), reads=reads)
