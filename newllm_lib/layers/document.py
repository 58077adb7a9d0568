"""Where documents start in a packed batch: at each end-of-text token, which begins a new one."""

from __future__ import annotations

import torch


def document_starts(input_ids: torch.Tensor, bos_token_id: int | None) -> torch.Tensor | None:
    """(batch, time) bool: True where a document starts; None where the model has no such token."""
    return None if bos_token_id is None else input_ids == bos_token_id


def positions_in_document(doc_starts: torch.Tensor) -> torch.Tensor:
    """(batch, time) int64: tokens since the document's start (or the block's, if it began before)."""
    index = torch.arange(doc_starts.shape[1], device=doc_starts.device).expand_as(doc_starts)
    return index - (index * doc_starts).cummax(1).values


def padding(attention_mask: torch.Tensor | None, time: int) -> torch.Tensor | None:
    """(batch, time) bool, False at padding; None where there is none, which spares the layers its treatment.

    `generate`'s mask covers the whole text while the input is its last token, which is never padding that
    matters.
    """
    if attention_mask is None or (time == 1 and attention_mask.shape[1] > 1):
        return None
    mask = attention_mask[:, -time:].bool()
    return None if not torch.compiler.is_compiling() and bool(mask.all()) else mask
