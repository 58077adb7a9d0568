"""The sequential recurrence, fast: the numbers of `reference` to rounding, with only the recurrence left in the loop.

Out of the loop: W_e e_t + b of the first layer, one matrix product over all tokens; and in the backward pass every
weight's gradient, one product over all tokens in place of one for each step. The backward loop is written by hand and
recomputes the cheap elementwise parts, so that what is kept is the layers' outputs, the gates' pre-activations and the
contexts. The loop runs in segments of a few steps (`segment`), on a GPU replayed from a CUDA graph (`graph`). A custom
operator wraps it: one node for torch.compile.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from newllm_lib.ops.backend import on_its_device, runs_triton
from newllm_lib.ops.sequential_context import cell as torch_cell
from newllm_lib.ops.sequential_context import graph
from newllm_lib.ops.sequential_context.segment import BackwardSegment, ForwardSegment, LoopWeights, Shape
from newllm_lib.ops.sequential_context.weights import SequentialWeights

STEPS = 16  # a segment: long enough to make a graph's launch cheap, short enough to keep its buffers small


def _cell_for(x: Tensor):
    if not runs_triton(x):
        return torch_cell
    from newllm_lib.ops.sequential_context import triton

    return triton


class _Pieces:
    """The sequence in pieces of STEPS, and a segment to run each: captured for whole ones on a GPU, else plain."""

    def __init__(self, kind: type, shape: Shape, weights: LoopWeights, cell):
        self.kind, self.shape, self.weights, self.cell = kind, shape, weights, cell
        self.ready = {}  # steps: (segment, the function that runs it)

    def bounds(self, time: int) -> list[tuple[int, int]]:
        return [(first, min(first + STEPS, time)) for first in range(0, time, STEPS)]

    def segment(self, steps: int):
        """A segment of so many steps and the function that runs it."""
        if steps not in self.ready:
            shape = self.shape._replace(steps=steps)
            if steps == STEPS and graph.can_capture(shape.device):
                captured = graph.captured(self.kind, shape, self.weights, self.cell)
                self.ready[steps] = captured.use(self.weights), captured.run
            else:
                segment = self.kind(shape, self.weights, self.cell)
                self.ready[steps] = segment, segment.run
        return self.ready[steps]


def _flags(starts: Tensor | None, valid: Tensor | None) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Does the first step start a document (batch,); does each step's successor; does each step count (time, batch)."""
    first = next_start = None
    if starts is not None:
        starts = starts if valid is None else starts & valid  # padding starts nothing
        first, next_start = starts[:, 0], F.pad(starts[:, 1:], (0, 1)).t()
    return first, next_start, None if valid is None else valid.t()


def _load_flags(segment, next_start: Tensor | None, counts: Tensor | None, first: int, last: int) -> None:
    for own, given in ((segment.next_start, next_start), (segment.valid, counts)):
        if own is not None:
            own.copy_(given[first:last])


def _shape(pre: Tensor, weights: LoopWeights, starts: Tensor | None, valid: Tensor | None, eps: float) -> Shape:
    batch, _, hidden = pre.shape
    context, layers = weights.recurrent.shape[1], weights.hidden.shape[0] + 1
    has = starts is not None, valid is not None
    return Shape(STEPS, batch, hidden, context, layers, pre.dtype, pre.device, *has, eps)


@on_its_device
def _walk_forward(pre, pieces: _Pieces, next_start, counts, state, layers, gates, contexts) -> None:
    """Fill the outputs piece by piece; `state` (batch, context) enters as the first context and leaves as the last."""
    for first, last in pieces.bounds(pre.shape[1]):
        segment, run = pieces.segment(last - first)
        segment.layers[0].copy_(pre[:, first:last].transpose(0, 1))
        _load_flags(segment, next_start, counts, first, last)
        segment.state.copy_(state)
        segment.contexts[0].copy_(state)
        run()
        for output, own in zip(layers, segment.layers, strict=True):
            output[:, first:last].copy_(own.transpose(0, 1))
        gates[:, first:last].copy_(segment.gates.transpose(0, 1))
        contexts[:, first:last].copy_(segment.contexts[:-1].transpose(0, 1))
        state.copy_(segment.state)


@torch.library.custom_op("newllm::sequential_loop", mutates_args=())
def _loop(
    pre: Tensor, recurrent: Tensor, hidden: Tensor, hidden_bias: Tensor, gates: Tensor, gates_bias: Tensor,
    norm: Tensor, norm_bias: Tensor, initial: Tensor, starts: Tensor | None, valid: Tensor | None, eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The loop over pre (batch, time, hidden) from initial (batch, context).

    Returns h (batch, time, hidden), the layers' outputs before it (layers - 1, batch, time, hidden), gates (batch,
    time, 3 context), the contexts that the steps read (batch, time, context) and the final one (batch, context).
    """
    weights = LoopWeights(recurrent, hidden, hidden_bias, gates, gates_bias, norm, norm_bias)
    shape = _shape(pre, weights, starts, valid, eps)
    batch, time, _ = pre.shape
    h = pre.new_empty(batch, time, shape.hidden)
    inner = pre.new_empty(shape.layers - 1, batch, time, shape.hidden)
    gates_out = pre.new_empty(batch, time, 3 * shape.context)
    contexts = pre.new_empty(batch, time, shape.context)
    first_start, next_start, counts = _flags(starts, valid)
    state = initial.to(shape.compute, copy=True)
    if first_start is not None:
        state.masked_fill_(first_start.unsqueeze(-1), 0.0)
    pieces = _Pieces(ForwardSegment, shape, weights, _cell_for(pre))
    _walk_forward(pre, pieces, next_start, counts, state, (*inner, h), gates_out, contexts)
    return h, inner, gates_out, contexts, state


@_loop.register_fake
def _(pre, recurrent, hidden, hidden_bias, gates, gates_bias, norm, norm_bias, initial, starts, valid, eps):
    batch, time, width = pre.shape
    context = recurrent.shape[1]
    state = pre.new_empty(batch, context, dtype=torch.promote_types(pre.dtype, torch.float32))
    inner, gates_out = pre.new_empty(hidden.shape[0], batch, time, width), pre.new_empty(batch, time, 3 * context)
    return pre.new_empty(pre.shape), inner, gates_out, pre.new_empty(batch, time, context), state


@on_its_device
def _walk_backward(h, pieces: _Pieces, next_start, counts, state, grad_h, saved, outputs) -> Tensor:
    """Fill the gradients piece by piece, last first, from what was saved; returns that of the norm (2, context).

    `state` (batch, context) enters as the gradient of the final context and leaves as that of the first step's.
    """
    layers, gates, contexts = saved
    grad_layers, grad_gates = outputs
    through = state.new_zeros(state.shape, dtype=h.dtype)
    grad_norm = state.new_zeros(2, state.shape[1])
    for first, last in reversed(pieces.bounds(h.shape[1])):
        segment, run = pieces.segment(last - first)
        for own, output in zip(segment.layers, layers, strict=True):
            own.copy_(output[:, first:last].transpose(0, 1))
        segment.gates.copy_(gates[:, first:last].transpose(0, 1))
        segment.contexts[:-1].copy_(contexts[:, first:last].transpose(0, 1))
        if grad_h is None:
            segment.grads[-1].zero_()
        else:
            segment.grads[-1].copy_(grad_h[:, first:last].transpose(0, 1))
        _load_flags(segment, next_start, counts, first, last)
        segment.grad_state.copy_(state)
        segment.grad_context.copy_(through)
        segment.grad_norm.zero_()
        run()
        for output, own in zip(grad_layers, segment.grads, strict=True):
            output[:, first:last].copy_(own.transpose(0, 1))
        grad_gates[:, first:last].copy_(segment.grad_gates.transpose(0, 1))
        grad_norm += segment.grad_norm.sum(0)
        state.copy_(segment.grad_state)
        through.copy_(segment.grad_context)
    state += through
    return grad_norm


@torch.library.custom_op("newllm::sequential_loop_backward", mutates_args=())
def _loop_backward(
    recurrent: Tensor, hidden: Tensor, hidden_bias: Tensor, gates: Tensor, gates_bias: Tensor,
    norm: Tensor, norm_bias: Tensor, starts: Tensor | None, valid: Tensor | None, eps: float,
    h: Tensor, inner: Tensor, gates_out: Tensor, contexts: Tensor, grad_h: Tensor | None, grad_final: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of pre, of the seven weights in their order, and of the initial context."""
    weights = LoopWeights(recurrent, hidden, hidden_bias, gates, gates_bias, norm, norm_bias)
    shape = _shape(h, weights, starts, valid, eps)
    batch, time, _ = h.shape
    grad_pre, grad_inner = torch.empty_like(h), torch.empty_like(inner)  # before each ReLU: the first layer's, others'
    grad_gates = torch.empty_like(gates_out)
    first_start, next_start, counts = _flags(starts, valid)
    state = h.new_zeros(batch, shape.context, dtype=shape.compute)
    if grad_final is not None:
        state.copy_(grad_final)
    pieces = _Pieces(BackwardSegment, shape, weights, _cell_for(h))
    saved, outputs = ((*inner, h), gates_out, contexts), ((grad_pre, *grad_inner), grad_gates)
    grad_norm = _walk_backward(h, pieces, next_start, counts, state, grad_h, saved, outputs)
    if first_start is not None:
        state.masked_fill_(first_start.unsqueeze(-1), 0.0)
    to_weights = _weight_gradients(grad_pre, grad_inner, grad_gates, contexts, inner, h)
    return grad_pre, *to_weights, grad_norm[0].clone(), grad_norm[1].clone(), state


def _weight_gradients(grad_pre, grad_inner, grad_gates, contexts, inner, h) -> tuple[Tensor, ...]:
    """One matrix product over all (batch x time) for each weight: recurrent, hidden, its biases, gates, its bias."""
    recurrent = grad_pre.flatten(0, 1).t() @ contexts.flatten(0, 1)
    flat_inner, flat_gates = grad_inner.flatten(1, 2), grad_gates.flatten(0, 1)
    hidden = torch.bmm(flat_inner.transpose(1, 2), inner.flatten(1, 2))
    return recurrent, hidden, flat_inner.sum(1), flat_gates.t() @ h.flatten(0, 1), flat_gates.sum(0)


@_loop_backward.register_fake
def _(
    recurrent, hidden, hidden_bias, gates, gates_bias, norm, norm_bias, starts, valid, eps,
    h, inner, gates_out, contexts, grad_h, grad_final,
):  # fmt: skip
    weights = (recurrent, hidden, hidden_bias, gates, gates_bias, norm, norm_bias)
    initial = h.new_empty(h.shape[0], recurrent.shape[1], dtype=torch.promote_types(h.dtype, torch.float32))
    return h.new_empty(h.shape), *(w.new_empty(w.shape) for w in weights), initial


def _keep_for_backward(ctx, inputs, output):
    _, *weights, _, starts, valid, ctx.eps = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*weights, starts, valid, *output[:4])


def _backward(ctx, grad_h, _inner, _gates, _contexts, grad_final):
    if grad_h is None and grad_final is None:
        return (None,) * 12
    *parameters, h, inner, gates_out, contexts = ctx.saved_tensors
    gradients = _loop_backward(*parameters, ctx.eps, h, inner, gates_out, contexts, grad_h, grad_final)
    return *gradients, None, None, None


_loop.register_autograd(_backward, setup_context=_keep_for_backward)


def sequential_context(
    embeddings: Tensor,
    weights: SequentialWeights,
    initial_context: Tensor | None = None,
    starts: Tensor | None = None,
    valid: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """As `reference.sequential_context`. Under autocast the matrix products run in its dtype, the cell in float32."""
    device = embeddings.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else embeddings.dtype
    compute = torch.promote_types(dtype, torch.float32)
    (first, first_bias), *rest = weights.mlp
    size = embeddings.shape[-1]
    with torch.autocast(device, enabled=False):
        if initial_context is None:
            initial_context = embeddings.new_zeros(embeddings.shape[0], first.shape[1] - size)
        pre = F.linear(embeddings.to(dtype), first[:, :size].to(dtype), first_bias.to(dtype))
        if rest:
            hidden, hidden_bias = (torch.stack(parts).to(dtype) for parts in zip(*rest, strict=True))
        else:
            hidden, hidden_bias = pre.new_empty(0, *pre.shape[-1:] * 2), pre.new_empty(0, pre.shape[-1])
        gates, norm = (p.to(dtype) for p in weights.gates), (p.to(compute) for p in weights.norm)
        recurrent = first[:, size:].to(dtype).contiguous()
        h, _, _, _, final = _loop(
            pre, recurrent, hidden, hidden_bias, *gates, *norm, initial_context.to(compute), starts, valid, weights.eps
        )
    return h, final
