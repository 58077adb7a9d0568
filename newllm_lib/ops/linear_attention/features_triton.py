"""The hyperbolic feature map on a GPU with tensor-core dot in Triton (sm80 on): launches of `feature_kernels`, as operators."""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from newllm_lib.ops.linear_attention import feature_kernels as kernels

_ROWS = 64
_PROGRAMS = 512  # that sum a part of the gradients each


def _constants(u: Tensor, features: int) -> dict:
    """Vectors in half precision are exact in tf32; the boundary's rounding to it is below that of the features."""
    blocks = (max(16, triton.next_power_of_2(x)) for x in (features, u.shape[3]))
    precision = "tf32x3" if u.dtype == torch.float32 else "tf32"
    return dict(zip(("BLOCK_F", "BLOCK_D"), blocks, strict=True), BLOCK_T=_ROWS, PRECISION=precision, num_warps=4, num_stages=1)


@torch.library.custom_op("newllm::horosphere_features", mutates_args=())
def _features(u: Tensor, boundary: Tensor, sharpness: Tensor, root: Tensor) -> Tensor:
    (batch, heads, time, dim), features = u.shape, boundary.shape[1]
    out = u.new_empty(batch, heads, time, features)
    with torch.cuda.device_of(u):
        kernels.features_forward[(triton.cdiv(time, _ROWS), batch * heads)](
            u, boundary, sharpness, root, out, heads, time, features, dim, *u.stride()[:3], **_constants(u, features)
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
    dout = dout if dout.stride(3) == 1 else dout.contiguous()
    parts = max(1, min(_PROGRAMS // heads, batch * triton.cdiv(time, _ROWS)))
    du = u.new_empty(u.shape)
    dboundary = boundary.new_empty(heads, parts, features, dim)
    dsharpness, droot = boundary.new_empty(2, heads, parts)
    with torch.cuda.device_of(u):
        kernels.features_backward[(parts, heads)](
            u, boundary, sharpness, root, dout, du, dboundary, dsharpness, droot, batch, heads, time, features, dim, parts,
            *(stride for x in (u, dout, du) for stride in x.stride()[:3]), **_constants(u, features),
        )  # fmt: skip
    return du, dboundary.sum(1), dsharpness.sum(1), droot.sum(1)


@_features_backward.register_fake
def _(u, boundary, sharpness, root, dout):
    return u.new_empty(u.shape), torch.empty_like(boundary), torch.empty_like(sharpness), torch.empty_like(root)


def _gradient(ctx, dout):
    return _features_backward(*ctx.saved_tensors, dout)


_features.register_autograd(_gradient, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs))


def horosphere_features(u: Tensor, directions: Tensor, sharpness: Tensor, curvature: Tensor) -> Tensor:
    """As `features.horosphere_features`, in u's dtype."""
    boundary = F.normalize(directions.float(), dim=-1).contiguous()
    u = u if u.stride(3) == 1 else u.contiguous()
    return _features(u, boundary, sharpness.float().contiguous(), 2 * curvature.float().sqrt())
