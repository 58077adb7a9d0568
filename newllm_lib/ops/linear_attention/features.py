"""The hyperbolic feature map: to which points of the boundary does a point of hyperbolic space lean?

A vector u is the point at distance 2|u| from the origin in u's direction, as in `ops.hyperbolic_attention`.
In Klein's model of the ball of curvature -c that is κ = tanh(2√c|u|) u/|u|. For a point ω of the boundary the
Busemann function, the signed distance to the horosphere that touches ω and runs through the origin, is log((1
- κ·ω)/√(1 - |κ|²))/√c. With p_ω = e^{-Busemann √c},

    φ_ω(u) = p_ω^s / Σ_ω' p_ω'^s = softmax_ω(-s log(1 - κ·ω)).

Why these: averaged over all ω, p_ω(x)^{(n-1)/2} p_ω(y)^{(n-1)/2} is the spherical function of the distance of
x and y, which falls with it like e^{-(n-1)d/2} (Helgason, Groups and Geometric Analysis, 1984). So a product
of features is a positive kernel that sees hyperbolic distance, with no square of time anywhere. Here the ω
are learned, s too, and dividing by the sum keeps the numbers between 0 and 1; that gives up the exact
equality and keeps what it is for: near points have near features.
"""

from __future__ import annotations

import torch

from newllm_lib.ops.common.dispatch import Operation, runs_triton_dot
from newllm_lib.ops.linear_attention import reference, sizes

_implementation = Operation(reference)


@_implementation.register(
    lambda u, directions: (
        runs_triton_dot(u, float32=True)
        and sizes.features_fit(directions.shape[1], u.shape[3], u.dtype, u.device)
    )
)
def _triton():
    from newllm_lib.ops.linear_attention import triton

    return triton


def horosphere_features(
    u: torch.Tensor,
    directions: torch.Tensor,
    sharpness: torch.Tensor,
    curvature: torch.Tensor,
    backend: str = "auto",
) -> torch.Tensor:
    """φ of every vector.

    Args:
        u: (batch, heads, time, dim).
        directions: (heads, features, dim), of any length but 0: the boundary points.
        sharpness: (heads,), above 0: s.
        curvature: (heads,), above 0: c.
        backend: "triton", "reference" (plain torch), or "auto": triton where Triton has a tensor-core dot and
            the sizes fit the GPU, else plain torch.

    Returns:
        (batch, heads, time, features), above 0, summing to 1: by triton in u's dtype, else in float32
        (float64 for float64).
    """
    return _implementation.named(backend, u, directions).horosphere_features(
        u, directions, sharpness, curvature
    )
