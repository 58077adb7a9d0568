"""The sequential recurrence, fast: the numbers of `reference` to rounding, with only the recurrence left in the loop.

Out of the loop: W_e e_t + b of the first layer, one matrix product over all tokens; and in the backward pass every
weight's gradient, one product over all tokens in place of one for each step. The backward loop is written by hand and
recomputes the cheap elementwise parts, so that what is kept is the layers' outputs, the gates' pre-activations and the
contexts. The loop (`loop`) runs in pieces of a few steps, on a GPU replayed from a CUDA graph (`graph`). A custom
operator wraps it: one node for torch.compile.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from newllm_lib.ops.backend import on_its_device, runs_triton
from newllm_lib.ops.sequential_context import graph
from newllm_lib.ops.sequential_context.cell import TorchCell
from newllm_lib.ops.sequential_context.loop import LoopWeights, Shape, Tape
from newllm_lib.ops.sequential_context.weights import SequentialWeights


def _cell_type(x: Tensor) -> type:
    if not runs_triton(x):
        return TorchCell
    from newllm_lib.ops.sequential_context.triton import TritonCell

    return TritonCell


def _piece(direction: str, x: Tensor, weights: LoopWeights, starts, valid, eps: float) -> graph.Piece:
    """The piece that walks along tensors like x (batch, time, hidden)."""
    sizes = x.shape[0], x.shape[2], weights.recurrent.shape[1], weights.hidden.shape[0] + 1
    shape = Shape(*sizes, x.dtype, x.device, starts is not None, valid is not None, eps)
    return graph.piece(_cell_type(x), direction, shape, weights, runs_triton(x) and x.is_cuda)


def _aligned(x: Tensor | None) -> Tensor | None:
    """Contiguous and, if its rows are, at an address that wide loads can take."""
    if x is None or (x.is_contiguous() and (x.data_ptr() % 16 == 0 or x.shape[-1] % 16)):
        return x
    return x.clone(memory_format=torch.contiguous_format)


def _first_start(starts: Tensor | None, valid: Tensor | None) -> Tensor | None:
    """(batch, 1) bool: does the sequence's first step start a document? (Padding starts nothing.)"""
    if starts is None:
        return None
    return starts[:, :1] if valid is None else starts[:, :1] & valid[:, :1]


@on_its_device
def _walk_forward(initial: Tensor, piece: graph.Piece, tape: Tape) -> Tensor:
    """Fill the tape from the initial context (batch, context); returns the final one."""
    cell, time = piece.cell, tape.gates.shape[1]
    start = _first_start(tape.starts, tape.valid)
    state = initial if start is None else initial.masked_fill(start, 0.0)
    cell.bind(tape, 0)
    for target in (cell.state, cell.through, tape.contexts[:, 0]):
        target.copy_(state)
    for _ in range(time // graph.STEPS):
        piece()
    if time % graph.STEPS:
        cell.run_forward(time % graph.STEPS)
    return cell.state.clone()


@on_its_device
def _walk_backward(h: Tensor, piece: graph.Piece, tape: Tape, grad_final: Tensor | None) -> tuple[Tensor, Tensor]:
    """Fill the tape's gradients; returns those of the initial context (batch, context) and of the norm (2, context)."""
    cell, time = piece.cell, h.shape[1]
    cell.bind(tape, time)
    cell.through.zero_()
    cell.state.zero_()
    if grad_final is not None:
        cell.state.copy_(grad_final)
    if time % graph.STEPS:
        cell.run_backward(time % graph.STEPS)
    for _ in range(time // graph.STEPS):
        piece()
    initial = cell.state + cell.through
    start = _first_start(tape.starts, tape.valid)
    return initial if start is None else initial.masked_fill(start, 0.0), cell.norm_gradients()


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
    batch, time, width = pre.shape
    context = recurrent.shape[1]
    h, inner = pre.new_empty(pre.shape), pre.new_empty(hidden.shape[0], batch, time, width)
    tape = Tape(
        _aligned(starts), _aligned(valid), (*inner, h), pre.new_empty(batch, time, 3 * context),
        pre.new_empty(batch, time, context), pre=_aligned(pre),
    )  # fmt: skip
    final = _walk_forward(initial, _piece("forward", pre, weights, starts, valid, eps), tape)
    return h, inner, tape.gates, tape.contexts, final


@_loop.register_fake
def _(pre, recurrent, hidden, hidden_bias, gates, gates_bias, norm, norm_bias, initial, starts, valid, eps):
    batch, time, width = pre.shape
    context = recurrent.shape[1]
    state = pre.new_empty(batch, context, dtype=torch.promote_types(pre.dtype, torch.float32))
    inner, gates_out = pre.new_empty(hidden.shape[0], batch, time, width), pre.new_empty(batch, time, 3 * context)
    return pre.new_empty(pre.shape), inner, gates_out, pre.new_empty(batch, time, context), state


@torch.library.custom_op("newllm::sequential_loop_backward", mutates_args=())
def _loop_backward(
    recurrent: Tensor, hidden: Tensor, hidden_bias: Tensor, gates: Tensor, gates_bias: Tensor,
    norm: Tensor, norm_bias: Tensor, starts: Tensor | None, valid: Tensor | None, eps: float,
    h: Tensor, inner: Tensor, gates_out: Tensor, contexts: Tensor, grad_h: Tensor | None, grad_final: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of pre, of the seven weights in their order, and of the initial context."""
    weights = LoopWeights(recurrent, hidden, hidden_bias, gates, gates_bias, norm, norm_bias)
    # The gradients before each ReLU, first layer and others; without a gradient of h there is only that of the context.
    grad_pre, grad_inner, grad_gates = torch.empty_like(h), torch.empty_like(inner), torch.empty_like(gates_out)
    tape = Tape(
        _aligned(starts), _aligned(valid), tuple(map(_aligned, (*inner, h))), _aligned(gates_out), _aligned(contexts),
        grad_h=torch.zeros_like(h) if grad_h is None else _aligned(grad_h),
        grads=(grad_pre, *grad_inner), grad_gates=grad_gates,
    )  # fmt: skip
    piece = _piece("backward", h, weights, starts, valid, eps)
    grad_initial, grad_norm = _walk_backward(h, piece, tape, grad_final)
    to_weights = _weight_gradients(grad_pre, grad_inner, grad_gates, contexts, inner, h)
    return grad_pre, *to_weights, grad_norm[0].clone(), grad_norm[1].clone(), grad_initial


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
