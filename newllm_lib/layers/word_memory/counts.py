"""How often each word was said so far in a text, the longer ago the less; also apart for each kind of situation.

    n_t[v] = keep * n_{t-1}[v] + [x_t is v]                  of all
    N_t[i, v] = keep * N_{t-1}[i, v] + k_{t-1}[i] [x_t is v]    of the words that followed a situation

k are keys: a word is stored under the key of the token that it followed, and looked up by the present token's query q: q_t N_t.
Everything starts anew at each document; padding is passed over.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from newllm_lib.ops.online_trust import newest_before

PAIRS_LAST = 4  # times as long as single words: pairs are rarer


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
class Said:
    """What is counted: ids (batch, time), starts and valid (batch, time) bool or None, and in which tables."""

    ids: Tensor
    starts: Tensor | None
    valid: Tensor | None
    tables: list[Table]

    def part(self, begin: int, end: int, before: list[Tensor]) -> Said:
        """The tokens from `begin` up to `end`, after others that left `before` (what `after` returns)."""
        ids, starts, valid = (None if t is None else t[:, begin:end] for t in (self.ids, self.starts, self.valid))
        tables = []
        for table, kept in zip(self.tables, before, strict=True):
            keys = (None if t is None else t[:, begin:end] for t in (table.written, table.read))
            tables.append(replace(table, before=kept, **dict(zip(("written", "read"), keys, strict=True))))
        return Said(ids, starts, valid, tables)

    def counts(self) -> list[Tensor]:
        """(batch, time, words) float32 after each token, of each table."""
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
        return found

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


def pair_table(
    ids: Tensor, starts: Tensor | None, valid: Tensor | None, tokens: float, before: Tensor, first: Tensor
) -> tuple[Table, Tensor]:
    """The table of what followed each word, and the last token's key. tokens: how long single words last; before: (batch, rows,
    words), first: (batch, rows), the key of the token before the first."""
    read = pair_keys(ids, before.shape[1])
    written, last = keys_before(read, first, starts, valid)
    return Table(decay(PAIRS_LAST * tokens), before, written, read), last


def newest_of(newest: Tensor, first: Tensor, later: Tensor) -> Tensor:
    """(batch, size): `later` (batch, time, size) at token number `newest` (batch,), from 1; `first` (batch, size) for 0."""
    rows = torch.arange(len(newest), device=newest.device)
    return torch.where((newest == 0).unsqueeze(1), first.to(later.dtype), later[rows, (newest - 1).clamp_min(0)])


def pair_keys(ids: Tensor, rows: int) -> Tensor:
    """ids (batch, time) -> (batch, time, rows) float32, a one in the row of each word; words share rows where there are more."""
    bucket = (ids * 2654435761 >> 7) % rows
    return torch.nn.functional.one_hot(bucket, rows).float()
