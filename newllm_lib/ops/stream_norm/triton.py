"""The residual stream's sum, norm and short convolution on a GPU: two custom operators over `kernels`.

What is saved for the backward pass is r, which the stream holds anyway. x and the branch have one gradient: the operators return
it once, and autograd gives it to both.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from newllm_lib.ops.common import triton_helpers as helpers
from newllm_lib.ops.common.dispatch import on_its_device
from newllm_lib.ops.common.reductions import sum_rows
from newllm_lib.ops.stream_norm import kernels

_FORWARD_TILE, _BACKWARD_TILE = 2048, 1024  # elements a program, as in `gated_scan.triton`
_PROGRAMS = 8  # programs a multiprocessor in the norm's backward pass
_UNROLL = 4  # time steps whose rows are in flight at once
_FULL = 16  # programs a multiprocessor for which time is cut, into pieces of at least _MIN_CHUNK
_MIN_CHUNK = 16
_WARP = 128  # channels a warp takes in the walk through time: with twice as many, too few warps fit the registers


def _tile(dim: int, elements: int) -> dict[str, int]:
    block = triton.next_power_of_2(dim)
    return dict(ROWS=max(1, elements // block), BLOCK_DIM=block, num_warps=4 if block <= 4096 else 8)


def _walk(x: Tensor) -> tuple[tuple[int, int], int, dict[str, int]]:
    """Grid (batch, chunks of time), time steps a chunk, and the constants of a walk through time."""
    batch, time, dim = x.shape
    wanted = triton.cdiv(_FULL * helpers.multiprocessors(x.device), batch)
    length = triton.cdiv(time, max(1, min(wanted, time // _MIN_CHUNK)))
    length = triton.cdiv(length, 2 * _UNROLL) * 2 * _UNROLL  # no steps left over but at the end
    block = triton.next_power_of_2(dim)
    return (batch, triton.cdiv(time, length)), length, dict(UNROLL=_UNROLL, BLOCK_DIM=block, num_warps=max(1, block // _WARP))


@torch.library.custom_op("newllm::add_norm", mutates_args=())
def _add_norm(x: Tensor, branch: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """r (empty without a branch: it would be x itself) and n; x, branch (rows, dim) without gaps."""
    return _add_norm_forward(x, branch, weight, eps)


@on_its_device
def _add_norm_forward(x, branch, weight, eps):
    r, n = x.new_empty(0 if branch is None else x.shape), torch.empty_like(x)
    tile = _tile(x.shape[1], _FORWARD_TILE)
    kernels.norm_forward[(triton.cdiv(x.shape[0], tile["ROWS"]),)](
        x, branch, weight.contiguous(), r, n, *x.shape, eps, HAS_BRANCH=branch is not None, **tile
    )
    return r, n


@_add_norm.register_fake
def _(x, branch, weight, eps):
    return x.new_empty((0,) if branch is None else x.shape), torch.empty_like(x)


@torch.library.custom_op("newllm::add_norm_backward", mutates_args=())
def _add_norm_backward(r: Tensor, weight: Tensor, dn: Tensor, dr: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    """The gradient of x, which is the branch's too, and that of the weight."""
    return _norm_gradients(r, weight, dn.contiguous(), None if dr is None else dr.contiguous(), eps)


@on_its_device
def _norm_gradients(r, weight, dn, dr, eps):
    dx = torch.empty_like(r)
    tile = _tile(r.shape[1], _BACKWARD_TILE)
    programs = min(triton.cdiv(r.shape[0], tile["ROWS"]), _PROGRAMS * helpers.multiprocessors(r.device))
    shares = torch.empty(programs, r.shape[1], dtype=torch.float32, device=r.device)
    kernels.norm_backward[(programs,)](
        r, weight.contiguous(), dn, dr, dx, shares, *r.shape, eps, HAS_DR=dr is not None, **tile
    )
    return dx, sum_rows(shares, weight)


@_add_norm_backward.register_fake
def _(r, weight, dn, dr, eps):
    return torch.empty_like(r), weight.new_empty(weight.shape)


def _keep_norm(ctx, inputs, output):
    x, branch, weight, ctx.eps = inputs
    ctx.has_branch = branch is not None
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[0] if ctx.has_branch else x, weight)


def _norm_gradient(ctx, dr, dn):
    if dn is None:
        return dr, dr if ctx.has_branch else None, None, None
    dx, dweight = _add_norm_backward(*ctx.saved_tensors, dn, dr if ctx.has_branch else None, ctx.eps)
    return dx, dx if ctx.has_branch else None, dweight, None


_add_norm.register_autograd(_norm_gradient, setup_context=_keep_norm)


# ---- with the convolution


@torch.library.custom_op("newllm::add_norm_conv", mutates_args=())
def _add_norm_conv(
    x: Tensor, branch: Tensor | None, weight: Tensor, taps: Tensor, starts: Tensor | None, tail: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """r (empty without a branch) and u; x, branch (batch, time, dim) without gaps."""
    return _add_norm_conv_forward(x, branch, weight, taps, starts, tail, eps)


@on_its_device
def _add_norm_conv_forward(x, branch, weight, taps, starts, tail, eps):
    r, u = x.new_empty(0 if branch is None else x.shape), torch.empty_like(x)
    grid, length, constants = _walk(x)
    kernels.norm_conv_forward[grid](
        x, branch, weight.contiguous(), taps.contiguous(), helpers.flag_bytes(starts), tail, r, u, *x.shape[1:], length, eps,
        HAS_BRANCH=branch is not None, **_present(taps, starts, tail), **constants,
    )  # fmt: skip
    return r, u


def _present(taps: Tensor, starts: Tensor | None, tail: Tensor | None) -> dict[str, int]:
    return dict(HAS_STARTS=starts is not None, HAS_TAIL=tail is not None and taps.shape[1] > 1, WIDTH=taps.shape[1])


@_add_norm_conv.register_fake
def _(x, branch, weight, taps, starts, tail, eps):
    return x.new_empty((0,) if branch is None else x.shape), torch.empty_like(x)


@torch.library.custom_op("newllm::add_norm_conv_backward", mutates_args=())
def _add_norm_conv_backward(
    r: Tensor, weight: Tensor, taps: Tensor, starts: Tensor | None, tail: Tensor | None, du: Tensor, dr: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x (and of the branch), of the parameters side by side (the taps, then the weight), and of the tail."""
    return _conv_gradients(r, weight, taps, starts, tail, du.contiguous(), None if dr is None else dr.contiguous(), eps)


@on_its_device
def _conv_gradients(r, weight, taps, starts, tail, du, dr, eps):
    dx, dtail = torch.empty_like(r), r.new_empty(0) if tail is None else torch.empty_like(tail)
    grid, length, constants = _walk(r)
    width, dim = taps.shape[1], r.shape[2]
    shares = torch.empty(grid[0] * grid[1], (width + 1) * dim, dtype=torch.float32, device=r.device)
    kernels.norm_conv_backward[grid](
        r, weight.contiguous(), taps.contiguous(), helpers.flag_bytes(starts), tail, du, dr, dx, dtail, shares, *r.shape[1:],
        length, eps, HAS_DR=dr is not None, **_present(taps, starts, tail), **constants,
    )  # fmt: skip
    return dx, sum_rows(shares, shares), dtail


@_add_norm_conv_backward.register_fake
def _(r, weight, taps, starts, tail, du, dr, eps):
    dtail = r.new_empty(0) if tail is None else torch.empty_like(tail)
    return torch.empty_like(r), weight.new_empty(taps.numel() + weight.numel(), dtype=torch.float32), dtail


def _keep_norm_conv(ctx, inputs, output):
    x, branch, weight, taps, starts, tail, ctx.eps = inputs
    ctx.has_branch = branch is not None
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[0] if ctx.has_branch else x, weight, taps, starts, tail)


def _norm_conv_gradient(ctx, dr, du):
    dr = dr if ctx.has_branch else None
    if du is None:
        return dr, dr, *(None,) * 5
    r, weight, taps, starts, tail = ctx.saved_tensors
    dx, dparameters, dtail = _add_norm_conv_backward(r, weight, taps, starts, tail, du, dr, ctx.eps)
    dtaps, dweight = dparameters.split([taps.numel(), weight.numel()])
    dtaps, dweight = dtaps.view(taps.shape).to(taps.dtype), dweight.to(weight.dtype)
    return dx, dx if ctx.has_branch else None, dweight, dtaps, None, None if tail is None else dtail, None


_add_norm_conv.register_autograd(_norm_conv_gradient, setup_context=_keep_norm_conv)


# ---- what the convolution's next call needs


@torch.library.custom_op("newllm::norm_last_rows", mutates_args=())
def _last_rows(r: Tensor, weight: Tensor, count: int, starts: Tensor | None, eps: float) -> Tensor:
    """RMSNorm of the last rows of r (batch, time, dim) without gaps, float32; zeros before a start of a document among them."""
    return _last_rows_forward(r, weight, count, starts, eps)


@on_its_device
def _last_rows_forward(r, weight, count, starts, eps):
    batch, time, dim = r.shape
    out = torch.empty(batch, count, dim, dtype=torch.float32, device=r.device)
    block = triton.next_power_of_2(dim)
    kernels.norm_last_rows[(batch, count)](
        r, weight.contiguous(), helpers.flag_bytes(starts), out, time, dim, eps,
        HAS_STARTS=starts is not None, COUNT=count, BLOCK_DIM=block, num_warps=max(1, block // 256),
    )  # fmt: skip
    return out


@_last_rows.register_fake
def _(r, weight, count, starts, eps):
    return r.new_empty(r.shape[0], count, r.shape[2], dtype=torch.float32)


def _keep_last_rows(ctx, inputs, output):
    r, weight, ctx.count, starts, ctx.eps = inputs
    ctx.save_for_backward(r, weight, output)


def _last_rows_gradient(ctx, dout):
    r, weight, out = ctx.saved_tensors
    rows = r[:, r.shape[1] - ctx.count :].float()
    inverse = torch.rsqrt(rows.square().mean(-1, keepdim=True) + ctx.eps)
    normal = rows * inverse
    dout = dout * (out != 0).any(-1, keepdim=True)  # a row of zeros was cut off
    dnormal = dout * weight.float()
    drows = inverse * (dnormal - normal * (dnormal * normal).mean(-1, keepdim=True))
    dr = torch.nn.functional.pad(drows.to(r.dtype), (0, 0, r.shape[1] - ctx.count, 0))
    return dr, (dout * normal).sum((0, 1)).to(weight.dtype), None, None, None


_last_rows.register_autograd(_last_rows_gradient, setup_context=_keep_last_rows)


# ---- the public names, as in `stream_norm`


def last_rows(r, weight, width, starts, tail, eps):
    """As `reference.last_rows`, for an r that is as long as what it returns: nothing is left of the old tail."""
    return _last_rows(r.contiguous(), weight, width - 1, starts, eps)


def add_norm(x, branch, weight, eps):
    """As `stream_norm.add_norm`, for float32, bfloat16 and float16."""
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    branch = None if branch is None else branch.to(x.dtype).reshape(rows.shape).contiguous()
    r, n = _add_norm(rows, branch, weight, eps)
    return x if branch is None else r.view(x.shape), n.view(x.shape)


def add_norm_conv(x, branch, weight, taps, starts, tail, eps):
    """As `stream_norm.add_norm_conv`, but for the new tail."""
    x, branch = x.contiguous(), None if branch is None else branch.to(x.dtype).contiguous()
    r, u = _add_norm_conv(x, branch, weight, taps, starts, None if tail is None else tail.contiguous(), eps)
    return x if branch is None else r, u
