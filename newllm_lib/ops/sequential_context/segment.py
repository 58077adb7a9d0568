"""A few steps of the sequential recurrence over buffers that stay where they are, forward and backward.

A segment owns everything its steps read and write, time first, so that each step's tensors are contiguous; whoever uses
it copies pieces of the sequence in and results out. Because no address changes, a CUDA graph can replay it (`graph`).
Every operation writes into these buffers: no step allocates what outlives it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_relu_backward = torch.ops.aten.threshold_backward.grad_input


class LoopWeights(NamedTuple):
    """What the loop needs, in the dtype of the matrix products but for the norm's; hidden H, context C, layers L."""

    recurrent: Tensor  # (H, C): the first layer's columns that read the context
    hidden: Tensor  # (L - 1, H, H): the layers after the first
    hidden_bias: Tensor  # (L - 1, H)
    gates: Tensor  # (3 C, H)
    gates_bias: Tensor  # (3 C,)
    norm: Tensor  # (C,) in the compute dtype
    norm_bias: Tensor  # (C,)


class Shape(NamedTuple):
    """What decides a segment's buffers and kernels (a CUDA graph is kept for each)."""

    steps: int
    batch: int
    hidden: int
    context: int
    layers: int
    dtype: torch.dtype
    device: torch.device
    has_starts: bool
    has_valid: bool
    eps: float

    def empty(self, *sizes: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.zeros(sizes, dtype=dtype or self.dtype, device=self.device)

    @property
    def compute(self) -> torch.dtype:
        return torch.promote_types(self.dtype, torch.float32)


class _Segment:
    """The buffers that both directions have."""

    def __init__(self, shape: Shape, weights: LoopWeights, cell):
        self.shape, self.weights, self.cell = shape, weights, cell
        steps, batch = shape.steps, shape.batch
        self.layers = shape.empty(shape.layers, steps, batch, shape.hidden)  # outputs of the MLP's layers
        self.gates = shape.empty(steps, batch, 3 * shape.context)
        self.contexts = shape.empty(steps + 1, batch, shape.context)  # what each step reads; the last: what comes after
        self.next_start = shape.empty(steps, batch, dtype=torch.bool) if shape.has_starts else None
        self.valid = shape.empty(steps, batch, dtype=torch.bool) if shape.has_valid else None

    def flags(self, t: int) -> tuple[Tensor | None, Tensor | None]:
        return tuple(None if flags is None else flags[t] for flags in (self.next_start, self.valid))


class ForwardSegment(_Segment):
    """In: layers[0] (the first layer without its context part), contexts[0], state. Out: all that."""

    def __init__(self, shape: Shape, weights: LoopWeights, cell):
        super().__init__(shape, weights, cell)
        self.state = shape.empty(shape.batch, shape.context, dtype=shape.compute)

    def run(self) -> None:
        weights = self.weights
        recurrent, gates = weights.recurrent.t(), weights.gates.t()
        for t in range(self.shape.steps):
            self.layers[0, t].addmm_(self.contexts[t], recurrent).relu_()
            for n in range(1, self.shape.layers):
                out = self.layers[n, t]
                bias, weight = weights.hidden_bias[n - 1], weights.hidden[n - 1].t()
                torch.addmm(bias, self.layers[n - 1, t], weight, out=out).relu_()
            torch.addmm(weights.gates_bias, self.layers[-1, t], gates, out=self.gates[t])
            self.cell.forward(
                self.gates[t], self.state, self.contexts[t + 1], *self.flags(t),
                weights.norm, weights.norm_bias, self.shape.eps,
            )  # fmt: skip


class BackwardSegment(_Segment):
    """In: what the forward pass saved; grads[-1], the gradient of h; grad_state and grad_context of what comes after.

    Out: grads, before each layer's ReLU; grad_gates; grad_state and grad_context of what the first step read; grad_norm
    is added to.
    """

    def __init__(self, shape: Shape, weights: LoopWeights, cell):
        super().__init__(shape, weights, cell)
        self.grads = torch.zeros_like(self.layers)
        self.grad_gates = torch.zeros_like(self.gates)
        self.grad_state = shape.empty(shape.batch, shape.context, dtype=shape.compute)
        self.grad_context = shape.empty(shape.batch, shape.context)
        self.grad_norm = cell.norm_gradients(shape.batch, shape.context, self.grad_state)

    def run(self) -> None:
        weights = self.weights
        for t in reversed(range(self.shape.steps)):
            self.cell.backward(
                self.gates[t], self.contexts[t], self.grad_state, self.grad_context, *self.flags(t),
                weights.norm, weights.norm_bias, self.shape.eps, self.grad_gates[t], self.grad_norm,
            )  # fmt: skip
            self.grads[-1, t].addmm_(self.grad_gates[t], weights.gates)
            for n in reversed(range(self.shape.layers)):
                grad = self.grads[n, t]
                _relu_backward(grad, self.layers[n, t], 0, grad_input=grad)
                if n > 0:
                    torch.mm(grad, weights.hidden[n - 1], out=self.grads[n - 1, t])
            torch.mm(self.grads[0, t], weights.recurrent, out=self.grad_context)
