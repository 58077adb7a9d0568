"""Gates, scan and read-out on a GPU: three custom operators over the kernels of `context_scan` and `readout_kernels`.

The scan saves its pre-activations and c, in their own dtype, and makes the gates again in the backward pass: nothing in
float32 is kept, and nothing but c is added to what the projection stores anyway.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from newllm_lib.ops.backend import on_its_device
from newllm_lib.ops.context_scan import launch
from newllm_lib.ops.gated_scan import readout_kernels
from newllm_lib.ops.partial_sums import sum_rows

_FORWARD_TILE, _BACKWARD_TILE = 2048, 1024  # elements a program: few enough that many programs share a multiprocessor
_PROGRAMS = 6  # programs a multiprocessor in the read-out's backward pass


def _tile(dim: int, elements: int) -> dict[str, int]:
    block = triton.next_power_of_2(dim)
    return dict(ROWS=max(1, elements // block), BLOCK_DIM=block, num_warps=4 if block <= 4096 else 8)


def _rows(x: Tensor) -> tuple[Tensor, int, int]:
    """x (..., dim) as a matrix with its strides; a copy only if its rows are not evenly spaced."""
    x = x.reshape(-1, x.shape[-1])
    return x, x.stride(0), x.stride(1) if x.shape[1] > 1 else 1


@on_its_device
def _readout(c: Tensor, z: Tensor, weight: Tensor, eps: float) -> Tensor:
    y = torch.empty(z.shape, dtype=z.dtype, device=z.device)
    (c, c_row, _), (z, z_row, z_dim) = _rows(c.contiguous()), _rows(z)
    tile = _tile(z.shape[1], _FORWARD_TILE)
    grid = (triton.cdiv(z.shape[0], tile["ROWS"]),)
    readout_kernels.readout_forward[grid](c, z, weight.contiguous(), y, *z.shape, eps, c_row, z_row, z_dim, **tile)
    return y


@on_its_device
def _readout_backward(
    c: Tensor, z: Tensor, weight: Tensor, dy: Tensor, dz: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Fills dz (evenly spaced rows); returns d c and d weight."""
    dc = torch.empty(c.shape, dtype=c.dtype, device=c.device)
    (c, c_row, _), (z, z_row, z_dim), (dy, dy_row, dy_dim) = _rows(c.contiguous()), _rows(z), _rows(dy)
    dz = dz.flatten(0, -2)
    tile = _tile(z.shape[1], _BACKWARD_TILE)
    programs = min(triton.cdiv(z.shape[0], tile["ROWS"]), _PROGRAMS * launch.multiprocessors(z.device))
    dweight = torch.empty(programs, z.shape[1], dtype=torch.float32, device=z.device)
    readout_kernels.readout_backward[(programs,)](
        c, z, weight.contiguous(), dy, dc, dz, dweight, *z.shape, eps,
        c_row, z_row, z_dim, dy_row, dy_dim, *dz.stride(), **tile,
    )  # fmt: skip
    return dc, sum_rows(dweight, weight)


def _bias_gradient(dbias: Tensor | None, bias: Tensor | None, like: Tensor) -> Tensor:
    return like.new_empty(0) if bias is None else sum_rows(dbias, bias)  # an operator can't return None


# ---- the scan alone


@torch.library.custom_op("newllm::gated_scan", mutates_args=())
def _scan(
    input: Tensor, forget: Tensor, bias: Tensor | None, starts: Tensor | None, valid: Tensor | None,
    initial: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return launch.forward(forget, input, bias, starts, valid, initial, gated=True)


@_scan.register_fake
def _(input, forget, bias, starts, valid, initial):
    return input.new_empty(input.shape), input.new_empty(input.shape[0], input.shape[2], dtype=torch.float32)


@torch.library.custom_op("newllm::gated_scan_backward", mutates_args=())
def _scan_backward(
    input: Tensor, forget: Tensor, bias: Tensor | None, starts: Tensor | None, valid: Tensor | None,
    initial: Tensor | None, c: Tensor, dc: Tensor | None, dfinal: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    dinput, dforget = input.new_empty(input.shape), forget.new_empty(forget.shape)
    dbias, dinitial = launch.backward(
        forget, input, bias, starts, valid, initial, c, dc, dfinal, dforget, dinput, gated=True
    )
    return dinput, dforget, _bias_gradient(dbias, bias, c), dinitial


@_scan_backward.register_fake
def _(input, forget, bias, starts, valid, initial, c, dc, dfinal):
    dbias = c.new_empty(0) if bias is None else bias.new_empty(bias.shape)
    dinitial = c.new_empty(c.shape[0], c.shape[2], dtype=torch.float32)
    return input.new_empty(input.shape), forget.new_empty(forget.shape), dbias, dinitial


def _keep_scan(ctx, inputs, output):
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs, output[0])


def _scan_gradient(ctx, dc, dfinal):
    if dc is None and dfinal is None:
        return (None,) * 6
    *inputs, c = ctx.saved_tensors
    dinput, dforget, dbias, dinitial = _scan_backward(*inputs, c, dc, dfinal)
    return dinput, dforget, None if inputs[2] is None else dbias, None, None, None if inputs[5] is None else dinitial


_scan.register_autograd(_scan_gradient, setup_context=_keep_scan)


# ---- the read-out alone


@torch.library.custom_op("newllm::gated_readout", mutates_args=())
def _readout_op(c: Tensor, z: Tensor, weight: Tensor, eps: float) -> Tensor:
    return _readout(c, z, weight, eps)


@_readout_op.register_fake
def _(c, z, weight, eps):
    return z.new_empty(z.shape)


@torch.library.custom_op("newllm::gated_readout_backward", mutates_args=())
def _readout_op_backward(c: Tensor, z: Tensor, weight: Tensor, dy: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    dz = z.new_empty(z.shape)
    dc, dweight = _readout_backward(c, z, weight, dy, dz, eps)
    return dc, dz, dweight


@_readout_op_backward.register_fake
def _(c, z, weight, dy, eps):
    return c.new_empty(c.shape), z.new_empty(z.shape), weight.new_empty(weight.shape)


def _keep_readout(ctx, inputs, output):
    *tensors, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def _readout_gradient(ctx, dy):
    return *_readout_op_backward(*ctx.saved_tensors, dy, ctx.eps), None


_readout_op.register_autograd(_readout_gradient, setup_context=_keep_readout)


# ---- both, from one packed projection


@torch.library.custom_op("newllm::gated_context", mutates_args=())
def _context(
    projection: Tensor, bias: Tensor | None, weight: Tensor, starts: Tensor | None, valid: Tensor | None,
    initial: Tensor | None, eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    input, forget, gate = projection.chunk(3, -1)
    c, final = launch.forward(forget, input, bias, starts, valid, initial, gated=True)
    return _readout(c, gate, weight, eps), c, final


@_context.register_fake
def _(projection, bias, weight, starts, valid, initial, eps):
    shape = (*projection.shape[:2], projection.shape[2] // 3)
    final = projection.new_empty(shape[0], shape[2], dtype=torch.float32)
    return projection.new_empty(shape), projection.new_empty(shape), final


@torch.library.custom_op("newllm::gated_context_backward", mutates_args=())
def _context_backward(
    projection: Tensor, bias: Tensor | None, weight: Tensor, starts: Tensor | None, valid: Tensor | None,
    initial: Tensor | None, c: Tensor, dy: Tensor | None, dc: Tensor | None, dfinal: Tensor | None, eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    input, forget, gate = projection.chunk(3, -1)
    gradient = torch.empty(projection.shape, dtype=projection.dtype, device=projection.device)
    dinput, dforget, dgate = gradient.chunk(3, -1)
    if dy is None:
        dgate.zero_()
        dweight = torch.zeros_like(weight)
    else:
        from_readout, dweight = _readout_backward(c, gate, weight, dy, dgate, eps)
        dc = from_readout if dc is None else from_readout.add_(dc)
    dbias, dinitial = launch.backward(
        forget, input, bias, starts, valid, initial, c, dc, dfinal, dforget, dinput, gated=True
    )
    return gradient, _bias_gradient(dbias, bias, c), dweight, dinitial


@_context_backward.register_fake
def _(projection, bias, weight, starts, valid, initial, c, dy, dc, dfinal, eps):
    dbias = c.new_empty(0) if bias is None else bias.new_empty(bias.shape)
    dinitial = c.new_empty(c.shape[0], c.shape[2], dtype=torch.float32)
    return projection.new_empty(projection.shape), dbias, weight.new_empty(weight.shape), dinitial


def _keep_context(ctx, inputs, output):
    *tensors, ctx.eps = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, output[1])


def _context_gradient(ctx, dy, dc, dfinal):
    if dy is None and dc is None and dfinal is None:
        return (None,) * 7
    *inputs, c = ctx.saved_tensors
    gradient, dbias, dweight, dinitial = _context_backward(*inputs, c, dy, dc, dfinal, ctx.eps)
    dbias, dinitial = None if inputs[1] is None else dbias, None if inputs[5] is None else dinitial
    return gradient, dbias, dweight, None, None, dinitial, None


_context.register_autograd(_context_gradient, setup_context=_keep_context)


# ---- the public names, as in `gated_scan`


def _state(initial_state: Tensor | None) -> Tensor | None:
    return None if initial_state is None else initial_state.float().contiguous()


def gated_scan(input, forget, forget_bias=None, starts=None, valid=None, initial_state=None):
    """As `gated_scan.gated_scan`, for float32, bfloat16 and float16."""
    return _scan(input, forget, forget_bias, starts, valid, _state(initial_state))


def gated_readout(c, gate, weight, eps=1e-6):
    """As `gated_scan.gated_readout`, for float32, bfloat16 and float16."""
    return _readout_op(c, gate, weight, eps)


def gated_context(projection, forget_bias, norm_weight, starts=None, valid=None, initial_state=None, eps=1e-6):
    """As `gated_scan.gated_context`, for float32, bfloat16 and float16."""
    return _context(projection, forget_bias, norm_weight, starts, valid, _state(initial_state), eps)
