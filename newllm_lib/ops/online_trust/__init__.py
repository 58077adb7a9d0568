"""How far each of a prediction's parts is to be trusted in a text, learned from that text while it is read.

A prediction is softmax(l_t + Σ_k d_k f_k,t): logits l that training has settled, and parts f of them whose weight is moved by a
few numbers d. When the next token v comes, each d takes a step of Newton's method on that token's loss, as an extended Kalman
filter does with the covariance kept to its diagonal (Puskorius & Feldkamp, 1994, IEEE TNN 5):

    e_k = f_k[v] - mean(f_k),  I_k = keep I_k + variance(f_k),  d_k = d_k + e_k / (prior + I_k)

mean and variance under the prediction, d included. All d and I are 0 where a document starts. No gradients go through it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from newllm_lib.ops.common.dispatch import runs_triton
from newllm_lib.ops.online_trust import reference

PRIOR = 20.0  # of a squared logit: how much a text must tell before it is believed
KEEP = 0.999  # what was learned a thousand tokens ago weighs little


@dataclass
class Trust:
    """`moved` and `information` (batch, parts) float32: d and I."""

    moved: Tensor
    information: Tensor


def online_trust(
    logits: Tensor, parts: list[Tensor], before: tuple[Tensor, list[Tensor]], ids: Tensor, starts: Tensor | None,
    valid: Tensor | None, trust: Trust,
) -> tuple[Tensor, Trust]:  # fmt: skip
    """d at each token, when the token itself has been learned from.

    Args:
        logits: (batch, time, words) float32, of what follows each token, without d. parts: each (batch, time, words) float32.
        before: the same of the token before the first, (batch, words).
        ids: (batch, time). starts, valid: (batch, time) bool or None: document starts; False at padding, which is passed over.
    Returns:
        (batch, time, parts) float32, and the trust after the last token.
    """
    batch, time = ids.shape
    newest = torch.arange(time, device=ids.device).expand(batch, time) if valid is None else newest_before(valid)[:, :-1]
    told = torch.ones_like(ids, dtype=torch.bool) if valid is None else valid
    begins = torch.zeros_like(told) if starts is None else starts & told
    chosen = reference
    if runs_triton(logits):
        from newllm_lib.ops.online_trust import triton as chosen
    learned, moved, information = chosen.online_trust(
        logits, parts, before, ids, newest, told, begins, trust.moved, trust.information, PRIOR, KEEP
    )
    return learned, Trust(moved, information)


def newest_before(valid: Tensor) -> Tensor:
    """valid (batch, time) -> (batch, time + 1): before each place, and after the last one, the number of the newest token that is
    no padding, counted from 1; 0: the one before them all."""
    place = torch.arange(1, valid.shape[1] + 1, device=valid.device)
    return torch.nn.functional.pad(torch.where(valid, place, 0).cummax(1).values, (1, 0))
