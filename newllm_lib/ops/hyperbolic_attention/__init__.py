"""Causal softmax attention by distances in the Poincaré ball, exponential map of q and k included."""

from __future__ import annotations

import torch

from newllm_lib.ops.hyperbolic_attention import operator, reference

BACKENDS = ("auto", "triton", "chunked", "reference")


def hyperbolic_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    beta: torch.Tensor,
    curvature: torch.Tensor,
    *,
    window: int | None = None,
    doc_starts: torch.Tensor | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """out_i = Σ_j softmax_j(-β d_c(exp_0(q_i), exp_0(k_j))) v_j over the keys j that query i sees.

    d_c is the exact distance of the Poincaré ball of curvature -c, exp_0(u) = tanh(√c|u|) u / (√c|u|) its
    exponential map at the origin. A query sees itself and what lies before it in its document, in a window at
    most the last `window`.

    Args:
        q: (batch, heads, queries, dim).
        k: (batch, heads, keys, dim). The queries are those of the last positions (all, or, with keys from a
            cache, the new ones).
        v: as k. Computed in its dtype.
        beta: (heads,), above 0.
        curvature: (heads,), above 0.
        window: how many positions a query sees, itself included; None for all.
        doc_starts: (batch, keys) bool, True where a document starts. Padding on the left is a document of its
            own if the first token behind it is a start.
        backend: "triton" (tiles of scores in registers), "chunked" (plain torch, a chunk of the queries at a
            time), "reference" (plain torch, all scores at once), or "auto": triton where Triton has a
            tensor-core dot, else chunked.

    Returns:
        (batch, heads, queries, dim) in v's dtype. Gradients for q, k, v, beta and curvature.

    Raises:
        ValueError: the sizes do not fit.
    """
    _check(q, k, v, beta, curvature, window, doc_starts, backend)
    arguments = q.to(v.dtype), k.to(v.dtype), v, beta, curvature, window, doc_starts
    if backend != "reference":
        return operator.hyperbolic_attention(*arguments, backend)
    return reference.hyperbolic_attention(*arguments)


def _check(q, k, v, beta, curvature, window, doc_starts, backend) -> None:
    if (
        k.shape != v.shape
        or q.shape[:2] != k.shape[:2]
        or q.shape[3:] != k.shape[3:]
        or q.shape[2] > k.shape[2]
    ):
        raise ValueError(
            f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)} do not fit: see the sizes above"
        )
    if beta.shape != q.shape[1:2] or curvature.shape != q.shape[1:2]:
        raise ValueError(
            f"beta {tuple(beta.shape)} and curvature {tuple(curvature.shape)} must be ({q.shape[1]},)"
        )
    if window is not None and window < 1:
        raise ValueError(f"window={window}: a query sees at least itself, so give 1 or more, or None for all")
    if doc_starts is not None and doc_starts.shape != (k.shape[0], k.shape[2]):
        raise ValueError(
            f"doc_starts {tuple(doc_starts.shape)} must be (batch, keys) = {(k.shape[0], k.shape[2])}"
        )
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r} is not known: use one of {', '.join(BACKENDS)}")
