"""Linear attention on a GPU with tensor-core dot in Triton (sm80 on): launches of `kernels`, and the custom
operators around them, which torch.compile leaves whole.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from newllm_lib.ops.common import triton_helpers as helpers
from newllm_lib.ops.linear_attention import kernels, sizes

_WALK = 256


def _chunk(q: Tensor, v: Tensor) -> int:
    """Tokens a program takes at once."""
    return sizes.chunk(q.shape[3], v.shape[3], v.dtype, v.device) or min(sizes.CHUNKS)


def _sizes(q: Tensor, v: Tensor) -> tuple[int, ...]:
    """heads, time, chunks, features, dim."""
    return q.shape[1], q.shape[2], triton.cdiv(q.shape[2], _chunk(q, v)), q.shape[3], v.shape[3]


def _constants(q: Tensor, v: Tensor, first: Tensor | None) -> dict:
    features, dim = (max(16, triton.next_power_of_2(x.shape[3])) for x in (q, v))
    return dict(
        HAS_FIRST=first is not None,
        CHUNK=_chunk(q, v),
        BLOCK_F=features,
        BLOCK_D=dim,
        PRECISION="tf32x3" if v.dtype == torch.float32 else "tf32",
        num_warps=4 if features * dim <= 4096 else 8,
        num_stages=1,
    )


def _first(doc_starts: Tensor | None) -> Tensor | None:
    """(batch, time) int32: where each token's document starts; -1: before the text."""
    if doc_starts is None:
        return None
    index = torch.arange(doc_starts.shape[1], device=doc_starts.device)
    return torch.where(doc_starts, index, -1).cummax(1).values.to(torch.int32).contiguous()


def _walk(states: Tensor, keeps: Tensor, reverse: bool) -> None:
    rows, chunks, size = keeps.shape[0] * keeps.shape[1], keeps.shape[2], states.shape[3] * states.shape[4]
    kernels.walk[(triton.cdiv(size, _WALK), rows)](
        states, keeps, chunks, size, REVERSE=reverse, BLOCK=_WALK, num_warps=2
    )


@torch.library.custom_op("newllm::linear_attention", mutates_args=())
def _attention(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, doc_starts: Tensor | None, state: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    first = _first(doc_starts)
    counted, constants = _sizes(q, v), _constants(q, v, first)
    heads, _, chunks, *_ = counted
    out, counts, keeps, states = _buffers(q, v, chunks)
    states[:, :, 0] = state
    grid = chunks, q.shape[0] * heads
    with torch.cuda.device_of(q):
        kernels.collect[grid](
            k, v, log_decay, first, states, keeps, *counted, *helpers.strides(k, v), **constants
        )
        _walk(states, keeps, reverse=False)
        kernels.read[grid](
            q,
            k,
            v,
            log_decay,
            first,
            states,
            out,
            counts,
            *counted,
            *helpers.strides(q, k, v, out),
            **constants,
        )
    return out, states[:, :, -1].clone(), counts, keeps, states


def _buffers(q: Tensor, v: Tensor, chunks: int) -> list[Tensor]:
    """out; float32: sums of weights, what each chunk keeps of the state before it, states."""
    (batch, heads, time, features), dim = q.shape, v.shape[3]
    shapes = (time,), (chunks,), (chunks + 1, dim + 1, features)
    return [
        torch.empty_like(v),
        *(v.new_empty(batch, heads, *shape, dtype=torch.float32) for shape in shapes),
    ]


@_attention.register_fake
def _(q, k, v, log_decay, doc_starts, state):
    out, counts, keeps, states = _buffers(q, v, (q.shape[2] + _chunk(q, v) - 1) // _chunk(q, v))
    return out, torch.empty_like(state), counts, keeps, states


@torch.library.custom_op("newllm::linear_attention_backward", mutates_args=())
def _attention_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    doc_starts: Tensor | None,
    out: Tensor,
    counts: Tensor,
    keeps: Tensor,
    states: Tensor,
    dout: Tensor | None,
    dstate: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dout = torch.zeros_like(out) if dout is None else helpers.strided_like(dout, out)
    first = _first(doc_starts)
    counted, constants = _sizes(q, v), _constants(q, v, first)
    dq, dk, dv = (x.new_empty(x.shape) for x in (q, k, v))
    dlog_decay, dstates = torch.empty_like(log_decay), torch.empty_like(states)
    dstates[:, :, -1] = 0 if dstate is None else dstate
    grid = counted[2], q.shape[0] * counted[0]
    with torch.cuda.device_of(q):
        kernels.collect_gradients[grid](
            q, log_decay, first, out, dout, counts, dstates, *counted, *helpers.strides(q, out), **constants
        )
        _walk(dstates, keeps, reverse=True)
        kernels.gradients[grid](
            q,
            k,
            v,
            log_decay,
            first,
            states,
            dstates,
            out,
            dout,
            counts,
            dq,
            dk,
            dv,
            dlog_decay,
            *counted,
            *helpers.strides(q, k, v, out),
            **constants,
        )
    return dq, dk, dv, dlog_decay, dstates[:, :, 0].clone()


@_attention_backward.register_fake
def _(q, k, v, log_decay, *others):
    return (
        *(x.new_empty(x.shape) for x in (q, k, v, log_decay)),
        others[4][:, :, 0].clone(),  # of the states
    )


def _keep(ctx, inputs, output):
    q, k, v, log_decay, doc_starts, _ = inputs
    out, _, counts, keeps, states = output
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(q, k, v, log_decay, doc_starts, out, counts, keeps, states)


def _gradient(ctx, dout, dstate, *_):
    """The sums' own gradients are left out: nobody but the backward pass gets to see them."""
    if dout is None and dstate is None:
        return (None,) * 6
    *gradients, dinitial = _attention_backward(*ctx.saved_tensors, dout, dstate)
    return *gradients, None, dinitial


_attention.register_autograd(_gradient, setup_context=_keep)


def linear_attention(q, k, v, log_decay, doc_starts, state):
    """As `linear_attention.linear_attention`."""
    q, k, v = map(helpers.rows_together, (q, k, v))
    return _attention(q, k, v, log_decay.float().contiguous(), doc_starts, state.float())[:2]


# ---- the feature map

_ROWS = 64
_PROGRAMS = 512  # that sum a part of the gradients each


def _feature_constants(u: Tensor, features: int) -> dict:
    """Half-precision vectors are exact in tf32; the boundary's rounding is below that of the features."""
    blocks = (max(16, triton.next_power_of_2(x)) for x in (features, u.shape[3]))
    precision = "tf32x3" if u.dtype == torch.float32 else "tf32"
    return dict(
        zip(("BLOCK_F", "BLOCK_D"), blocks, strict=True),
        BLOCK_T=_ROWS,
        PRECISION=precision,
        num_warps=4,
        num_stages=1,
    )


@torch.library.custom_op("newllm::horosphere_features", mutates_args=())
def _features(u: Tensor, boundary: Tensor, sharpness: Tensor, root: Tensor) -> Tensor:
    (batch, heads, time, dim), features = u.shape, boundary.shape[1]
    out = u.new_empty(batch, heads, time, features)
    with torch.cuda.device_of(u):
        kernels.features_forward[(triton.cdiv(time, _ROWS), batch * heads)](
            u,
            boundary,
            sharpness,
            root,
            out,
            heads,
            time,
            features,
            dim,
            *u.stride()[:3],
            **_feature_constants(u, features),
        )
    return out


@_features.register_fake
def _(u, boundary, sharpness, root):
    return u.new_empty(*u.shape[:3], boundary.shape[1])


@torch.library.custom_op("newllm::horosphere_features_backward", mutates_args=())
def _features_backward(
    u: Tensor, boundary: Tensor, sharpness: Tensor, root: Tensor, dout: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    (batch, heads, time, dim), features = u.shape, boundary.shape[1]
    dout = helpers.rows_together(dout)
    parts = max(1, min(_PROGRAMS // heads, batch * triton.cdiv(time, _ROWS)))
    du = u.new_empty(u.shape)
    dboundary = boundary.new_empty(heads, parts, features, dim)
    dsharpness, droot = boundary.new_empty(2, heads, parts)
    with torch.cuda.device_of(u):
        kernels.features_backward[(parts, heads)](
            u,
            boundary,
            sharpness,
            root,
            dout,
            du,
            dboundary,
            dsharpness,
            droot,
            batch,
            heads,
            time,
            features,
            dim,
            parts,
            *(stride for x in (u, dout, du) for stride in x.stride()[:3]),
            **_feature_constants(u, features),
        )
    return du, dboundary.sum(1), dsharpness.sum(1), droot.sum(1)


@_features_backward.register_fake
def _(u, boundary, sharpness, root, dout):
    return (
        u.new_empty(u.shape),
        torch.empty_like(boundary),
        torch.empty_like(sharpness),
        torch.empty_like(root),
    )


def _features_gradient(ctx, dout):
    return _features_backward(*ctx.saved_tensors, dout)


_features.register_autograd(
    _features_gradient, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs)
)


def horosphere_features(u: Tensor, directions: Tensor, sharpness: Tensor, curvature: Tensor) -> Tensor:
    """As `features.horosphere_features`, in u's dtype."""
    boundary = F.normalize(directions.float(), dim=-1).contiguous()
    return _features(
        helpers.rows_together(u), boundary, sharpness.float().contiguous(), 2 * curvature.float().sqrt()
    )
