"""The residual stream's sum, norm and short convolution on a GPU: two custom operators over `kernels`.

What is saved for the backward pass is r, which the stream holds anyway. x and residual have one gradient:
the operators return it once, and autograd gives it to both.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from newllm_lib.ops.add_norm import kernels
from newllm_lib.ops.common import triton_helpers as helpers
from newllm_lib.ops.common.dispatch import on_device_of_first_argument
from newllm_lib.ops.common.reductions import sum_rows

_FORWARD_TILE, _BACKWARD_TILE = 2048, 1024  # elements a program, as in `gated_scan.triton`
_PROGRAMS = 8  # programs a multiprocessor in the norm's backward pass
_UNROLL = 4  # time steps whose rows are in flight at once
_FULL = 16  # programs a multiprocessor for which time is cut, into pieces of at least _MIN_CHUNK
_MIN_CHUNK = 16
# channels a warp takes in the walk through time: with twice as many, too few warps fit the registers
_WARP = 128


def _gapless(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _walk(x: Tensor) -> tuple[tuple[int, int], int, dict[str, int]]:
    """Grid (batch, chunks of time), time steps a chunk, and the constants of a walk through time."""
    batch, time, dim = x.shape
    wanted = triton.cdiv(_FULL * helpers.multiprocessors(x.device), batch)
    length = triton.cdiv(time, max(1, min(wanted, time // _MIN_CHUNK)))
    length = triton.cdiv(length, 2 * _UNROLL) * 2 * _UNROLL  # no steps left over but at the end
    block = triton.next_power_of_2(dim)
    return (
        (batch, triton.cdiv(time, length)),
        length,
        dict(UNROLL=_UNROLL, BLOCK_DIM=block, num_warps=max(1, block // _WARP)),
    )


@torch.library.custom_op("newllm::add_norm", mutates_args=())
@on_device_of_first_argument
def _add_norm(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """r (empty without a residual: it would be x itself) and n; x, residual (rows, dim) without gaps."""
    r, n = x.new_empty(0 if residual is None else x.shape), torch.empty_like(x)
    tile = helpers.row_tile(x.shape[1], _FORWARD_TILE)
    kernels.norm_forward[(triton.cdiv(x.shape[0], tile["ROWS"]),)](
        x, residual, weight.contiguous(), r, n, *x.shape, eps, HAS_RESIDUAL=residual is not None, **tile
    )
    return r, n


@_add_norm.register_fake
def _(x, residual, weight, eps):
    return x.new_empty((0,) if residual is None else x.shape), torch.empty_like(x)


@torch.library.custom_op("newllm::add_norm_backward", mutates_args=())
@on_device_of_first_argument
def _add_norm_backward(
    r: Tensor, weight: Tensor, dn: Tensor, dr: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """The gradient of x, which is residual's too, and that of the weight."""
    dx = torch.empty_like(r)
    tile = helpers.row_tile(r.shape[1], _BACKWARD_TILE)
    programs = min(triton.cdiv(r.shape[0], tile["ROWS"]), _PROGRAMS * helpers.multiprocessors(r.device))
    partial_sums = torch.empty(programs, r.shape[1], dtype=torch.float32, device=r.device)
    kernels.norm_backward[(programs,)](
        r,
        weight.contiguous(),
        dn.contiguous(),
        _gapless(dr),
        dx,
        partial_sums,
        *r.shape,
        eps,
        HAS_DR=dr is not None,
        **tile,
    )
    return dx, sum_rows(partial_sums, weight)


@_add_norm_backward.register_fake
def _(r, weight, dn, dr, eps):
    return torch.empty_like(r), weight.new_empty(weight.shape)


def _keep_norm(ctx, inputs, output):
    x, residual, weight, ctx.eps = inputs
    ctx.has_residual = residual is not None
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[0] if ctx.has_residual else x, weight)


def _norm_gradient(ctx, dr, dn):
    if dn is None:
        return dr, dr if ctx.has_residual else None, None, None
    dx, dweight = _add_norm_backward(*ctx.saved_tensors, dn, dr if ctx.has_residual else None, ctx.eps)
    return dx, dx if ctx.has_residual else None, dweight, None


_add_norm.register_autograd(_norm_gradient, setup_context=_keep_norm)


# ---- with the convolution


@torch.library.custom_op("newllm::add_norm_conv", mutates_args=())
@on_device_of_first_argument
def _add_norm_conv(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    conv_weight: Tensor,
    doc_starts: Tensor | None,
    conv_state: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """r (empty without a residual) and u; x, residual (batch, time, dim) without gaps."""
    r, u = x.new_empty(0 if residual is None else x.shape), torch.empty_like(x)
    grid, length, constants = _walk(x)
    kernels.norm_conv_forward[grid](
        x,
        residual,
        weight.contiguous(),
        conv_weight.contiguous(),
        helpers.flag_bytes(doc_starts),
        conv_state,
        r,
        u,
        *x.shape[1:],
        length,
        eps,
        HAS_RESIDUAL=residual is not None,
        **_present(conv_weight, doc_starts, conv_state),
        **constants,
    )
    return r, u


def _present(conv_weight: Tensor, doc_starts: Tensor | None, conv_state: Tensor | None) -> dict[str, int]:
    return dict(
        HAS_STARTS=doc_starts is not None,
        HAS_CONV_STATE=conv_state is not None and conv_weight.shape[1] > 1,
        WIDTH=conv_weight.shape[1],
    )


@_add_norm_conv.register_fake
def _(x, residual, weight, conv_weight, doc_starts, conv_state, eps):
    return x.new_empty((0,) if residual is None else x.shape), torch.empty_like(x)


@torch.library.custom_op("newllm::add_norm_conv_backward", mutates_args=())
@on_device_of_first_argument
def _add_norm_conv_backward(
    r: Tensor,
    weight: Tensor,
    conv_weight: Tensor,
    doc_starts: Tensor | None,
    conv_state: Tensor | None,
    du: Tensor,
    dr: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x (and residual), of conv_weight and weight side by side, and of conv_state."""
    dx, dconv_state = (
        torch.empty_like(r),
        r.new_empty(0) if conv_state is None else torch.empty_like(conv_state),
    )
    grid, length, constants = _walk(r)
    width, dim = conv_weight.shape[1], r.shape[2]
    partial_sums = torch.empty(grid[0] * grid[1], (width + 1) * dim, dtype=torch.float32, device=r.device)
    kernels.norm_conv_backward[grid](
        r,
        weight.contiguous(),
        conv_weight.contiguous(),
        helpers.flag_bytes(doc_starts),
        conv_state,
        du.contiguous(),
        _gapless(dr),
        dx,
        dconv_state,
        partial_sums,
        *r.shape[1:],
        length,
        eps,
        HAS_DR=dr is not None,
        **_present(conv_weight, doc_starts, conv_state),
        **constants,
    )
    return dx, sum_rows(partial_sums, partial_sums), dconv_state


@_add_norm_conv_backward.register_fake
def _(r, weight, conv_weight, doc_starts, conv_state, du, dr, eps):
    dconv_state = r.new_empty(0) if conv_state is None else torch.empty_like(conv_state)
    return (
        torch.empty_like(r),
        weight.new_empty(conv_weight.numel() + weight.numel(), dtype=torch.float32),
        dconv_state,
    )


def _keep_norm_conv(ctx, inputs, output):
    x, residual, weight, conv_weight, doc_starts, conv_state, ctx.eps = inputs
    ctx.has_residual = residual is not None
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[0] if ctx.has_residual else x, weight, conv_weight, doc_starts, conv_state)


def _norm_conv_gradient(ctx, dr, du):
    dr = dr if ctx.has_residual else None
    if du is None:
        return dr, dr, *(None,) * 5
    r, weight, conv_weight, doc_starts, conv_state = ctx.saved_tensors
    dx, dparameters, dconv_state = _add_norm_conv_backward(
        r, weight, conv_weight, doc_starts, conv_state, du, dr, ctx.eps
    )
    dconv_weight, dweight = dparameters.split([conv_weight.numel(), weight.numel()])
    dconv_weight, dweight = (
        dconv_weight.view(conv_weight.shape).to(conv_weight.dtype),
        dweight.to(weight.dtype),
    )
    return (
        dx,
        dx if ctx.has_residual else None,
        dweight,
        dconv_weight,
        None,
        None if conv_state is None else dconv_state,
        None,
    )


_add_norm_conv.register_autograd(_norm_conv_gradient, setup_context=_keep_norm_conv)


# ---- what the convolution's next call needs


@torch.library.custom_op("newllm::norm_last_rows", mutates_args=())
@on_device_of_first_argument
def _last_rows(r: Tensor, weight: Tensor, count: int, doc_starts: Tensor | None, eps: float) -> Tensor:
    """RMSNorm of the last rows of r (batch, time, dim), float32; zeros before a document start in them."""
    batch, time, dim = r.shape
    out = torch.empty(batch, count, dim, dtype=torch.float32, device=r.device)
    block = triton.next_power_of_2(dim)
    kernels.norm_last_rows[(batch, count)](
        r,
        weight.contiguous(),
        helpers.flag_bytes(doc_starts),
        out,
        time,
        dim,
        eps,
        HAS_STARTS=doc_starts is not None,
        COUNT=count,
        BLOCK_DIM=block,
        num_warps=max(1, block // 256),
    )
    return out


@_last_rows.register_fake
def _(r, weight, count, doc_starts, eps):
    return r.new_empty(r.shape[0], count, r.shape[2], dtype=torch.float32)


def _keep_last_rows(ctx, inputs, output):
    r, weight, ctx.count, doc_starts, ctx.eps = inputs
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


# ---- the public names, as in `ops.add_norm`


def last_rows(r, weight, width, doc_starts, conv_state, eps):
    """As `reference.last_rows`, for an r as long as what it returns: nothing is left of the old state."""
    return _last_rows(r.contiguous(), weight, width - 1, doc_starts, eps)


def add_norm(x, residual, weight, eps):
    """As `ops.add_norm.add_norm`, for float32, bfloat16 and float16."""
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    residual = None if residual is None else residual.to(x.dtype).reshape(rows.shape).contiguous()
    r, n = _add_norm(rows, residual, weight, eps)
    return x if residual is None else r.view(x.shape), n.view(x.shape)


def add_norm_conv(x, residual, weight, conv_weight, doc_starts, conv_state, eps):
    """As `ops.add_norm.add_norm_conv`, but for the new state."""
    x, residual = x.contiguous(), None if residual is None else residual.to(x.dtype).contiguous()
    r, u = _add_norm_conv(
        x,
        residual,
        weight,
        conv_weight,
        doc_starts,
        _gapless(conv_state),
        eps,
    )
    return x if residual is None else r, u
