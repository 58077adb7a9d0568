"""c_t = a_t * c_{t-1} + b_t without a Python loop over time, in plain torch.

The sequence is cut into about sqrt(time) chunks. Inside the chunks, all of them advance one step together;
then the state at the chunk edges is passed along; then every position adds what its chunk started with. That
is 2 sqrt(time) small steps instead of time, three passes over the data, and products of gates only (no
logarithms, no divisions), so nothing overflows. The blocked scan is due to Blelloch, "Prefix Sums and Their
Applications" (1990).
"""

from __future__ import annotations

import functools
import math

import torch


@functools.cache
def _chunk_length(time: int) -> int:
    """Near sqrt(time), and a divisor of it where there is one that is not far: nothing is padded then."""
    best = max(1, math.isqrt(time - 1) + 1)
    near = [n for n in range(1, time + 1) if time % n == 0 and best <= 2 * n <= 4 * best]
    return min(near, key=lambda n: abs(n - best), default=best)


# one node for torch.compile, whatever happens inside
@torch.library.custom_op("newllm::chunked_scan", mutates_args=())
def scan(a: torch.Tensor, b: torch.Tensor, state: torch.Tensor, backwards: bool = False) -> torch.Tensor:
    """c_t = a_t c_{t-1} + b_t for a, b (batch, time, dim), state (batch, dim), of one dtype. Returns c.

    backwards: c_t = a_{t+1} c_{t+1} + b_t, from c_T = b_T + state: the gradient of a scan.
    """
    batch, time, dim = b.shape
    length = _chunk_length(time)
    chunks = -(-time // length)
    padding = chunks * length - time
    if padding:  # at the end, where nothing depends on it; backwards, the state passes through it
        a = torch.nn.functional.pad(a, (0, 0, 0, padding), value=float(backwards))
        b = torch.nn.functional.pad(b, (0, 0, 0, padding))
    if backwards:  # the gate between t and t + 1 stands at t, then
        a = torch.cat([a[:, 1:], torch.ones_like(a[:, :1])], 1)
    a, b = a.reshape(batch, chunks, length, dim), b.reshape(batch, chunks, length, dim)
    # product of gates since the chunk's start; c if it started at 0
    kept, context = (
        torch.empty_like(a),
        torch.empty_like(b),
    )
    step = slice(None, None, -1) if backwards else slice(None)
    gates, inputs, products, contexts = ((x.unbind(2))[step] for x in (a, b, kept, context))
    products[0].copy_(gates[0])
    contexts[0].copy_(inputs[0])
    for t in range(1, length):
        torch.mul(products[t - 1], gates[t], out=products[t])
        torch.addcmul(inputs[t], contexts[t - 1], gates[t], out=contexts[t])
    doc_starts = torch.empty_like(contexts[0])
    edges = zip(
        doc_starts.unbind(1)[step], contexts[-1].unbind(1)[step], products[-1].unbind(1)[step], strict=True
    )
    for start, end, product in edges:
        start.copy_(state)
        state = torch.addcmul(end, product, state)
    context.addcmul_(kept, doc_starts.unsqueeze(2))
    context = context.reshape(batch, chunks * length, dim)
    return context[:, :time].contiguous() if padding else context


@scan.register_fake
def _(a, b, state, backwards=False):
    return torch.empty_like(b, memory_format=torch.contiguous_format)


class _LinearScan(torch.autograd.Function):
    """The same scan backwards: g_t = dc_t + a_{t+1} g_{t+1}, da_t = g_t c_{t-1}, db_t = g_t."""

    @staticmethod
    def forward(ctx, a, b, initial_state):
        compute = torch.float64 if b.dtype == torch.float64 else torch.float32
        a_, state = a.to(compute), initial_state.to(compute)
        c = scan(a_, b.to(compute), state)
        ctx.save_for_backward(a_, c, state)
        ctx.dtypes = a.dtype, b.dtype, initial_state.dtype
        return c.to(b.dtype), c[:, -1].contiguous()

    @staticmethod
    def backward(ctx, grad_c, grad_final):
        a, c, state = ctx.saved_tensors
        dc = torch.zeros_like(c) if grad_c is None else grad_c.to(c.dtype)
        final = torch.zeros_like(state) if grad_final is None else grad_final.to(c.dtype)
        g = scan(a, dc, final, True)
        previous = torch.cat([state.unsqueeze(1), c[:, :-1]], 1)
        to_a, to_b, to_state = ctx.dtypes
        return (g * previous).to(to_a), g.to(to_b), (g[:, 0] * a[:, 0]).to(to_state)


def linear_scan(
    a: torch.Tensor, b: torch.Tensor, initial_state: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """c_t = a_t * c_{t-1} + b_t, elementwise.

    Args:
        a: (batch, time, dim), gates; 0 starts anew.
        b: (batch, time, dim), inputs.
        initial_state: (batch, dim) before the first step; zeros by default.

    Returns:
        c (batch, time, dim) in b's dtype and the final state (batch, dim) in float32 (float64 for float64
        inputs).
    """
    compute = torch.float64 if b.dtype == torch.float64 else torch.float32
    if initial_state is None:
        initial_state = b.new_zeros(b.shape[0], b.shape[2], dtype=compute)
    if b.shape[1] == 1:  # one decoding step: the recurrence itself
        state = a[:, 0].to(compute) * initial_state.to(compute) + b[:, 0].to(compute)
        return state.unsqueeze(1).to(b.dtype), state
    return _LinearScan.apply(a, b, initial_state)
