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
    i_r, o_c = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    m_x = o_c < dim
    b_gate = tl.load(gate_up + i_r * 2 * dim + o_c, mask=m_x, other=0.0).to(tl.float32)
    b_up = tl.load(gate_up + i_r * 2 * dim + dim + o_c, mask=m_x, other=0.0).to(tl.float32)
    tl.store(out + i_r * dim + o_c, (b_gate * sigmoid(b_gate) * b_up).to(out.dtype.element_ty), mask=m_x)


@triton.jit
def swiglu_backward(gate_up, dout, dgate_up, dim, BLOCK: tl.constexpr):
    i_r, o_c = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    m_x = o_c < dim
    b_gate = tl.load(gate_up + i_r * 2 * dim + o_c, mask=m_x, other=0.0).to(tl.float32)
    b_up = tl.load(gate_up + i_r * 2 * dim + dim + o_c, mask=m_x, other=0.0).to(tl.float32)
    b_dout = tl.load(dout + i_r * dim + o_c, mask=m_x, other=0.0).to(tl.float32)
    b_opened = sigmoid(b_gate)
    b_silu = b_gate * b_opened
    b_dgate = b_dout * b_up * (b_opened + b_silu * (1.0 - b_opened))
    tl.store(dgate_up + i_r * 2 * dim + o_c, b_dgate.to(dgate_up.dtype.element_ty), mask=m_x)
    tl.store(dgate_up + i_r * 2 * dim + dim + o_c, (b_dout * b_silu).to(dgate_up.dtype.element_ty), mask=m_x)


@triton.jit
def mix_forward(a, b, gate, out, numel, BLOCK: tl.constexpr):
    o_x = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m_x = o_x < numel
    b_a, b_b = tl.load(a + o_x, mask=m_x).to(tl.float32), tl.load(b + o_x, mask=m_x).to(tl.float32)
    b_opened = sigmoid(tl.load(gate + o_x, mask=m_x).to(tl.float32))
    tl.store(out + o_x, (b_b + b_opened * (b_a - b_b)).to(out.dtype.element_ty), mask=m_x)


@triton.jit
def mix_backward(a, b, gate, dout, da, db, dgate, numel, BLOCK: tl.constexpr):
    o_x = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m_x = o_x < numel
    b_a, b_b = tl.load(a + o_x, mask=m_x).to(tl.float32), tl.load(b + o_x, mask=m_x).to(tl.float32)
    b_opened = sigmoid(tl.load(gate + o_x, mask=m_x).to(tl.float32))
    b_dout = tl.load(dout + o_x, mask=m_x).to(tl.float32)
    tl.store(da + o_x, (b_dout * b_opened).to(da.dtype.element_ty), mask=m_x)
    tl.store(db + o_x, (b_dout * (1.0 - b_opened)).to(db.dtype.element_ty), mask=m_x)
    b_dgate = b_dout * (b_a - b_b) * (b_opened * (1.0 - b_opened))
    tl.store(dgate + o_x, b_dgate.to(dgate.dtype.element_ty), mask=m_x)


@triton.jit
def group_forward(x, gate, out, groups, width, GROUPS: tl.constexpr, BLOCK: tl.constexpr):
    """x and out (groups, width), gate (groups,): one group of one token each."""
    o_g = tl.program_id(0).to(tl.int64) * GROUPS + tl.arange(0, GROUPS)
    o_c = tl.arange(0, BLOCK)
    m_x = (o_g < groups)[:, None] & (o_c < width)[None, :]
    o_x = o_g[:, None] * width + o_c[None, :]
    b_opened = sigmoid(tl.load(gate + o_g, mask=o_g < groups, other=0.0).to(tl.float32))
    b_x = tl.load(x + o_x, mask=m_x, other=0.0).to(tl.float32) * b_opened[:, None]
    tl.store(out + o_x, b_x.to(out.dtype.element_ty), mask=m_x)


@triton.jit
def group_backward(x, gate, dout, dx, dgate, groups, width, GROUPS: tl.constexpr, BLOCK: tl.constexpr):
    o_g = tl.program_id(0).to(tl.int64) * GROUPS + tl.arange(0, GROUPS)
    o_c = tl.arange(0, BLOCK)
    m_x = (o_g < groups)[:, None] & (o_c < width)[None, :]
    o_x = o_g[:, None] * width + o_c[None, :]
    b_opened = sigmoid(tl.load(gate + o_g, mask=o_g < groups, other=0.0).to(tl.float32))
    b_dout = tl.load(dout + o_x, mask=m_x, other=0.0).to(tl.float32)
    b_x = tl.load(x + o_x, mask=m_x, other=0.0).to(tl.float32)
    tl.store(dx + o_x, (b_dout * b_opened[:, None]).to(dx.dtype.element_ty), mask=m_x)
    b_dgate = tl.sum(b_dout * b_x, 1) * (b_opened * (1.0 - b_opened))
    tl.store(dgate + o_g, b_dgate.to(dgate.dtype.element_ty), mask=o_g < groups)


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
        out, (grid, sizes) = torch.empty_like(x), _grouping(x, gate)
        with torch.cuda.device_of(x):
            group_forward[grid](x, gate, out, **sizes)
        ctx.save_for_backward(x, gate)
        return out

    @staticmethod
    def backward(ctx, dout: Tensor):
        x, gate = ctx.saved_tensors
        dx, dgate, (grid, sizes) = torch.empty_like(x), torch.empty_like(gate), _grouping(x, gate)
        with torch.cuda.device_of(x):
            group_backward[grid](x, gate, dout.contiguous(), dx, dgate, **sizes)
        return dx, dgate


def _grouping(x: Tensor, gate: Tensor) -> tuple[tuple[int], dict[str, int]]:
    """Grid and sizes of the grouped kernels."""
    groups = gate.numel()
    width = x.numel() // groups
    block = triton.next_power_of_2(width)
    count = max(1, _GROUP_ELEMENTS // block)
    return (triton.cdiv(groups, count),), dict(
        groups=groups, width=width, GROUPS=count, BLOCK=block, num_warps=_WARPS
    )


def swiglu(gate_up: Tensor) -> Tensor:
    """As `swiglu.swiglu`, for float32, bfloat16 and float16."""
    return _Swiglu.apply(gate_up)


def mix(a: Tensor, b: Tensor, gate: Tensor) -> Tensor:
    """As `swiglu.gated_mix`."""
    return _Mix.apply(a, b, gate)


def group_gate(x: Tensor, gate: Tensor) -> Tensor:
    """As `swiglu.group_gate`."""
    return _GroupGate.apply(x, gate)
