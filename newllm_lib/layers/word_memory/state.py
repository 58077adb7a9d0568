"""How a memory of words lies in the rows of a model's state."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class WordState:
    """The parts, one after the other, as many as the memory has:

    - `all` (1, words), `slots` (slots, words), `pairs` (pairs, words): counts
    - `slot_key`, `pair_key`: of the last token
    - `hidden`, `slot_read`: of the last token, and `moved`, `information`: the trust, for the head and each kind of counts
    """

    def __init__(self, words: int, hidden: int, slots: int, pairs: int, learns: bool):
        kinds = 1 + (slots > 0) + (pairs > 0)
        sizes = {"all": (1, words), "slots": (slots, words), "pairs": (pairs, words), "slot_key": (slots,), "pair_key": (pairs,)}
        if learns:
            sizes |= {"hidden": (hidden,), "slot_read": (slots,), "moved": (kinds + 1,), "information": (kinds + 1,)}
        self.sizes = {name: size for name, size in sizes.items() if math.prod(size)}
        self.total = sum(math.prod(size) for size in self.sizes.values())

    def unpacked(self, rows: Tensor) -> dict[str, Tensor]:
        """rows (batch, rows, state_size) of a state -> each part, (batch, *size)."""
        parts = rows.flatten(1)[:, : self.total].split([math.prod(size) for size in self.sizes.values()], 1)
        return {name: part.unflatten(1, size) for (name, size), part in zip(self.sizes.items(), parts, strict=True)}

    def packed(self, parts: dict[str, Tensor], state_size: int) -> Tensor:
        """The inverse: as many rows as are needed, the last one filled up with zeros."""
        numbers = torch.cat([parts[name].flatten(1).float() for name in self.sizes], 1)
        padding = self.rows(state_size) * state_size - self.total
        return torch.nn.functional.pad(numbers, (0, padding)).unflatten(1, (-1, state_size))

    def rows(self, state_size: int) -> int:
        return -(-self.total // state_size)
