"""Causal linear attention with decay: in linear time and with a state of fixed size."""

from __future__ import annotations

import torch

from newllm_lib.ops.common.dispatch import Operation, runs_triton_dot
from newllm_lib.ops.linear_attention import chunked, reference, sizes
from newllm_lib.ops.linear_attention.features import horosphere_features

BACKENDS = ("auto", "triton", "chunked", "reference")

_implementation = Operation(chunked)


@_implementation.register(lambda q, v: v.shape[2] == 1)  # one decoding step: the recurrence itself
def _reference():
    return reference


@_implementation.register(
    lambda q, v: (
        runs_triton_dot(v, float32=True) and sizes.chunk(q.shape[3], v.shape[3], v.dtype, v.device) > 0
    )
)
def _triton():
    from newllm_lib.ops.linear_attention import triton

    return triton


def linear_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    log_decay: torch.Tensor,
    *,
    doc_starts: torch.Tensor | None = None,
    state: torch.Tensor | None = None,
    backend: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """out_i = Σ_j w_ij v_j / Σ_j w_ij over the j up to i in i's document, w_ij = (q_i · k_j) Π_{j<t≤i}
    e^{log_decay_t}.

    Args:
        q: (batch, heads, time, features), not negative: then out is a mean of values, as in softmax
            attention.
        k: as q.
        v: (batch, heads, time, dim). Products are computed in v's dtype, sums in float32 (float64 for
            float64).
        log_decay: (batch, heads, time), at most 0: how much of the past each token leaves.
        doc_starts: (batch, time) bool, True where a document starts, which sees nothing before it.
        state: (batch, heads, dim + 1, features) from an earlier call: the text goes on from there. None:
            nothing was before.
        backend: "triton" (a chunk's weights in registers), "chunked" (plain torch, time x chunk numbers),
            "reference" (plain torch, time x time), or "auto": triton where Triton has a tensor-core dot and
            the sizes fit the GPU, else chunked.

    Returns:
        out (batch, heads, time, dim) in v's dtype, and the new state in float32. A token with k 0 and
        log_decay 0 leaves the state as it was, so padding can be made invisible. Gradients for q, k, v,
        log_decay and state.

    Raises:
        ValueError: the sizes do not fit.
    """
    _check(q, k, v, log_decay, doc_starts, state, backend)
    if state is None:
        compute = torch.promote_types(v.dtype, torch.float32)
        state = v.new_zeros(*v.shape[:2], v.shape[3] + 1, q.shape[3], dtype=compute)
    arguments = q.to(v.dtype), k.to(v.dtype), v, log_decay, doc_starts, state
    return _implementation.named(backend, q, v).linear_attention(*arguments)


def _check(q, k, v, log_decay, doc_starts, state, backend) -> None:
    if q.shape != k.shape or q.shape[:3] != v.shape[:3] or log_decay.shape != q.shape[:3]:
        shapes = ", ".join(str(tuple(x.shape)) for x in (q, k, v, log_decay))
        raise ValueError(f"q, k, v, log_decay of the shapes {shapes} do not fit: see the sizes above")
    if doc_starts is not None and doc_starts.shape != (q.shape[0], q.shape[2]):
        raise ValueError(
            f"doc_starts {tuple(doc_starts.shape)} must be (batch, time) = {(q.shape[0], q.shape[2])}"
        )
    if state is not None and state.shape != (*v.shape[:2], v.shape[3] + 1, q.shape[3]):
        raise ValueError(f"state {tuple(state.shape)} must be (batch, heads, dim + 1, features)")
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r} is not known: use one of {', '.join(BACKENDS)}")


__all__ = ["horosphere_features", "linear_attention"]
