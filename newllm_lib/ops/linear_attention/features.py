"""The hyperbolic feature map: to which points of the boundary does a point of hyperbolic space lean?

A vector u is the point at distance 2|u| from the origin in u's direction, as in `ops.hyperbolic_attention`. In Klein's model of
the ball of curvature -c that is κ = tanh(2√c|u|) u/|u|. For a point ω of the boundary the Busemann function, the signed distance
to the horosphere that touches ω and runs through the origin, is log((1 - κ·ω)/√(1 - |κ|²))/√c. With p_ω = e^{-Busemann √c},

    φ_ω(u) = p_ω^s / Σ_ω' p_ω'^s = softmax_ω(-s log(1 - κ·ω)).

Why these: averaged over all ω, p_ω(x)^{(n-1)/2} p_ω(y)^{(n-1)/2} is the spherical function of the distance of x and y, which
falls with it like e^{-(n-1)d/2} (Helgason, Groups and Geometric Analysis, 1984). So a product of features is a positive kernel
that sees hyperbolic distance, with no square of time anywhere. Here the ω are learned, s too, and dividing by the sum keeps the
numbers between 0 and 1; that gives up the exact equality and keeps what it is for: near points have near features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from newllm_lib.ops.common.dispatch import runs_triton_dot
from newllm_lib.ops.linear_attention import sizes


def horosphere_features(
    u: torch.Tensor, directions: torch.Tensor, sharpness: torch.Tensor, curvature: torch.Tensor, backend: str = "auto"
) -> torch.Tensor:
    """φ of every vector.

    Args:
        u: (batch, heads, time, dim). directions: (heads, features, dim), of any length but 0: the boundary points.
        sharpness, curvature: (heads,), above 0: s and c.
        backend: "triton", "reference" (plain torch), or "auto": triton where Triton has a tensor-core dot and the sizes fit the
            GPU, else plain torch.
    Returns:
        (batch, heads, time, features), above 0, summing to 1: by triton in u's dtype, else in float32 (float64 for float64).
    """
    fits = runs_triton_dot(u, float32=True) and sizes.features_fit(directions.shape[1], u.shape[3], u.dtype, u.device)
    if backend == "triton" or (backend == "auto" and fits):
        from newllm_lib.ops.linear_attention import features_triton

        return features_triton.horosphere_features(u, directions, sharpness, curvature)
    return log_horospheres(u, directions, curvature).mul(-sharpness[:, None, None]).softmax(-1)


def log_horospheres(u: torch.Tensor, directions: torch.Tensor, curvature: torch.Tensor) -> torch.Tensor:
    """log(1 - κ·ω), (batch, heads, time, features)."""
    compute = torch.promote_types(u.dtype, torch.float32)
    with torch.autocast(u.device.type, enabled=False):  # 1 - κ·ω has no digits to lose near the boundary
        u, boundary = u.to(compute), F.normalize(directions.to(compute), dim=-1)
        root = 2 * curvature.to(compute).sqrt()[:, None, None]
        norm = torch.linalg.vector_norm(u, dim=-1, keepdim=True)
        stretch = torch.where(norm > 1e-6, torch.tanh(root * norm) / norm.clamp_min(1e-6), root)
        return torch.log1p(-((stretch * u) @ boundary.mT).clamp(max=1 - 2.0**-20))
