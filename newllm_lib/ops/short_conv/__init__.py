"""u_t = x_t + sum_k w_k x_{t-k}: a short causal convolution, one filter a channel.

It never looks across a document's start, goes on from a carried state, and skips padding as if it weren't
there.
"""

from __future__ import annotations

import torch

from newllm_lib.ops.common.dispatch import Operation, runs_triton
from newllm_lib.ops.short_conv import reference

_implementation = Operation(reference)


@_implementation.register(runs_triton)
def _triton():
    from newllm_lib.ops.short_conv import triton

    return triton


def short_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    doc_starts: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    conv_state: torch.Tensor | None = None,
    output_final_state: bool = True,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The convolution and what the next call needs; under autocast in its dtype, as torch's own convolutions.

    Args:
        x: (batch, time, dim).
        weight: (dim, width), weight[:, k] for the token k steps back.
        doc_starts: (batch, time) bool, document starts.
        mask: (batch, time) bool, False is padding:
            the convolution passes over it, and u there means nothing.
        conv_state: (batch, width - 1, dim), the tokens before x, oldest first; zeros by default.
        output_final_state: also return the new conv_state (else None).

    Returns:
        u (batch, time, dim) in x's dtype; the new conv_state (batch, width - 1, dim) in x's dtype, zero where
        a document start lies between it and the next token.
    """
    device = x.device.type
    if x.dtype == torch.float32 and torch.is_autocast_enabled(device):
        x = x.to(torch.get_autocast_dtype(device))
    if mask is not None:
        return _without_padding(x, weight, doc_starts, mask, conv_state)
    new = new_conv_state(x, weight.shape[1], doc_starts, conv_state) if output_final_state else None
    return _implementation(x).short_conv(x, weight, doc_starts, conv_state), new


def short_conv_step(
    x: torch.Tensor,
    weight: torch.Tensor,
    start: torch.Tensor | None,
    conv_state: torch.Tensor,
    new_conv_state: torch.Tensor,
) -> torch.Tensor:
    """`short_conv` of one token, for decoding: one small operation instead of a score. No gradients.

    Args:
        x: (batch, dim).
        weight: (dim, width).
        start: (batch,) bool, the token begins a document: nothing before it counts; None: none does.
        conv_state: (batch, (width - 1) * dim) float32, the tokens before, oldest first; may be a view of a
            state, rows apart.
        new_conv_state: the same size, overwritten by what the next token needs; not the memory of
            `conv_state`.

    Returns:
        u (batch, dim) in x's dtype.
    """
    return _implementation(x).short_conv_step(x, weight, start, conv_state, new_conv_state)


def new_conv_state(
    x: torch.Tensor, width: int, doc_starts: torch.Tensor | None, conv_state: torch.Tensor | None
) -> torch.Tensor:
    """The last width - 1 tokens of [conv_state, x]; zeros before the last document start."""
    batch, time, dim = x.shape
    behind = width - 1
    taken = x[:, max(0, time - behind) :]
    if time < behind:
        before = x.new_zeros(batch, behind, dim) if conv_state is None else conv_state.to(x.dtype)
        taken = torch.cat([before[:, time:], taken], 1)
    if doc_starts is None or behind == 0:
        return taken
    last = doc_starts[:, max(0, time - behind) :]
    if time < behind:
        last = torch.nn.functional.pad(last, (behind - time, 0))
    # A token is cut off if a document starts after it: starts counted from the end, without its own.
    after = last.int().flip(1).cumsum(1).flip(1) - last.int()
    return taken.masked_fill((after > 0).unsqueeze(-1), 0.0)


def _without_padding(x, weight, doc_starts, mask, conv_state):
    """Move each row's padding to its end, where causality makes it harmless, and the results back."""
    time, behind = x.shape[1], weight.shape[1] - 1
    order = torch.argsort(~mask, dim=1, stable=True)  # valid positions first, in their order
    moved = x.gather(1, order.unsqueeze(-1).expand_as(x))
    ends = mask.sum(1)
    if doc_starts is not None:
        doc_starts = (doc_starts & mask).gather(1, order)
    u, _ = short_conv(moved, weight, doc_starts, None, conv_state)
    back = torch.argsort(order, dim=1)
    u = u.gather(1, back.unsqueeze(-1).expand_as(u))
    before = x.new_zeros(x.shape[0], behind, x.shape[2]) if conv_state is None else conv_state.to(x.dtype)
    history = torch.cat([before, moved], 1)  # the state ends with the last valid token, at behind + ends - 1
    kept = ends.unsqueeze(1) + torch.arange(behind, device=x.device)
    new = history.gather(1, kept.unsqueeze(-1).expand(-1, -1, x.shape[2]))
    if doc_starts is not None:
        # the document of each place of the history
        document = torch.nn.functional.pad(doc_starts.cumsum(1), (behind, 0))
        same = document.gather(1, kept) == document[:, behind + time - 1 :]
        new = new * same.unsqueeze(-1)
    return u, new
