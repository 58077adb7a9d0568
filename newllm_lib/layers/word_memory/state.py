"""How a memory of words lies in the rows of a model's state."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class WordState:
    """The parts, one after the other, as many as the memory has:

    - `all` (1, words), `slots` (slots, words): counts
    - `slot_key`: of the last token; `recent` (history,): the last words, their numbers plus 1
    - `hidden`, `slot_read`: of the last token, and `moved`, `information`: the trust, for the head and each kind of counts

    The counts are most of a state, a megabyte a text: they are copied into it once, before the head has learned its trust,
    which is then written over the old one.
    """

    def __init__(self, words: int, hidden: int, slots: int, history: int, learns: bool):
        kinds = 1 + (slots > 0) + 2 * (history > 0)
        sizes = {"all": (1, words), "slots": (slots, words), "slot_key": (slots,), "recent": (history,)}
        if learns:
            sizes |= {"hidden": (hidden,), "slot_read": (slots,), "moved": (kinds + 1,), "information": (kinds + 1,)}
        self.sizes = {name: size for name, size in sizes.items() if math.prod(size)}
        self.total = sum(math.prod(size) for size in self.sizes.values())

    def unpacked(self, rows: Tensor) -> dict[str, Tensor]:
        """rows (batch, rows, state_size) of a state -> each part, (batch, *size)."""
        parts = rows.flatten(1)[:, : self.total].split([math.prod(size) for size in self.sizes.values()], 1)
        return {name: part.unflatten(1, size) for (name, size), part in zip(self.sizes.items(), parts, strict=True)}

    def packed(self, layers: Tensor, parts: dict[str, Tensor]) -> Tensor:
        """The inverse, a whole state: the layers' rows (batch, layers, state_size), then as many as the parts need, the
        last one filled up with zeros."""
        batch, _, state_size = layers.shape
        numbers = [parts[name].flatten(1).float() for name in self.sizes]
        padding = layers.new_zeros(batch, self.rows(state_size) * state_size - self.total)
        return torch.cat([layers.flatten(1), *numbers, padding], 1).unflatten(1, (-1, state_size))

    def trust_(self, state: Tensor, moved: Tensor, information: Tensor) -> None:
        """Write the trust, each (batch, kinds), which lies last, into a state that `packed` has made."""
        _, rows, state_size = state.shape
        learned = torch.cat([moved, information], 1)
        end = (rows - self.rows(state_size)) * state_size + self.total
        state.view(-1, rows * state_size)[:, end - learned.shape[1] : end] = learned

    def rows(self, state_size: int) -> int:
        return -(-self.total // state_size)
