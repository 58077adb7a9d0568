"""Gates, scan and read-out on a GPU: a custom operator over `kernels`, one node for torch.compile.

The scan saves its pre-activations and c, in their own dtype, and makes the gates again in the backward pass:
nothing in float32 is kept, and nothing but c is added to what the projection stores anyway.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from newllm_lib.ops.common import triton_helpers as helpers
from newllm_lib.ops.common.dispatch import on_device_of_first_argument
from newllm_lib.ops.common.reductions import sum_rows
from newllm_lib.ops.gated_scan import kernels

# elements a program: few enough that many programs share a multiprocessor
_FORWARD_TILE, _BACKWARD_TILE = (
    2048,
    1024,
)
_PROGRAMS = 6  # programs a multiprocessor in the read-out's backward pass
# BLOCK_DIM: channels a program, two for each thread of its one warp, so that half precision is read in 4-byte
# words.
# UNROLL: time steps whose inputs are in flight at once. The backward pass reads four tensors: with 8 steps of
# each, its registers let too few programs run together.
FORWARD = dict(BLOCK_DIM=64, UNROLL=8, num_warps=1)
BACKWARD = dict(BLOCK_DIM=64, UNROLL=4, num_warps=1)
MIN_CHUNK = 32  # time steps; shorter chunks cost more in summaries than they win
FULL = 16  # programs a multiprocessor above which cutting time does not pay: it reads the inputs twice


def count_chunks(programs: int, time: int, device: torch.device) -> int:
    """Chunks of time for about FULL programs a multiprocessor; 1 where batch x dim nearly gives as many."""
    wanted = FULL * helpers.multiprocessors(device)
    if 2 * programs > wanted:
        return 1
    return max(1, min(wanted // programs, time // MIN_CHUNK))


class _Plan:
    """Grid and chunking of one scan, and the constants that every pass takes."""

    def __init__(self, x, bias, doc_starts, mask, tile: dict[str, int]):
        self.batch, self.time, self.dim = x.shape
        blocks = self.batch * triton.cdiv(self.dim, tile["BLOCK_DIM"])
        self.chunks = count_chunks(blocks, self.time, x.device)
        self.length = triton.cdiv(self.time, self.chunks)
        self.chunks = triton.cdiv(self.time, self.length)  # none is empty
        self.grid = (blocks, self.chunks)
        self.sizes = self.time, self.dim, self.chunks, self.length
        self.constants = dict(
            HAS_BIAS=bias is not None, HAS_STARTS=doc_starts is not None, HAS_VALID=mask is not None, **tile
        )


def _scan_summaries(product, end, outer):
    """Exit state of every chunk, from what each does to its entry: a scan over (batch, chunks, dim)."""
    return _forward(product, end, None, None, None, outer, gated=False)[0]


@on_device_of_first_argument
def _forward(x, y, bias, doc_starts, mask, initial, gated: bool = True):
    """c (batch, time, dim) in y's dtype, final state (batch, dim); sizes as in `kernels`, None if absent."""
    plan = _Plan(x, bias, doc_starts, mask, FORWARD)
    doc_starts, mask = helpers.flag_bytes(doc_starts), helpers.flag_bytes(mask)
    c = torch.empty(x.shape, dtype=y.dtype, device=y.device)
    final = torch.empty(plan.batch, plan.dim, dtype=torch.float32, device=y.device)
    arguments = (*plan.sizes, *x.stride()[:2])
    exits = final
    if plan.chunks > 1:
        product = torch.empty(plan.batch, plan.chunks, plan.dim, dtype=torch.float32, device=y.device)
        end = torch.empty_like(product)
        kernels.scan_forward[plan.grid](
            x,
            y,
            bias,
            doc_starts,
            mask,
            None,
            product,
            c,
            product,
            end,
            *arguments,
            HAS_INITIAL=False,
            SUMMARY=True,
            GATED=gated,
            **plan.constants,
        )
        exits = _scan_summaries(product, end, initial)
    kernels.scan_forward[plan.grid](
        x,
        y,
        bias,
        doc_starts,
        mask,
        initial,
        exits,
        c,
        final,
        final,
        *arguments,
        HAS_INITIAL=initial is not None,
        SUMMARY=False,
        GATED=gated,
        **plan.constants,
    )
    return c, final


@on_device_of_first_argument
def _backward(x, y, bias, doc_starts, mask, initial, c, dc, dfinal, dx, dy):
    """Fills dx, dy (batch, time, dim, any strides); returns (float32) d bias in partial sums (any, dim) or
    None, and d initial.

    dc, dfinal: gradients of c and of the final state, None where there is none. d initial: (batch, dim).
    """
    plan = _Plan(x, bias, doc_starts, mask, BACKWARD)
    doc_starts, mask = helpers.flag_bytes(doc_starts), helpers.flag_bytes(mask)
    dfinal = None if dfinal is None else dfinal.float().contiguous()
    dinitial = torch.empty(plan.batch, plan.dim, dtype=torch.float32, device=x.device)
    dc_ = c if dc is None else dc.contiguous()
    dbias = None
    if bias is not None:
        dbias = torch.empty(plan.batch, plan.chunks, plan.dim, dtype=torch.float32, device=x.device)
    exits = dinitial
    if plan.chunks > 1:
        product = torch.empty(plan.batch, plan.chunks, plan.dim, dtype=torch.float32, device=x.device)
        end = torch.empty_like(product)
        kernels.scan_backward_summary[plan.grid](
            x,
            bias,
            doc_starts,
            mask,
            dc_,
            product,
            end,
            *plan.sizes,
            *x.stride()[:2],
            HAS_DC=dc is not None,
            **plan.constants,
        )
        exits = _scan_summaries(product.flip(1), end.flip(1), dfinal).flip(1).contiguous()
    kernels.scan_backward[plan.grid](
        x,
        y,
        bias,
        doc_starts,
        mask,
        initial,
        c,
        dc_,
        dfinal,
        exits,
        dx,
        dy,
        dbias,
        dinitial,
        *plan.sizes,
        *x.stride()[:2],
        *dx.stride()[:2],
        HAS_INITIAL=initial is not None,
        HAS_DC=dc is not None,
        HAS_DFINAL=dfinal is not None,
        **plan.constants,
    )
    return None if dbias is None else dbias.flatten(0, 1), dinitial


@on_device_of_first_argument
def _readout(c: Tensor, z: Tensor, weight: Tensor, eps: float) -> Tensor:
    y = torch.empty(z.shape, dtype=z.dtype, device=z.device)
    z = z.reshape(-1, z.shape[-1])  # a copy only if its rows are not evenly spaced
    tile = helpers.row_tile(z.shape[1], _FORWARD_TILE)
    grid = (triton.cdiv(z.shape[0], tile["ROWS"]),)
    kernels.readout_forward[grid](
        c.contiguous(), z, weight.contiguous(), y, *z.shape, eps, z.stride(0), **tile
    )
    return y


@on_device_of_first_argument
def _readout_backward(
    c: Tensor, z: Tensor, weight: Tensor, dy: Tensor, dz: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Fills dz (evenly spaced rows); returns d c and d weight."""
    dc = torch.empty(c.shape, dtype=c.dtype, device=c.device)
    z, dz = z.reshape(-1, z.shape[-1]), dz.flatten(0, -2)
    tile = helpers.row_tile(z.shape[1], _BACKWARD_TILE)
    programs = min(triton.cdiv(z.shape[0], tile["ROWS"]), _PROGRAMS * helpers.multiprocessors(z.device))
    dweight = torch.empty(programs, z.shape[1], dtype=torch.float32, device=z.device)
    kernels.readout_backward[(programs,)](
        c.contiguous(),
        z,
        weight.contiguous(),
        dy.contiguous(),
        dc,
        dz,
        dweight,
        *z.shape,
        eps,
        z.stride(0),
        dz.stride(0),
        **tile,
    )
    return dc, sum_rows(dweight, weight)


def _bias_gradient(dbias: Tensor | None, bias: Tensor | None, like: Tensor) -> Tensor:
    return like.new_empty(0) if bias is None else sum_rows(dbias, bias)  # an operator can't return None


@torch.library.custom_op("newllm::gated_scan", mutates_args=())
def _scan(
    projection: Tensor,
    bias: Tensor | None,
    weight: Tensor,
    doc_starts: Tensor | None,
    mask: Tensor | None,
    initial: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    input, forget, gate = projection.chunk(3, -1)
    c, final = _forward(forget, input, bias, doc_starts, mask, initial)
    return _readout(c, gate, weight, eps), c, final


@_scan.register_fake
def _(projection, bias, weight, doc_starts, mask, initial, eps):
    shape = (*projection.shape[:2], projection.shape[2] // 3)
    final = projection.new_empty(shape[0], shape[2], dtype=torch.float32)
    return projection.new_empty(shape), projection.new_empty(shape), final


@torch.library.custom_op("newllm::gated_scan_backward", mutates_args=())
def _scan_backward(
    projection: Tensor,
    bias: Tensor | None,
    weight: Tensor,
    doc_starts: Tensor | None,
    mask: Tensor | None,
    initial: Tensor | None,
    c: Tensor,
    dy: Tensor | None,
    dc: Tensor | None,
    dfinal: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    input, forget, gate = projection.chunk(3, -1)
    gradient = torch.empty(projection.shape, dtype=projection.dtype, device=projection.device)
    dinput, dforget, dgate = gradient.chunk(3, -1)
    if dy is None:
        dgate.zero_()
        dweight = torch.zeros_like(weight)
    else:
        from_readout, dweight = _readout_backward(c, gate, weight, dy, dgate, eps)
        dc = from_readout if dc is None else from_readout.add_(dc)
    dbias, dinitial = _backward(
        forget, input, bias, doc_starts, mask, initial, c, dc, dfinal, dforget, dinput
    )
    return gradient, _bias_gradient(dbias, bias, c), dweight, dinitial


@_scan_backward.register_fake
def _(projection, bias, weight, doc_starts, mask, initial, c, *_):
    dbias = c.new_empty(0) if bias is None else bias.new_empty(bias.shape)
    dinitial = c.new_empty(c.shape[0], c.shape[2], dtype=torch.float32)
    return projection.new_empty(projection.shape), dbias, weight.new_empty(weight.shape), dinitial


def _keep(ctx, inputs, output):
    *tensors, ctx.eps = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, output[1])


def _scan_gradient(ctx, dy, dc, dfinal):
    if dy is None and dc is None and dfinal is None:
        return (None,) * 7
    *inputs, c = ctx.saved_tensors
    gradient, dbias, dweight, dinitial = _scan_backward(*inputs, c, dy, dc, dfinal, ctx.eps)
    dbias, dinitial = None if inputs[1] is None else dbias, None if inputs[5] is None else dinitial
    return gradient, dbias, dweight, None, None, dinitial, None


_scan.register_autograd(_scan_gradient, setup_context=_keep)


def gated_scan(
    projection, forget_bias, norm_weight, doc_starts=None, mask=None, initial_state=None, eps=1e-6
):
    """As `gated_scan.gated_scan`, for float32, bfloat16 and float16."""
    initial = None if initial_state is None else initial_state.float().contiguous()
    return _scan(helpers.rows_together(projection), forget_bias, norm_weight, doc_starts, mask, initial, eps)


@on_device_of_first_argument
def gated_scan_step(projection, forget_bias, norm_weight, start, state, new_state, eps=1e-6):
    """As `gated_scan.gated_scan_step`."""
    batch, dim = state.shape
    y = torch.empty(batch, dim, device=projection.device, dtype=projection.dtype)
    block = triton.next_power_of_2(dim)
    kernels.scan_step[(batch,)](
        projection,
        forget_bias,
        norm_weight,
        start,
        state,
        new_state,
        y,
        dim,
        eps,
        projection.stride(0),
        state.stride(0),
        new_state.stride(0),
        STARTS=start is not None,
        BLOCK=block,
        num_warps=min(16, max(1, block // 128)),
    )
    return y
