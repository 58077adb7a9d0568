"""The context scan on a GPU: Triton kernels behind a torch custom operator, one node for torch.compile."""

from __future__ import annotations

import torch

from newllm_lib.ops.context_scan import launch


@torch.library.custom_op("newllm::context_scan", mutates_args=())
def _scan(a: torch.Tensor, b: torch.Tensor, initial: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    return launch.forward(a, b, None, None, None, initial, gated=False)


@_scan.register_fake
def _(a, b, initial):
    return b.new_empty(b.shape), b.new_empty(b.shape[0], b.shape[2], dtype=torch.float32)


@torch.library.custom_op("newllm::context_scan_backward", mutates_args=())
def _scan_backward(
    a: torch.Tensor,
    initial: torch.Tensor | None,
    c: torch.Tensor,
    dc: torch.Tensor | None,
    dfinal: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    da, db = a.new_empty(a.shape), c.new_empty(c.shape)
    _, dinitial = launch.backward(a, c, None, None, None, initial, c, dc, dfinal, da, db, gated=False)
    return da, db, dinitial


@_scan_backward.register_fake
def _(a, initial, c, dc, dfinal):
    return a.new_empty(a.shape), c.new_empty(c.shape), c.new_empty(c.shape[0], c.shape[2], dtype=torch.float32)


def _keep_for_backward(ctx, inputs, output):
    a, _, initial = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(a, initial, output[0])


def _backward(ctx, dc, dfinal):
    if dc is None and dfinal is None:
        return None, None, None
    a, initial, c = ctx.saved_tensors
    da, db, dinitial = _scan_backward(a, initial, c, dc, dfinal)
    return da, db, None if initial is None else dinitial


_scan.register_autograd(_backward, setup_context=_keep_for_backward)


def context_scan(
    a: torch.Tensor, b: torch.Tensor, initial_state: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `reference.context_scan`, for float32, bfloat16 and float16: a, b (batch, time, dim) with any strides."""
    return _scan(a, b, None if initial_state is None else initial_state.float().contiguous())
