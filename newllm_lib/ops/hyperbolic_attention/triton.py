"""Hyperbolic attention on a GPU with tensor-core dot in Triton (sm80 on): launches of its kernels."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from newllm_lib.ops.common import triton_helpers as helpers
from newllm_lib.ops.common.dispatch import on_device_of_first_argument, shared_memory
from newllm_lib.ops.hyperbolic_attention import backward_kernels, kernels
from newllm_lib.ops.hyperbolic_attention.reference import first_visible, least_angle, padded

# The smallest 1 - cos θ told from 0. Half precision rounds the gradients' matrix, whose sum then cancels at
# small angles.
_LEAST = {torch.float32: least_angle(torch.float32), torch.bfloat16: 2.0**-18, torch.float16: 2.0**-18}
_KEY_ROWS = 32
_POSITIONS = 1024  # positions at a time of what finds the keys that a query sees


def _tiles(x: Tensor) -> dict[str, dict[str, int]]:
    """Of each kernel: queries and keys a tile, warps, stages of the pipeline. `forward` has no fewer queries
    than the rest, as it writes their numbers. Two programs of 64 by 64 share a multiprocessor of an H100,
    which hides their waiting.
    """
    row = _block(x) * x.element_size()
    if row <= 256:
        tile, keys = (64, 64, 4, 2), (32, 64, 4, 3)
    elif row == 512 and x.dtype != torch.float32 and shared_memory(x.device) > 2**17:
        tile, keys = (64, 32, 4, 1), (32, 64, 8, 1)
    else:
        edge = max(16, 2**14 // row)
        tile = keys = (edge, edge, 4, 1)
    names = "BLOCK_M", "BLOCK_N", "num_warps", "num_stages"
    tile, keys = (dict(zip(names, sizes, strict=True)) for sizes in (tile, keys))
    return dict(forward=tile, queries=tile, keys=keys)


def _block(x: Tensor) -> int:
    return max(16, triton.next_power_of_2(x.shape[3]))


def _constants(q: Tensor, first: Tensor | None) -> dict:
    block = _block(q)
    return dict(
        HAS_FIRST=first is not None,
        EVEN_D=block == q.shape[3],
        LEAST=_LEAST[q.dtype],
        PRECISION="tf32x3" if q.dtype == torch.float32 else "tf32",
        BLOCK_D=block,
    )


def _first(k: Tensor, window: int | None, doc_starts: Tensor | None) -> Tensor | None:
    """(batch, keys) int32, or None where every query sees everything before it."""
    batch, _, time, _ = k.shape
    if doc_starts is None and (window is None or window >= time):
        return None
    if doc_starts is None:
        return first_visible(batch, time, window, doc_starts, k.device).contiguous()
    return first_visible_on_gpu(doc_starts, time if window is None else window)


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    curvature: Tensor,
    window: int | None,
    doc_starts: Tensor | None,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """out, and the numbers (3, batch, heads, padded time) of queries and keys that the backward pass reads.

    `out`: where to write it, dim without gaps; None: a new tensor like q.
    """
    q, k, v = map(helpers.rows_together, (q, k, v))
    (batch, heads, queries, dim), keys = q.shape, k.shape[2]
    out = torch.empty_like(q) if out is None else out
    q_numbers, k_numbers = (
        torch.empty(3, batch, heads, padded(time), dtype=torch.float32, device=q.device)
        for time in (queries, keys)
    )
    first, tile = _first(k, window, doc_starts), _tiles(q)["forward"]
    constants = _constants(q, first)
    with torch.cuda.device_of(q):
        kernels.key_numbers[(k_numbers.shape[3] // _KEY_ROWS, batch * heads)](
            k,
            k_numbers,
            beta,
            curvature,
            heads,
            keys,
            dim,
            *helpers.strides(k),
            EVEN_D=constants["EVEN_D"],
            BLOCK_N=_KEY_ROWS,
            BLOCK_D=constants["BLOCK_D"],
            num_warps=4,
        )
        kernels.forward[(triton.cdiv(queries, tile["BLOCK_M"]), batch * heads)](
            q,
            k,
            v,
            out,
            q_numbers,
            k_numbers,
            first,
            beta,
            curvature,
            heads,
            queries,
            keys,
            dim,
            *helpers.strides(q, k, v, out),
            **constants,
            **tile,
        )
    return out, q_numbers, k_numbers


def backward(
    inputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    window: int | None,
    doc_starts: Tensor | None,
    saved: tuple[Tensor, Tensor, Tensor],
    dout: Tensor,
    into: tuple[Tensor, Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, beta and curvature, which are the `inputs`; `saved` is what `forward` returned.
    The first three are written to `into`, whose dims lie without gaps, if given.
    """
    (q, k, v, beta, curvature), (out, q_numbers, k_numbers) = inputs, saved
    dq, dk, dv = into or map(torch.empty_like, (q, k, v))
    q, k, v = map(helpers.rows_together, (q, k, v))
    dout = helpers.strided_like(dout, out)
    (batch, heads, queries, dim), keys = q.shape, k.shape[2]
    sizes = heads, queries, keys, dim
    first, tiles = _first(k, window, doc_starts), _tiles(q)
    last = None if first is None else last_seeing_on_gpu(first)
    constants = _constants(q, first)
    q_tiles, k_tiles = (
        triton.cdiv(queries, tiles["queries"]["BLOCK_M"]),
        triton.cdiv(keys, tiles["keys"]["BLOCK_N"]),
    )
    delta = torch.empty(batch, heads, padded(queries), dtype=torch.float32, device=q.device)
    q_parts = torch.empty(2, batch, heads, q_tiles, dtype=torch.float32, device=q.device)
    k_parts = torch.empty(batch, heads, k_tiles, dtype=torch.float32, device=q.device)
    with torch.cuda.device_of(q):
        backward_kernels.backward_queries[(q_tiles, batch * heads)](
            q,
            k,
            v,
            out,
            dout,
            dq,
            q_numbers,
            k_numbers,
            delta,
            q_parts,
            first,
            beta,
            curvature,
            *sizes,
            *helpers.strides(q, k, v, out, dq),
            **constants,
            **tiles["queries"],
        )
        backward_kernels.backward_keys[(k_tiles, batch * heads)](
            q,
            k,
            v,
            dout,
            dk,
            dv,
            q_numbers,
            k_numbers,
            delta,
            k_parts,
            first,
            last,
            beta,
            curvature,
            *sizes,
            *helpers.strides(q, k, v, dout, dk, dv),
            **constants,
            **tiles["keys"],
        )
    return dq, dk, dv, *_parameter_gradients(q_parts, k_parts, beta, curvature)


@on_device_of_first_argument
def _parameter_gradients(
    q_parts: Tensor, k_parts: Tensor, beta: Tensor, curvature: Tensor
) -> tuple[Tensor, Tensor]:
    """Of beta and curvature, from the programs' parts (2, batch, heads, tiles), (batch, heads, tiles)."""
    dbeta, dcurvature = torch.empty_like(beta), torch.empty_like(curvature)
    backward_kernels.parameter_gradients[(len(beta),)](
        q_parts,
        k_parts,
        beta,
        curvature,
        dbeta,
        dcurvature,
        *k_parts.shape[:2],
        q_parts.shape[3],
        k_parts.shape[2],
        BLOCK=64,
        num_warps=1,
    )
    return dbeta, dcurvature


@on_device_of_first_argument
def first_visible_on_gpu(doc_starts: Tensor, window: int) -> Tensor:
    """As `reference.first_visible`, for doc_starts (batch, time) on a GPU."""
    batch, time = doc_starts.shape
    first = torch.empty(batch, time, dtype=torch.int32, device=doc_starts.device)
    kernels.find_first[(batch,)](
        doc_starts.contiguous().view(torch.uint8), first, time, window, BLOCK=_POSITIONS, num_warps=4
    )
    return first


@on_device_of_first_argument
def last_seeing_on_gpu(first: Tensor) -> Tensor:
    """As `reference.last_seeing`, for first (batch, time) without gaps."""
    batch, time = first.shape
    last = torch.empty_like(first)
    grid = batch, triton.cdiv(time, _POSITIONS)
    kernels.find_last[grid](first, last, time, STEPS=time.bit_length(), BLOCK=_POSITIONS, num_warps=4)
    return last


# ---- rotation and attention on one packed projection [q, k, v], with no tensor of its size beside it:
# queries and keys are rotated where they lie, and the three gradients are written side by side, as the
# projection's own


@on_device_of_first_argument
def _turn_(qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, scale: float, sign: int) -> None:
    batch, time, width = qkv.shape
    half = width // (6 * heads)
    sizes = dict(
        HEADS=heads,
        HALF=half,
        BLOCK_HEADS=triton.next_power_of_2(heads),
        BLOCK_HALF=triton.next_power_of_2(half),
    )
    kernels.turn[(batch * time, 2)](qkv, cos, sin, time, scale, SIGN=sign, num_warps=4, **sizes)


def _parts(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v (batch, heads, time, dim), views."""
    return tuple(x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in qkv.chunk(3, -1))


class _PackedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, qkv, cos, sin, beta, curvature, doc_starts, window: int, heads: int, scale: float):
        _turn_(qkv, cos, sin, heads, scale, 1)
        q, k, v = _parts(qkv, heads)
        out = qkv.new_empty(*qkv.shape[:2], qkv.shape[2] // 3)
        beta, curvature = beta.contiguous(), curvature.contiguous()
        by_head = out.unflatten(-1, (heads, -1)).transpose(1, 2)
        _, *numbers = forward(q, k, v, beta, curvature, window, doc_starts, out=by_head)
        ctx.save_for_backward(qkv, cos, sin, beta, curvature, doc_starts, out, *numbers)
        ctx.settings = window, heads, scale
        return out

    @staticmethod
    def backward(ctx, dout):
        qkv, cos, sin, beta, curvature, doc_starts, out, *numbers = ctx.saved_tensors
        window, heads, scale = ctx.settings
        dqkv = torch.empty_like(qkv)
        out, dout = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (out, dout))
        *_, dbeta, dcurvature = backward(
            (*_parts(qkv, heads), beta, curvature),
            window,
            doc_starts,
            (out, *numbers),
            dout,
            into=_parts(dqkv, heads),
        )
        _turn_(dqkv, cos, sin, heads, scale, -1)
        return dqkv, None, None, dbeta, dcurvature, None, None, None, None


def packed_attention_(
    qkv: Tensor,
    rotation: tuple[Tensor, Tensor],
    beta: Tensor,
    curvature: Tensor,
    *,
    window: int,
    heads: int,
    scale: float,
    doc_starts: Tensor | None = None,
) -> Tensor:
    """`hyperbolic_attention` of queries and keys rotated by their position and scaled.

    Args:
        qkv: (batch, time, 3 heads dim), contiguous; it is used up: its queries and keys are rotated in place.
        rotation: cos and sin (time, dim / 2), float32.
        scale: of the rotated queries and keys.
        beta: as for `hyperbolic_attention`.
        curvature: as for `hyperbolic_attention`.
        window: as for `hyperbolic_attention`.
        doc_starts: as for `hyperbolic_attention`.

    Returns:
        (batch, time, heads dim).
    """
    cos, sin = (x.contiguous() for x in rotation)
    return _PackedAttention.apply(
        qkv.contiguous(), cos, sin, beta, curvature, doc_starts, window, heads, scale
    )
