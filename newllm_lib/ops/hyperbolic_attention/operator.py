"""Hyperbolic attention's custom operators, which torch.compile leaves whole: kernels or plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from newllm_lib.ops.common.dispatch import Operation, runs_triton_dot
from newllm_lib.ops.hyperbolic_attention import chunked
from newllm_lib.ops.hyperbolic_attention.reference import padded

_implementation = Operation(chunked)


@_implementation.register(lambda q: runs_triton_dot(q, float32=True))
def _triton():
    from newllm_lib.ops.hyperbolic_attention import triton

    return triton


@torch.library.custom_op("newllm::hyperbolic_attention", mutates_args=())
def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    curvature: Tensor,
    doc_starts: Tensor | None,
    window: int | None,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return _implementation.named(backend, q).forward(q, k, v, beta, curvature, window, doc_starts)


@_attention.register_fake
def _(q, k, v, beta, curvature, doc_starts, window, backend):
    dtype = torch.promote_types(q.dtype, torch.float32)
    numbers = [q.new_empty(3, *x.shape[:2], padded(x.shape[2]), dtype=dtype) for x in (q, k)]
    return torch.empty_like(q), *numbers


@torch.library.custom_op("newllm::hyperbolic_attention_backward", mutates_args=())
def _attention_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    curvature: Tensor,
    doc_starts: Tensor | None,
    window: int | None,
    backend: str,
    out: Tensor,
    q_numbers: Tensor,
    k_numbers: Tensor,
    dout: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    implementation = _implementation.named(backend, q)
    inputs, saved = (q, k, v, beta, curvature), (out, q_numbers, k_numbers)
    return implementation.backward(inputs, window, doc_starts, saved, dout)


@_attention_backward.register_fake
def _(*arguments):
    return tuple(torch.empty_like(x) for x in arguments[:5])


def _keep(ctx, inputs, output):
    *tensors, ctx.window, ctx.backend = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, *output)


def _gradient(ctx, dout, *_):
    """The numbers' own gradients are left out: nobody but the backward pass gets to see the numbers."""
    if dout is None:
        return (None,) * 8
    *inputs, out, q_numbers, k_numbers = ctx.saved_tensors
    gradients = _attention_backward(*inputs, ctx.window, ctx.backend, out, q_numbers, k_numbers, dout)
    return *gradients, None, None, None


_attention.register_autograd(_gradient, setup_context=_keep)


def hyperbolic_attention(q, k, v, beta, curvature, window=None, doc_starts=None, backend="auto"):
    """As `hyperbolic_attention.hyperbolic_attention`."""
    return _attention(q, k, v, beta.contiguous(), curvature.contiguous(), doc_starts, window, backend)[0]
