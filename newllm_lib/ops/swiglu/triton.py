"""The gated products on a GPU: elementwise, float32 inside, one rounding; no dot, so from sm70 on."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from newllm_lib.ops.common.triton_helpers import sigmoid

_BLOCK = 1024  # elements a program
_WARPS = 4
_GROUP_ELEMENTS = 4096  # channels times rows of a program in the grouped kernels, about


@triton.jit
def swiglu_forward(gate_up, out, dim, BLOCK: tl.constexpr):
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < dim
    gate = tl.load(gate_up + row * 2 * dim + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * dim + dim + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * dim + column, (gate * sigmoid(gate) * up).to(out.dtype.element_ty), mask=inside)


@triton.jit
def swiglu_backward(gate_up, dout, dgate_up, dim, BLOCK: tl.constexpr):
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < dim
    gate = tl.load(gate_up + row * 2 * dim + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * dim + dim + column, mask=inside, other=0.0).to(tl.float32)
    grad = tl.load(dout + row * dim + column, mask=inside, other=0.0).to(tl.float32)
    opened = sigmoid(gate)
    silu = gate * opened
    dgate = grad * up * (opened + silu * (1.0 - opened))
    tl.store(dgate_up + row * 2 * dim + column, dgate.to(dgate_up.dtype.element_ty), mask=inside)
    tl.store(
        dgate_up + row * 2 * dim + dim + column, (grad * silu).to(dgate_up.dtype.element_ty), mask=inside
    )


@triton.jit
def mix_forward(a, b, gate, out, numel, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < numel
    x, y = tl.load(a + place, mask=inside).to(tl.float32), tl.load(b + place, mask=inside).to(tl.float32)
    opened = sigmoid(tl.load(gate + place, mask=inside).to(tl.float32))
    tl.store(out + place, (y + opened * (x - y)).to(out.dtype.element_ty), mask=inside)


@triton.jit
def mix_backward(a, b, gate, dout, da, db, dgate, numel, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < numel
    x, y = tl.load(a + place, mask=inside).to(tl.float32), tl.load(b + place, mask=inside).to(tl.float32)
    opened = sigmoid(tl.load(gate + place, mask=inside).to(tl.float32))
    grad = tl.load(dout + place, mask=inside).to(tl.float32)
    tl.store(da + place, (grad * opened).to(da.dtype.element_ty), mask=inside)
    tl.store(db + place, (grad * (1.0 - opened)).to(db.dtype.element_ty), mask=inside)
    by_gate = grad * (x - y) * (opened * (1.0 - opened))
    tl.store(dgate + place, by_gate.to(dgate.dtype.element_ty), mask=inside)


@triton.jit
def group_forward(x, gate, out, lanes, width, LANES: tl.constexpr, BLOCK: tl.constexpr):
    """x and out (lanes, width), gate (lanes,): a lane is one group of one token."""
    lane = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    column = tl.arange(0, BLOCK)
    inside = (lane < lanes)[:, None] & (column < width)[None, :]
    place = lane[:, None] * width + column[None, :]
    opened = sigmoid(tl.load(gate + lane, mask=lane < lanes, other=0.0).to(tl.float32))
    value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32) * opened[:, None]
    tl.store(out + place, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def group_backward(x, gate, dout, dx, dgate, lanes, width, LANES: tl.constexpr, BLOCK: tl.constexpr):
    lane = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    column = tl.arange(0, BLOCK)
    inside = (lane < lanes)[:, None] & (column < width)[None, :]
    place = lane[:, None] * width + column[None, :]
    opened = sigmoid(tl.load(gate + lane, mask=lane < lanes, other=0.0).to(tl.float32))
    grad = tl.load(dout + place, mask=inside, other=0.0).to(tl.float32)
    value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(dx + place, (grad * opened[:, None]).to(dx.dtype.element_ty), mask=inside)
    by_gate = tl.sum(grad * value, 1) * (opened * (1.0 - opened))
    tl.store(dgate + lane, by_gate.to(dgate.dtype.element_ty), mask=lane < lanes)


class _Swiglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate_up: Tensor):
        gate_up = gate_up.contiguous()
        dim = gate_up.shape[-1] // 2
        out = gate_up.new_empty(*gate_up.shape[:-1], dim)
        with torch.cuda.device_of(out):
            swiglu_forward[_grid(out, dim)](gate_up, out, dim, BLOCK=_BLOCK, num_warps=_WARPS)
        ctx.save_for_backward(gate_up)
        return out

    @staticmethod
    def backward(ctx, dout: Tensor):
        (gate_up,) = ctx.saved_tensors
        dgate_up, dim = torch.empty_like(gate_up), dout.shape[-1]
        with torch.cuda.device_of(dout):
            swiglu_backward[_grid(dout, dim)](
                gate_up, dout.contiguous(), dgate_up, dim, BLOCK=_BLOCK, num_warps=_WARPS
            )
        return dgate_up


def _grid(out: Tensor, dim: int) -> tuple[int, int]:
    return out.numel() // dim, triton.cdiv(dim, _BLOCK)


class _Mix(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a: Tensor, b: Tensor, gate: Tensor):
        a, b, gate = a.contiguous(), b.contiguous(), gate.contiguous()
        out = torch.empty_like(a)
        with torch.cuda.device_of(a):
            mix_forward[(triton.cdiv(a.numel(), _BLOCK),)](
                a, b, gate, out, a.numel(), BLOCK=_BLOCK, num_warps=_WARPS
            )
        ctx.save_for_backward(a, b, gate)
        return out

    @staticmethod
    def backward(ctx, dout: Tensor):
        saved = ctx.saved_tensors
        gradients = [torch.empty_like(x) for x in saved]
        grid = (triton.cdiv(dout.numel(), _BLOCK),)
        with torch.cuda.device_of(dout):
            mix_backward[grid](
                *saved, dout.contiguous(), *gradients, dout.numel(), BLOCK=_BLOCK, num_warps=_WARPS
            )
        return tuple(gradients)


class _GroupGate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, gate: Tensor):
        x, gate = x.contiguous(), gate.contiguous()
        out, (grid, sizes) = torch.empty_like(x), _lanes(x, gate)
        with torch.cuda.device_of(x):
            group_forward[grid](x, gate, out, **sizes)
        ctx.save_for_backward(x, gate)
        return out

    @staticmethod
    def backward(ctx, dout: Tensor):
        x, gate = ctx.saved_tensors
        dx, dgate, (grid, sizes) = torch.empty_like(x), torch.empty_like(gate), _lanes(x, gate)
        with torch.cuda.device_of(x):
            group_backward[grid](x, gate, dout.contiguous(), dx, dgate, **sizes)
        return dx, dgate


def _lanes(x: Tensor, gate: Tensor) -> tuple[tuple[int], dict[str, int]]:
    """Grid and sizes of the grouped kernels."""
    lanes = gate.numel()
    width = x.numel() // lanes
    block = triton.next_power_of_2(width)
    count = max(1, _GROUP_ELEMENTS // block)
    return (triton.cdiv(lanes, count),), dict(
        lanes=lanes, width=width, LANES=count, BLOCK=block, num_warps=_WARPS
    )


def swiglu(gate_up: Tensor) -> Tensor:
    """As `gates.swiglu`, for float32, bfloat16 and float16."""
    return _Swiglu.apply(gate_up)


def mix(a: Tensor, b: Tensor, gate: Tensor) -> Tensor:
    """As `gates.mix`."""
    return _Mix.apply(a, b, gate)


def group_gate(x: Tensor, gate: Tensor) -> Tensor:
    """As `gates.group_gate`."""
    return _GroupGate.apply(x, gate)
