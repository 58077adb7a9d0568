"""How often each word was said so far in a text, the longer ago the less; also apart for each kind of situation.

    n_t[v] = keep * n_{t-1}[v] + [x_t is v]                  of all
    N_t[i, v] = keep * N_{t-1}[i, v] + k_{t-1}[i] [x_t is v]    of the words that followed a situation

k are keys: a word is stored under the key of the token that it followed, and looked up by the present token's query q: q_t N_t.
What followed the same word, and the same two, is counted in the last tokens themselves (`ops.followers`).

Everything starts anew at each document; padding is passed over.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from newllm_lib.ops.followers import followers
from newllm_lib.ops.online_trust import newest_before

FOLLOWERS_LAST = 4  # times as long as counts of words: what followed one of them is rarer


@dataclass
class Table:
    """Counts that are kept, `before` (batch, rows, words) float32 before the first token, and how the tokens use them.

    `written`, `read` (batch, time, rows) float32: the key that each token's word is stored under, and the token's own query; None
    for a single row of all words.
    """

    keep: float
    before: Tensor
    written: Tensor | None = None
    read: Tensor | None = None


@dataclass
class History:
    """A text's last words, in which is looked up what followed a word.

    `words` (batch, length) int64: a word's number plus 1, none left out but padding; 0 before the text's beginning. `place`,
    `first` (batch, time): where each token lies (padding: the token before it), and where its document begins. `before`, `begun`
    (batch, 1): the same of the token before the first.
    """

    words: Tensor
    place: Tensor
    first: Tensor
    before: Tensor
    begun: Tensor
    reach: int
    keep: float

    def part(self, begin: int, end: int) -> History:
        """The tokens from `begin` up to `end`."""
        place, first = self.place[:, begin:end], self.first[:, begin:end]
        if begin == 0:
            return replace(self, place=place, first=first)
        before, begun = (numbers[:, begin - 1, None] for numbers in (self.place, self.first))
        return replace(self, place=place, first=first, before=before, begun=begun)

    def counts(self, like: Tensor) -> list[Tensor]:
        """(batch, time, words) float32 of what followed the same word, and the same two, on the device of `like` (words,)."""
        return followers(self.words, self.place, self.first, self.reach, self.keep, like)

    def counts_before(self, like: Tensor) -> list[Tensor]:
        """(batch, words) of the token before the first."""
        found = followers(self.words, self.before, self.begun, self.reach, self.keep, like)
        return [counts.squeeze(1) for counts in found]

    def after(self) -> Tensor:
        """(batch, reach) float32: the words that the next ones may look up."""
        place = torch.arange(self.words.shape[1], device=self.words.device)
        return (self.words * (place >= self.first[:, -1:]))[:, -self.reach :].float()


@dataclass
class Said:
    """What is counted: ids (batch, time), starts and valid (batch, time) bool or None, in which tables; and the text's words,
    which have an `after` of their own."""

    ids: Tensor
    starts: Tensor | None
    valid: Tensor | None
    tables: list[Table]
    history: History | None = None

    def part(self, begin: int, end: int, before: list[Tensor]) -> Said:
        """The tokens from `begin` up to `end`, after others that left `before` (what `after` returns)."""
        ids, starts, valid = (None if t is None else t[:, begin:end] for t in (self.ids, self.starts, self.valid))
        tables = []
        for table, kept in zip(self.tables, before, strict=True):
            keys = (None if t is None else t[:, begin:end] for t in (table.written, table.read))
            tables.append(replace(table, before=kept, **dict(zip(("written", "read"), keys, strict=True))))
        return Said(ids, starts, valid, tables, self.history and self.history.part(begin, end))

    def counts(self) -> list[Tensor]:
        """(batch, time, words) float32 after each token, of each table, and of the history's two."""
        place, document, counted = self._places()
        lag = (place.unsqueeze(2) - place.unsqueeze(1)).clamp_min(0)
        seen = torch.ones_like(lag, dtype=torch.bool).tril() & (document.unsqueeze(2) == document.unsqueeze(1))
        seen = seen * counted.unsqueeze(1)
        found = []
        with torch.autocast(self.ids.device.type, enabled=False):  # counts are more than half precision can count
            for table in self.tables:
                shares, earlier = (table.keep**lag) * seen, (table.keep**place) * (document == 0)
                if table.read is None:
                    earlier = earlier.unsqueeze(2) * table.before
                else:
                    earlier = earlier.unsqueeze(2) * (table.read @ table.before)
                    shares = shares * (table.read @ table.written.mT)
                found.append(self._added(earlier, shares))
        return found + (self.history.counts(self.tables[0].before[0, 0]) if self.history else [])

    def after(self) -> list[Tensor]:
        """(batch, rows, words) float32 after the last token, of each table."""
        place, document, counted = self._places()
        found = []
        for table in self.tables:
            shares = (table.keep ** (place[:, -1:] - place) * (document == document[:, -1:]) * counted).unsqueeze(1)
            shares = shares if table.written is None else shares * table.written.mT
            old = (table.keep ** place[:, -1:]) * (document[:, -1:] == 0)
            found.append(self._added(old.unsqueeze(2) * table.before, shares))
        return found

    def newest(self, end: int | None = None) -> Tensor:
        """(batch,): the number, from 1, of the newest token before `end` (default: of all) that is no padding; 0: none."""
        end = self.ids.shape[1] if end is None else end
        return torch.full_like(self.ids[:, 0], end) if self.valid is None else newest_before(self.valid[:, :end])[:, -1]

    def _added(self, counts: Tensor, shares: Tensor) -> Tensor:
        """counts (batch, n, words), made for this, with what each token adds to each of n, shares (batch, n, time)."""
        return counts.scatter_add_(2, self.ids.unsqueeze(1).expand_as(shares), shares)

    def _places(self) -> tuple[Tensor, Tensor, Tensor]:
        """How many tokens up to each, how many documents began, and whether it counts: padding does not."""
        counted = torch.ones_like(self.ids) if self.valid is None else self.valid.long()
        begun = torch.zeros_like(self.ids) if self.starts is None else self.starts.long() * counted
        return counted.cumsum(1).float(), begun.cumsum(1), counted.float()


def decay(tokens: float) -> float:
    """`keep` of counts that last so many tokens: after them 1/e is left."""
    return math.exp(-1 / tokens)


def keys_before(keys: Tensor, first: Tensor, starts: Tensor | None, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """Each token's `written`, the key of the token before it, and the last token's key.

    Args:
        keys: (batch, time, rows), each token's own. first: (batch, rows), of the token before them all; zeros: none.
    """
    keys = torch.cat([first.unsqueeze(1), keys], 1)
    if valid is not None:  # the token before is the last one that is no padding
        newest = newest_before(valid)
        keys = keys.gather(1, newest.unsqueeze(2).expand_as(keys))
    written, last = keys[:, :-1], keys[:, -1]
    return (written if starts is None else written * ~starts.unsqueeze(2)), last


def history_of(ids: Tensor, starts: Tensor | None, valid: Tensor | None, tokens: float, recent: Tensor) -> History:
    """The words of a text that goes on. tokens: how long single words last; recent: (batch, reach), what `History.after` left,
    or zeros."""
    reach, counted = recent.shape[1], torch.ones_like(ids) if valid is None else valid.long()
    words = torch.cat([recent.long(), ids + 1], 1)
    if valid is not None:  # padding goes to the front, as nothing
        kept = torch.cat([torch.ones_like(words[:, :reach]), counted], 1)
        order = kept.argsort(dim=1, stable=True)
        words = (words * kept).gather(1, order)
    before = reach - 1 + ids.shape[1] - counted.sum(1, keepdim=True)
    place = before + counted.cumsum(1)
    first = torch.zeros_like(place)
    if starts is not None:
        first = torch.where(starts & (counted > 0), place, 0).cummax(1).values
    return History(words, place, first, before, torch.zeros_like(before), reach, decay(FOLLOWERS_LAST * tokens))


def newest_of(newest: Tensor, first: Tensor, later: Tensor) -> Tensor:
    """(batch, size): `later` (batch, time, size) at token number `newest` (batch,), from 1; `first` (batch, size) for 0."""
    rows = torch.arange(len(newest), device=newest.device)
    return torch.where((newest == 0).unsqueeze(1), first.to(later.dtype), later[rows, (newest - 1).clamp_min(0)])

