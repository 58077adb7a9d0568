"""y = relu(x U^T)^2 D^T: the MLP with squared ReLU (So et al., 2021, arXiv 2109.08668) as one operation.

Its arithmetic is two matrix products; the ReLU, the square and their gradient are only memory traffic, four
times as wide as x. On GPUs where Triton has the tensor cores they happen inside the products, and only the
squares are kept for the backward pass. That pays up to `MAX_DIM` channels; beyond, the products' own time
counts, and the vendor's are better: there, and where there are no tensor cores for Triton, a kernel between
them does the rest.
"""

from __future__ import annotations

import torch

from newllm_lib.ops.common.dispatch import Operation, runs_cpu_kernel, runs_triton, runs_triton_dot
from newllm_lib.ops.relu2_mlp import cpu, reference

MAX_DIM = 256  # all channels of some rows of x and of some columns of a weight lie in shared memory together

_implementation = Operation(reference)


@_implementation.register(
    lambda x, up, down: runs_triton_dot(x) and x.dtype == up.dtype == down.dtype and x.shape[-1] <= MAX_DIM
)
def _triton():
    from newllm_lib.ops.relu2_mlp import triton

    return triton


@_implementation.register(lambda *tensors: runs_triton(*tensors) and not torch.compiler.is_compiling())
def _elementwise():
    from newllm_lib.ops.relu2_mlp import elementwise

    return elementwise


@_implementation.register(runs_cpu_kernel)
def _cpu():
    return cpu


def relu2_mlp(x: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """The MLP of each token; under autocast in its dtype, as torch's own matrix products.

    Args:
        x: (..., dim).
        up: (inner, dim).
        down: (dim, inner).

    Returns:
        (..., dim), in the dtype of the products.
    """
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, up, down = x.to(dtype), up.to(dtype), down.to(dtype)
    return _implementation(x, up, down).relu2_mlp(x, up, down)
