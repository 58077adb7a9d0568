"""The sequential recurrence's cell on a GPU: four Triton kernels, one for each thing that a step does between its products.

The kernels find the tape through a table of addresses in GPU memory, and read there which step they are at. So nothing
about a tape is fixed in a launch, and a CUDA graph of a few steps (`graph`) serves every sequence of the same shape.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from newllm_lib.ops.context_scan.kernels import sigmoid
from newllm_lib.ops.sequential_context.loop import Cell, LoopWeights, Shape, Tape

# The table: first step, length, addresses; then those of the layers' outputs, then those of their gradients.
_FIRST, _TIME, _STARTS, _VALID, _PRE, _GATES, _CONTEXTS, _GRAD_H, _GRAD_GATES, _LAYERS = (
    tl.constexpr(place) for place in range(10)
)


@triton.jit
def _on_tape(table, SLOT: tl.constexpr, like, ALIGNED: tl.constexpr):
    """The address in the table, as a pointer to what `like` points to."""
    pointer = tl.load(table + SLOT).to(like.dtype)
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.jit
def _place(table, step, row, rows, width):
    """Where the rows' steps lie in a tensor (batch, time, width) of the tape."""
    return (row.to(tl.int64) * tl.load(table + _TIME) + tl.load(table + _FIRST) + step) * width


@triton.jit
def _flag(table, SLOT: tl.constexpr, step, row, rows):
    """A column of bools: the tape's bytes at this step, false beyond its end."""
    t = tl.load(table + _FIRST) + step
    time = tl.load(table + _TIME)
    flags = tl.load(table + SLOT).to(tl.pointer_type(tl.uint8))
    return tl.load(flags + row.to(tl.int64) * time + t, mask=row < tl.where(t < time, rows, 0), other=0) != 0


@triton.jit
def _next_start(table, step, row, rows, HAS_STARTS: tl.constexpr, HAS_VALID: tl.constexpr):
    start = row < 0
    if HAS_STARTS:
        start = _flag(table, _STARTS, step + 1, row, rows)
        if HAS_VALID:  # padding starts nothing
            start = start & _flag(table, _VALID, step + 1, row, rows)
    return start


@triton.jit
def _counts(table, step, row, rows, HAS_VALID: tl.constexpr):
    counts = row >= 0
    if HAS_VALID:
        counts = _flag(table, _VALID, step, row, rows)
    return counts


@triton.jit(do_not_specialize=["step", "rows"])
def activate(
    product, table, step, rows, width,
    ADDED: tl.constexpr, ADDS: tl.constexpr, LAYER: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    ALIGNED: tl.constexpr,
):  # fmt: skip
    """product and the tape's layer <- ReLU of the product plus what the tape adds."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    mask = (row < rows) & (column < width)
    place = _place(table, step, row, rows, width) + column
    value = tl.load(product + row * width + column, mask=mask, other=0.0).to(tl.float32)
    if ADDS:
        value += tl.load(_on_tape(table, ADDED, product, ALIGNED) + place, mask=mask, other=0.0).to(tl.float32)
    value = tl.maximum(value, 0.0, propagate_nan=tl.PropagateNan.ALL).to(product.dtype.element_ty)
    tl.store(product + row * width + column, value, mask=mask)
    tl.store(_on_tape(table, LAYER, product, ALIGNED) + place, value, mask=mask)


@triton.jit(do_not_specialize=["step", "rows"])
def deactivate(
    product, table, step, rows, width,
    ADDED: tl.constexpr, ADDS: tl.constexpr, LAYER: tl.constexpr, GRAD: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
    ALIGNED: tl.constexpr,
):  # fmt: skip
    """product and the tape's gradient <- the product plus what the tape adds, where the tape's layer is positive."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    mask = (row < rows) & (column < width)
    place = _place(table, step, row, rows, width) + column
    value = tl.load(product + row * width + column, mask=mask, other=0.0).to(tl.float32)
    layer = tl.load(_on_tape(table, LAYER, product, ALIGNED) + place, mask=mask, other=0.0)
    if ADDS:
        value += tl.load(_on_tape(table, ADDED, product, ALIGNED) + place, mask=mask, other=0.0).to(tl.float32)
    value = tl.where(layer > 0.0, value, 0.0).to(product.dtype.element_ty)
    tl.store(product + row * width + column, value, mask=mask)
    tl.store(_on_tape(table, GRAD, product, ALIGNED) + place, value, mask=mask)


@triton.jit
def _normalise(mixed, mask, dim, eps):
    mean = tl.sum(tl.where(mask, mixed, 0.0), axis=1, keep_dims=True) / dim
    centred = tl.where(mask, mixed - mean, 0.0)
    inverse = tl.rsqrt(tl.sum(centred * centred, axis=1, keep_dims=True) / dim + eps)
    return centred * inverse, inverse


@triton.jit(do_not_specialize=["step", "rows"])
def update(
    gates, state, context, norm, norm_bias, table, step, rows, dim, eps,
    HAS_STARTS: tl.constexpr, HAS_VALID: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    ALIGNED: tl.constexpr,
):  # fmt: skip
    """state, context and the tape's next context <- the new context; the gates go to the tape."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    dims = tl.arange(0, BLOCK)[None, :]
    mask = (row < rows) & (dims < dim)
    here, on_tape = row * 3 * dim + dims, _place(table, step, row, rows, 3 * dim) + dims
    saved = _on_tape(table, _GATES, gates, ALIGNED)
    delta = tl.load(gates + here, mask=mask, other=0.0)
    forget = tl.load(gates + here + dim, mask=mask, other=0.0)
    write = tl.load(gates + here + 2 * dim, mask=mask, other=0.0)
    tl.store(saved + on_tape, delta, mask=mask)
    tl.store(saved + on_tape + dim, forget, mask=mask)
    tl.store(saved + on_tape + 2 * dim, write, mask=mask)
    before = tl.load(state + row * dim + dims, mask=mask, other=0.0)
    mixed = sigmoid(forget.to(tl.float32)) * before + sigmoid(write.to(tl.float32)) * delta.to(tl.float32)
    normal, _ = _normalise(mixed, mask, dim, eps)
    scale = tl.load(norm + dims, mask=dims < dim, other=0.0).to(tl.float32)
    shift = tl.load(norm_bias + dims, mask=dims < dim, other=0.0).to(tl.float32)
    new = tl.where(_counts(table, step, row, rows, HAS_VALID), normal * scale + shift, before)
    new = tl.where(_next_start(table, step, row, rows, HAS_STARTS, HAS_VALID), 0.0, new)
    tl.store(state + row * dim + dims, new, mask=mask)
    rounded = new.to(context.dtype.element_ty)
    tl.store(context + row * dim + dims, rounded, mask=mask)
    goes_on = tl.load(table + _FIRST) + step + 1 < tl.load(table + _TIME)
    following = _on_tape(table, _CONTEXTS, context, ALIGNED) + _place(table, step + 1, row, rows, dim) + dims
    tl.store(following, rounded, mask=(row < tl.where(goes_on, rows, 0)) & (dims < dim))


@triton.jit(do_not_specialize=["step", "rows"])
def gates_gradient(
    grad_gates, state, through, norm, norm_sums, table, step, rows, dim, eps,
    HAS_STARTS: tl.constexpr, HAS_VALID: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    ALIGNED: tl.constexpr,
):  # fmt: skip
    """grad_gates, here and on the tape, from the gradient of the produced context; state <- that of the one read."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    dims = tl.arange(0, BLOCK)[None, :]
    mask = (row < rows) & (dims < dim)
    total = tl.load(state + row * dim + dims, mask=mask, other=0.0)
    total += tl.load(through + row * dim + dims, mask=mask, other=0.0).to(tl.float32)
    total = tl.where(_next_start(table, step, row, rows, HAS_STARTS, HAS_VALID), 0.0, total)
    counts = _counts(table, step, row, rows, HAS_VALID)
    into = tl.where(counts, total, 0.0)
    contexts = _on_tape(table, _CONTEXTS, through, ALIGNED) + _place(table, step, row, rows, dim) + dims
    before = tl.load(contexts, mask=mask, other=0.0).to(tl.float32)
    here, on_tape = row * 3 * dim + dims, _place(table, step, row, rows, 3 * dim) + dims
    gates = _on_tape(table, _GATES, grad_gates, ALIGNED) + on_tape
    delta = tl.load(gates, mask=mask, other=0.0).to(tl.float32)
    keep = sigmoid(tl.load(gates + dim, mask=mask, other=0.0).to(tl.float32))
    share = sigmoid(tl.load(gates + 2 * dim, mask=mask, other=0.0).to(tl.float32))
    normal, inverse = _normalise(keep * before + share * delta, mask, dim, eps)
    scaled = into * tl.load(norm + dims, mask=dims < dim, other=0.0).to(tl.float32)
    mean = tl.sum(scaled, axis=1, keep_dims=True) / dim
    along = tl.sum(scaled * normal, axis=1, keep_dims=True) / dim
    grad = inverse * (scaled - mean - normal * along)
    dtype = grad_gates.dtype.element_ty
    to_delta = (grad * share).to(dtype)
    to_forget = (grad * keep * (1.0 - keep) * before).to(dtype)
    to_write = (grad * share * (1.0 - share) * delta).to(dtype)
    saved = _on_tape(table, _GRAD_GATES, grad_gates, ALIGNED) + on_tape
    tl.store(grad_gates + here, to_delta, mask=mask)
    tl.store(grad_gates + here + dim, to_forget, mask=mask)
    tl.store(grad_gates + here + 2 * dim, to_write, mask=mask)
    tl.store(saved, to_delta, mask=mask)
    tl.store(saved + dim, to_forget, mask=mask)
    tl.store(saved + 2 * dim, to_write, mask=mask)
    tl.store(state + row * dim + dims, tl.where(counts, grad * keep, total), mask=mask)
    # Every program owns a row of the sums and the steps follow one another: no atomics, the same sum every time.
    dims = tl.arange(0, BLOCK)
    own = norm_sums + tl.program_id(0) * 2 * dim + dims
    to_weight = tl.load(own, mask=dims < dim, other=0.0) + tl.sum(into * normal, axis=0)
    to_bias = tl.load(own + dim, mask=dims < dim, other=0.0) + tl.sum(into, axis=0)
    tl.store(own, to_weight, mask=dims < dim)
    tl.store(own + dim, to_bias, mask=dims < dim)


class TritonCell(Cell):
    """See `Cell`. `through` is also the context that the next step reads, on the way forward."""

    def __init__(self, shape: Shape, weights: LoopWeights):
        super().__init__(shape, weights)
        self.gates_buffer = self.through.new_zeros(shape.batch, 3 * shape.context)
        self.table = torch.zeros(_LAYERS.value + 2 * shape.layers, dtype=torch.int64, device=shape.device)
        block = triton.next_power_of_2(shape.context)
        # Rows of a multiple of 16 elements keep the tape's alignment, so that the kernels may read it in wide words. One
        # warp has whole rows to itself: its sums over a row need no barrier.
        self.rows = dict(
            ROWS=max(1, min(16, 256 // block)), BLOCK=block, ALIGNED=shape.context % 16 == 0,
            num_warps=max(1, min(8, block // 512)),
        )  # fmt: skip
        self.programs = (triton.cdiv(shape.batch, self.rows["ROWS"]),)
        self.norm_sums = self.state.new_zeros(*self.programs, 2, shape.context)
        wide = min(1024, triton.next_power_of_2(shape.hidden))
        self.tile = dict(ROWS=max(1, 2048 // wide), BLOCK=wide, ALIGNED=shape.hidden % 16 == 0)
        self.grid = triton.cdiv(shape.batch, self.tile["ROWS"]), triton.cdiv(shape.hidden, wide)
        self.flags = dict(HAS_STARTS=shape.has_starts, HAS_VALID=shape.has_valid)

    def bind(self, tape: Tape, first: int) -> None:
        wide = tape.pre, tape.grad_h, *tape.layers, *tape.grads
        narrow = tape.gates, tape.contexts, tape.grad_gates
        for tensors, aligned in ((wide, self.tile["ALIGNED"]), (narrow, self.rows["ALIGNED"])):
            if any(x is not None and not (x.is_contiguous() and not (aligned and x.data_ptr() % 16)) for x in tensors):
                raise ValueError("what is on the tape must be contiguous and aligned to 16 bytes")
        slots = tape.starts, tape.valid, tape.pre, *narrow[:2], tape.grad_h, narrow[2], *tape.layers, *tape.grads
        addresses = [0 if x is None else x.data_ptr() for x in slots]
        for place, value in enumerate([first, tape.gates.shape[1], *addresses]):
            self.table[place].fill_(value)  # not copied from the host, so that a caller's CUDA graph may record it
        self.norm_sums.zero_()

    def advance(self, steps: int) -> None:
        self.table[0].add_(steps)

    def context(self, step: int) -> Tensor:
        return self.through

    def activate(self, step: int, layer: int, product: Tensor) -> Tensor:
        activate[self.grid](
            product, self.table, step, *product.shape,
            ADDED=_PRE.value, ADDS=layer == 0, LAYER=_LAYERS.value + layer, **self.tile,
        )  # fmt: skip
        return product

    def gates(self, step: int) -> Tensor:
        return self.gates_buffer

    def update(self, step: int) -> None:
        weights = self.weights
        update[self.programs](
            self.gates_buffer, self.state, self.through, weights.norm, weights.norm_bias, self.table, step,
            *self.state.shape, self.shape.eps, **self.flags, **self.rows,
        )  # fmt: skip

    def gates_gradient(self, step: int) -> Tensor:
        gates_gradient[self.programs](
            self.gates_buffer, self.state, self.through, self.weights.norm, self.norm_sums, self.table, step,
            *self.state.shape, self.shape.eps, **self.flags, **self.rows,
        )  # fmt: skip
        return self.gates_buffer

    def deactivate(self, step: int, layer: int, product: Tensor) -> Tensor:
        layers = self.shape.layers
        deactivate[self.grid](
            product, self.table, step, *product.shape, ADDED=_GRAD_H.value, ADDS=layer == layers - 1,
            LAYER=_LAYERS.value + layer, GRAD=_LAYERS.value + layers + layer, **self.tile,
        )  # fmt: skip
        return product

    def norm_gradients(self) -> Tensor:
        return self.norm_sums.sum(0)
