"""The sequential recurrence step by step: the matrix products, and between them what a `Cell` does, forward and backward.

A cell owns the small buffers that one step hands to the next. What the whole sequence reads and writes is on a `Tape` that
the cell is bound to, so that steps put their results where they belong and nothing is copied afterwards.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class LoopWeights(NamedTuple):
    """What the loop needs, in the dtype of the matrix products but for the norm's; hidden H, context C, layers L."""

    recurrent: Tensor  # (H, C): the first layer's columns that read the context
    hidden: Tensor  # (L - 1, H, H): the layers after the first
    hidden_bias: Tensor  # (L - 1, H)
    gates: Tensor  # (3 C, H): delta, forget, write
    gates_bias: Tensor  # (3 C,)
    norm: Tensor  # (C,) in the compute dtype
    norm_bias: Tensor  # (C,)


class Shape(NamedTuple):
    """Everything but length and values: what decides a cell's buffers and kernels."""

    batch: int
    hidden: int
    context: int
    layers: int
    dtype: torch.dtype
    device: torch.device
    has_starts: bool
    has_valid: bool
    eps: float

    @property
    def compute(self) -> torch.dtype:
        return torch.promote_types(self.dtype, torch.float32)


class Tape(NamedTuple):
    """A sequence, (batch, time, ...): its inputs, what the forward pass saves, and what the backward pass makes of it."""

    starts: Tensor | None  # (batch, time) bool
    valid: Tensor | None  # (batch, time) bool
    layers: tuple[Tensor, ...]  # outputs of the MLP's layers, after their ReLU
    gates: Tensor  # before their sigmoids
    contexts: Tensor  # what each step reads
    pre: Tensor | None = None  # forward: the first layer without its context part
    grad_h: Tensor | None = None  # backward: the gradient of the last layer's output
    grads: tuple[Tensor, ...] = ()  # gradients before each layer's ReLU
    grad_gates: Tensor | None = None


class Cell:
    """What happens between the matrix products, on a tape from step `first` on; `cell` and `triton` fill in the methods.

    state: (batch, context), compute dtype: the context that the next step reads; on the way back, its gradient but for the
    part that comes `through` (batch, context) that step's matrix product.
    """

    def __init__(self, shape: Shape, weights: LoopWeights):
        self.shape, self.weights = shape, weights
        sizes = shape.batch, shape.context
        self.state = torch.zeros(sizes, dtype=shape.compute, device=shape.device)
        self.through = torch.zeros(sizes, dtype=shape.dtype, device=shape.device)
        # Two, so that a product may be read while the next one is written.
        self.products = torch.zeros(2, shape.batch, shape.hidden, dtype=shape.dtype, device=shape.device)

    def run_forward(self, steps: int) -> None:
        """The next `steps` steps."""
        weights = self.weights
        for step in range(steps):
            product = torch.mm(self.context(step), weights.recurrent.t(), out=self.products[0])
            hidden = self.activate(step, 0, product)
            for n in range(1, self.shape.layers):
                bias, weight = weights.hidden_bias[n - 1], weights.hidden[n - 1].t()
                product = torch.addmm(bias, hidden, weight, out=self.products[n % 2])
                hidden = self.activate(step, n, product)
            torch.addmm(weights.gates_bias, hidden, weights.gates.t(), out=self.gates(step))
            self.update(step)
        self.advance(steps)

    def run_backward(self, steps: int) -> None:
        """The `steps` steps before, last first."""
        self.advance(-steps)
        weights, layers = self.weights, self.shape.layers
        for step in reversed(range(steps)):
            product = torch.mm(self.gates_gradient(step), weights.gates, out=self.products[0])
            for n in reversed(range(layers)):
                grad = self.deactivate(step, n, product)
                if n > 0:
                    product = torch.mm(grad, weights.hidden[n - 1], out=self.products[(layers - n) % 2])
            torch.mm(grad, weights.recurrent, out=self.through)

    def bind(self, tape: Tape, first: int) -> None:
        """Work on this tape from step `first` on."""
        raise NotImplementedError

    def advance(self, steps: int) -> None:
        """Move `first`."""
        raise NotImplementedError

    def context(self, step: int) -> Tensor:
        """(batch, context): what step first + `step` reads, in the dtype of the matrix products."""
        raise NotImplementedError

    def activate(self, step: int, layer: int, product: Tensor) -> Tensor:
        """layers[layer] <- ReLU of the product, to which the first layer adds `pre`; a tensor with the result."""
        raise NotImplementedError

    def gates(self, step: int) -> Tensor:
        """(batch, 3 context): where the gates' product goes before `update`."""
        raise NotImplementedError

    def update(self, step: int) -> None:
        """Save the gates; state and the next step's context <- the context that they make of the state."""
        raise NotImplementedError

    def gates_gradient(self, step: int) -> Tensor:
        """grad_gates and the norm's gradient from state and `through`; state <- the gradient of what the step read."""
        raise NotImplementedError

    def deactivate(self, step: int, layer: int, product: Tensor) -> Tensor:
        """grads[layer] <- the product, to which the last layer adds `grad_h`, where the layer is positive; it again."""
        raise NotImplementedError

    def norm_gradients(self) -> Tensor:
        """(2, context): the gradients of the norm's weight and bias, summed since `bind`."""
        raise NotImplementedError
