"""The context scan without a Python loop over time: the version for processors, in plain torch.

The sequence is cut into about sqrt(time) chunks. Inside the chunks, all of them advance one step together; then the state at the
chunk edges is passed along; then every position adds what its chunk started with. That is 2 sqrt(time) small steps instead of
time, three passes over the data, and products of gates only (no logarithms, no divisions), so nothing overflows. The blocked scan
is due to Blelloch, "Prefix Sums and Their Applications" (1990).
"""

from __future__ import annotations

import math

import torch


@torch.library.custom_op("newllm::chunked_scan", mutates_args=())  # one node for torch.compile, whatever happens inside
def _scan(a: torch.Tensor, b: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
    """c_t = a_t c_{t-1} + b_t for a, b (batch, time, dim) and state (batch, dim), all of one dtype. Returns c."""
    batch, time, dim = b.shape
    length = max(1, math.isqrt(time - 1) + 1)
    chunks = -(-time // length)
    padding = chunks * length - time
    if padding:  # at the end, where nothing depends on it
        a = torch.nn.functional.pad(a, (0, 0, 0, padding))
        b = torch.nn.functional.pad(b, (0, 0, 0, padding))
    a, b = a.reshape(batch, chunks, length, dim), b.reshape(batch, chunks, length, dim)
    kept, context = torch.empty_like(a), torch.empty_like(b)  # product of gates since the chunk's start; c if it started at 0
    kept[:, :, 0], context[:, :, 0] = a[:, :, 0], b[:, :, 0]
    for t in range(1, length):
        torch.mul(kept[:, :, t - 1], a[:, :, t], out=kept[:, :, t])
        torch.addcmul(b[:, :, t], context[:, :, t - 1], a[:, :, t], out=context[:, :, t])
    starts = torch.empty_like(b[:, :, 0])
    for k in range(chunks):
        starts[:, k] = state
        state = torch.addcmul(context[:, k, -1], kept[:, k, -1], state)
    context.addcmul_(kept, starts.unsqueeze(2))
    return context.reshape(batch, chunks * length, dim)[:, :time].contiguous()


@_scan.register_fake
def _(a, b, state):
    return torch.empty_like(b, memory_format=torch.contiguous_format)


class _ContextScan(torch.autograd.Function):
    """The gradient of a scan is the same scan backwards: g_t = dc_t + a_{t+1} g_{t+1}, da_t = g_t c_{t-1}, db_t = g_t."""

    @staticmethod
    def forward(ctx, a, b, initial_state):
        compute = torch.float64 if b.dtype == torch.float64 else torch.float32
        a_, state = a.to(compute), initial_state.to(compute)
        c = _scan(a_, b.to(compute), state)
        ctx.save_for_backward(a_, c, state)
        ctx.dtypes = a.dtype, b.dtype, initial_state.dtype
        return c.to(b.dtype), c[:, -1].contiguous()

    @staticmethod
    def backward(ctx, grad_c, grad_final):
        a, c, state = ctx.saved_tensors
        g = torch.zeros_like(c) if grad_c is None else grad_c.to(c.dtype)
        next_a = torch.cat([a[:, 1:], torch.zeros_like(a[:, :1])], 1)
        first = torch.zeros_like(state) if grad_final is None else grad_final.to(c.dtype)
        g = torch.cat([g[:, :-1], g[:, -1:] + first.unsqueeze(1)], 1)
        g = _scan(next_a.flip(1), g.flip(1), torch.zeros_like(state)).flip(1)
        previous = torch.cat([state.unsqueeze(1), c[:, :-1]], 1)
        to_a, to_b, to_state = ctx.dtypes
        return (g * previous).to(to_a), g.to(to_b), (g[:, 0] * a[:, 0]).to(to_state)


def context_scan(
    a: torch.Tensor, b: torch.Tensor, initial_state: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `reference.context_scan`: a, b (batch, time, dim), initial_state (batch, dim) -> c (batch, time, dim), final state."""
    if initial_state is None:
        initial_state = b.new_zeros(b.shape[0], b.shape[2], dtype=torch.float64 if b.dtype == torch.float64 else torch.float32)
    return _ContextScan.apply(a, b, initial_state)
