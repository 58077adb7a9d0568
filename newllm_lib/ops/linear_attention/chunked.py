"""Linear attention in plain torch chunks: matrix products for tensor cores, a scan over the chunks.

Inside a chunk all pairs of tokens are weighed, as in ordinary attention; what came before is a sum of k v'
products, one matrix a chunk, which `linear_scan` carries from chunk to chunk. Work and memory grow with time
x chunk. The scheme is that of gated linear attention (Yang et al., 2023, arXiv 2312.06635) with one decay for
each head and token, as in Mamba-2 (Dao & Gu, 2024, arXiv 2405.21060).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from newllm_lib.ops.common.linear_scan import linear_scan
from newllm_lib.ops.linear_attention.reference import least

CHUNK = 64


def linear_attention(q, k, v, log_decay, doc_starts, state, chunk: int = CHUNK):
    """As `linear_attention.linear_attention`."""
    compute, time = torch.promote_types(v.dtype, torch.float32), q.shape[2]
    chunk = min(chunk, time)
    q, k, v = (_cut(x, chunk, 2) for x in (q, k, v))  # (batch, heads, chunks, chunk, ...)
    total = _cut(log_decay.to(compute), chunk, 2).cumsum(-1)
    # documents begun in the chunk so far
    part = None if doc_starts is None else _cut(doc_starts, chunk, 1).cumsum(-1).unsqueeze(1)
    weights = (q @ k.mT).to(compute) * _decay(total, part)
    before, leaving, kept = _edges(total, part)
    states, new = _scan(k, v, leaving, kept, state.to(compute))
    carried = states.to(v.dtype)
    sums = (weights.to(v.dtype) @ v).to(compute) + before * (q @ carried[..., :-1, :].mT).to(compute)
    counts = weights.sum(-1, keepdim=True) + before * (q @ carried[..., -1:, :].mT).to(compute)
    out = (sums / least(counts)).to(v.dtype)
    return out.flatten(2, 3)[:, :, :time], new


def _cut(x: torch.Tensor, chunk: int, dim: int) -> torch.Tensor:
    """`dim` as (chunks, chunk), padded with zeros: tokens with no key, which leave the state as it was."""
    missing = -x.shape[dim] % chunk
    if missing:
        x = F.pad(x, (0, 0) * (x.ndim - 1 - dim) + (0, missing))
    return x.unflatten(dim, (-1, chunk))


def _decay(total: torch.Tensor, part: torch.Tensor | None) -> torch.Tensor:
    """(..., chunk, chunk): what each token still has of each one before it in its document."""
    seen = torch.ones(total.shape[-1], total.shape[-1], dtype=torch.bool, device=total.device).tril()
    if part is not None:
        seen = seen & (part.unsqueeze(-1) == part.unsqueeze(-2))
    return (total.unsqueeze(-1) - total.unsqueeze(-2)).masked_fill(~seen, float("-inf")).exp()


def _edges(total: torch.Tensor, part: torch.Tensor | None):
    """(..., chunk, 1) what each token has of what came before the chunk, and what of it is left at the
    chunk's end; (..., 1) what is left there of what came before."""
    end = total[..., -1:]
    before, leaving, kept = total, end - total, end
    if part is not None:
        last = part[..., -1:]
        never = float("-inf")
        before, leaving = before.masked_fill(part > 0, never), leaving.masked_fill(part != last, never)
        kept = kept.masked_fill(last > 0, never)
    return before.exp().unsqueeze(-1), leaving.exp().unsqueeze(-1), kept.exp()


def _scan(k, v, leaving, kept, state):
    """The state before each chunk (batch, heads, chunks, dim + 1, features), and the one after the last."""
    keys = k * leaving.to(k.dtype)
    added = torch.cat([v.mT @ keys, keys.sum(-2, keepdim=True)], -2).to(state.dtype)
    flat = added.flatten(3).flatten(0, 1)  # (batch x heads, chunks, ...)
    gates = kept.flatten(0, 1).expand_as(flat)
    after, last = linear_scan(gates, flat, state.flatten(2).flatten(0, 1))
    after = after.view(added.shape)
    return torch.cat([state.unsqueeze(2), after[:, :, :-1]], 2), last.view(state.shape)
