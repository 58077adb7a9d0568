"""Cross-entropy and its gradient for rows of logits in one pass: read once, overwritten by the gradient.

No tensor-core dot, so it runs from sm70 on. A row is held in registers whole, which bounds the vocabulary
(`MAX_VOCABULARY`).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from newllm_lib.ops.common.dispatch import on_device_of_first_argument

MAX_VOCABULARY = 1 << 17


@triton.jit
def _softmax_gradient(logits, labels, losses, vocabulary, stride, IGNORE: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    label = tl.load(labels + row)
    columns = tl.arange(0, BLOCK)
    inside = columns < vocabulary
    place = logits + row * stride + columns
    x = tl.load(place, mask=inside, other=float("-inf")).to(tl.float32)
    highest = tl.max(x, 0)
    scaled = tl.exp(x - highest)
    total = tl.sum(scaled, 0)
    hit = columns == label
    counted = label != IGNORE
    loss = tl.log(total) + highest - tl.sum(tl.where(hit, x, 0.0), 0)
    tl.store(losses + row, tl.where(counted, loss, 0.0))
    gradient = scaled / total - tl.where(hit, 1.0, 0.0)
    tl.store(place, tl.where(counted, gradient, 0.0).to(logits.dtype.element_ty), mask=inside)


@on_device_of_first_argument
def softmax_gradient_(logits: torch.Tensor, labels: torch.Tensor, ignore: int, losses: torch.Tensor) -> None:
    """Overwrite logits (rows, vocabulary) by the gradient of their summed cross-entropy, and fill losses
    (rows,), float32.

    Rows whose label (rows,) is `ignore` get a loss and a gradient of 0.
    """
    rows, vocabulary = logits.shape
    block = triton.next_power_of_2(vocabulary)
    warps = min(32, max(4, block // 512)) if block <= 8192 else 16 if block <= 32768 else 32
    _softmax_gradient[(rows,)](
        logits, labels, losses, vocabulary, logits.stride(0), IGNORE=ignore, BLOCK=block, num_warps=warps
    )
