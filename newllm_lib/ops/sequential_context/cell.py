"""The sequential recurrence's cell in plain torch: every step works on views of the tape."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from newllm_lib.ops.sequential_context.loop import Cell, LoopWeights, Shape, Tape

_relu_backward = torch.ops.aten.threshold_backward.grad_input
_layer_norm_backward = torch.ops.aten.native_layer_norm_backward.default


class TorchCell(Cell):
    """See `Cell`."""

    def __init__(self, shape: Shape, weights: LoopWeights):
        super().__init__(shape, weights)
        self.norm_sums = self.state.new_zeros(2, shape.context)

    def bind(self, tape: Tape, first: int) -> None:
        self.tape, self.first = tape, first
        self.norm_sums.zero_()

    def advance(self, steps: int) -> None:
        self.first += steps

    def context(self, step: int) -> Tensor:
        return self.tape.contexts[:, self.first + step]

    def activate(self, step: int, layer: int, product: Tensor) -> Tensor:
        out = self.tape.layers[layer][:, self.first + step]
        if layer == 0:
            return torch.add(product, self.tape.pre[:, self.first + step], out=out).relu_()
        return out.copy_(product).relu_()

    def gates(self, step: int) -> Tensor:
        return self.tape.gates[:, self.first + step]

    def update(self, step: int) -> None:
        weights, size, valid = self.weights, self.weights.norm.shape, self._valid(step)
        delta, forget, write = self.gates(step).to(self.state.dtype).chunk(3, -1)
        mixed = torch.sigmoid(write).mul_(delta).addcmul_(torch.sigmoid(forget), self.state)
        new = F.layer_norm(mixed, size, weights.norm, weights.norm_bias, self.shape.eps)
        if valid is not None:
            new = torch.where(valid, new, self.state)
        start = self._next_start(step)
        if start is not None:
            new = new.masked_fill(start, 0.0)
        self.state.copy_(new)
        if not self._is_last(step):
            self.context(step + 1).copy_(new)

    def gates_gradient(self, step: int) -> Tensor:
        weights, compute, valid = self.weights, self.state.dtype, self._valid(step)
        total = self.state + self.through
        start = self._next_start(step)
        if start is not None:
            total = total.masked_fill(start, 0.0)
        into = total if valid is None else total.masked_fill(~valid, 0.0)
        delta, forget, write = self.gates(step).to(compute).chunk(3, -1)
        keep, share, before = torch.sigmoid(forget), torch.sigmoid(write), self.context(step).to(compute)
        mixed = (share * delta).addcmul_(keep, before)
        size = list(weights.norm.shape)
        _, mean, inverse = torch.native_layer_norm(mixed, size, weights.norm, weights.norm_bias, self.shape.eps)
        grad, to_weight, to_bias = _layer_norm_backward(
            into, mixed, size, mean, inverse, weights.norm, weights.norm_bias, [True, True, True]
        )
        self.norm_sums[0] += to_weight
        self.norm_sums[1] += to_bias
        kept, written = grad * keep, grad * share
        out = self.tape.grad_gates[:, self.first + step]
        to_delta, to_forget, to_write = out.chunk(3, -1)
        to_delta.copy_(written)
        to_forget.copy_((1 - keep).mul_(kept).mul_(before))
        to_write.copy_((1 - share).mul_(written).mul_(delta))
        self.state.copy_(kept if valid is None else torch.where(valid, kept, total))
        return out

    def deactivate(self, step: int, layer: int, product: Tensor) -> Tensor:
        t = self.first + step
        if layer == self.shape.layers - 1 and self.tape.grad_h is not None:
            product += self.tape.grad_h[:, t]
        return _relu_backward(product, self.tape.layers[layer][:, t], 0, grad_input=self.tape.grads[layer][:, t])

    def norm_gradients(self) -> Tensor:
        return self.norm_sums

    def _is_last(self, step: int) -> bool:
        return self.first + step + 1 == self.tape.gates.shape[1]

    def _valid(self, step: int) -> Tensor | None:
        """(batch, 1) bool: does the step count?"""
        return None if self.tape.valid is None else self.tape.valid[:, self.first + step, None]

    def _next_start(self, step: int) -> Tensor | None:
        """(batch, 1) bool: does the next step start a document? (Padding starts nothing.)"""
        if self.tape.starts is None or self._is_last(step):
            return None
        start = self.tape.starts[:, self.first + step + 1, None]
        return start if self.tape.valid is None else start & self._valid(step + 1)
