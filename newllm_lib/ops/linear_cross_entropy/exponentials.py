"""Head and cross-entropy on tensor cores: the product gives exponentials, no pass over them follows.

With l the logits of a row, y its label and e_j = exp(l_j - l_y) for j != y, the row's loss is log(1 + S), S
the sum of the e_j, and the gradient by its logits is e_j / (1 + S), and at the label -S / (1 + S). So the
product's epilogue can write e at once, before S is known: the factor 1 / (1 + S) of the row goes to the other
side of the two products that read e. Nothing is lost where a label is nearly certain, because 1 - p is never
formed as a difference.

The exponent is cut off at 2^100: a loss saturates at 69 nats, where any training is lost already; NaN passes
through. bfloat16 holds such numbers, float16 does not.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from newllm_lib.ops.common.dispatch import on_device_of_first_argument, shared_memory
from newllm_lib.ops.common.triton_helpers import exp2
from newllm_lib.ops.linear_cross_entropy.reference import aligned_rows

# Rows, words, warps, with all channels of both in shared memory: the first that fits is taken. The first was
# measured on an H100; the others are for GPUs with less shared memory.
_TILES = [(128, 64, 8), (64, 64, 4), (64, 32, 4), (32, 32, 4), (16, 16, 4)]
_STAGES = 3
_ROWS = 16  # rows of a program in the small kernels


@triton.jit
def exponentials(
    hidden,
    head,
    labels,
    e,
    sums,
    rows,
    words,
    dim,
    e_row,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_WORDS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    EVEN: tl.constexpr,
    STAGES: tl.constexpr,
):
    """e (rows, words) and S (rows,) as above, 0 at the label; hidden (rows, dim) and head (words, dim)
    without gaps, rows of e `e_row` apart."""
    o_first = tl.program_id(0).to(tl.int64) * BLOCK_ROWS
    o_r, o_d = tl.arange(0, BLOCK_ROWS), tl.arange(0, BLOCK_DIM)
    m_r, m_d = o_r < rows - o_first, o_d < dim
    m_x = m_r[:, None] & m_d[None, :]
    b_x = tl.load(hidden + o_first * dim + (o_r[:, None] * dim + o_d[None, :]), mask=m_x, other=0.0)
    b_label = tl.load(labels + o_first + o_r, mask=m_r, other=-1).to(tl.int32)
    b_known = tl.load(
        head + tl.maximum(b_label, 0)[:, None] * dim + o_d[None, :], mask=m_d[None, :], other=0.0
    )
    LOG2_E: tl.constexpr = 1.4426950408889634
    b_at_label = tl.sum(b_x.to(tl.float32) * b_known.to(tl.float32), 1) * LOG2_E
    b_sum = tl.zeros((BLOCK_ROWS,), tl.float32)
    for start in tl.range(0, words, BLOCK_WORDS, num_stages=STAGES):
        o_w = start + tl.arange(0, BLOCK_WORDS)
        m_w = o_w < words
        # EVEN: dim and the words fill their blocks; the masks would be a good part of the work on an element.
        if EVEN:
            b_w = tl.load(head + o_d[:, None] + o_w[None, :] * dim)
        else:
            b_w = tl.load(
                head + o_d[:, None] + o_w[None, :] * dim, mask=m_d[:, None] & m_w[None, :], other=0.0
            )
        b_exponent = tl.dot(b_x, b_w, input_precision="ieee") * LOG2_E - b_at_label[:, None]
        b_e = exp2(tl.minimum(b_exponent, 100.0, propagate_nan=tl.PropagateNan.ALL))
        b_e = tl.where(o_w[None, :] == b_label[:, None], 0.0, b_e)
        m_e = m_r[:, None]
        if not EVEN:
            b_e = tl.where(m_w[None, :], b_e, 0.0)
            m_e = m_e & m_w[None, :]
        b_sum += tl.sum(b_e, 1)
        tl.store(
            e + o_first * e_row + (o_r[:, None] * e_row + o_w[None, :]),
            b_e.to(e.dtype.element_ty),
            mask=m_e,
        )
    tl.store(sums + o_first + o_r, b_sum, mask=m_r)


@triton.jit
def finish(
    hidden,
    labels,
    sums,
    e,
    losses,
    factors,
    scaled,
    rows,
    dim,
    e_row,
    IGNORE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    """losses = log(1 + S), factors = 1 / (1 + S), or 0, 0; e at the label = -S; scaled = factor * x."""
    o_r = (tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)).to(tl.int64)
    o_d = tl.arange(0, BLOCK_DIM)
    m_r = o_r < rows
    b_label, b_sum = (
        tl.load(labels + o_r, mask=m_r, other=IGNORE),
        tl.load(sums + o_r, mask=m_r, other=0.0),
    )
    m_label = b_label != IGNORE
    # log(1 + S) loses S below 1e-7 of it; there it is S itself.
    b_loss = tl.where(b_sum < 1e-4, b_sum - 0.5 * b_sum * b_sum, tl.log(1.0 + b_sum))
    b_factor = tl.where(m_label, 1.0 / (1.0 + b_sum), 0.0)
    tl.store(losses + o_r, tl.where(m_label, b_loss, 0.0), mask=m_r)
    tl.store(factors + o_r, b_factor, mask=m_r)
    tl.store(e + o_r * e_row + b_label, (-b_sum).to(e.dtype.element_ty), mask=m_r & m_label)
    m_x = m_r[:, None] & (o_d < dim)[None, :]
    b_x = tl.load(hidden + o_r[:, None] * dim + o_d[None, :], mask=m_x, other=0.0).to(tl.float32)
    tl.store(
        scaled + o_r[:, None] * dim + o_d[None, :],
        (b_x * b_factor[:, None]).to(scaled.dtype.element_ty),
        mask=m_x,
    )


def _tile(device: torch.device, padded: int) -> tuple[int, int, int]:
    limit = shared_memory(device)
    fitting = (t for t in _TILES if 2 * padded * (t[0] + _STAGES * t[1]) + 2 * t[0] * t[1] <= limit)
    return next(fitting, _TILES[-1])


@on_device_of_first_argument
def softmax_factors(
    hidden: Tensor, head: Tensor, labels: Tensor, ignore: int, losses: Tensor, factors: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradient of the summed cross-entropy by the logits in two factors: factors[:, None] * e.

    Args:
        hidden: (rows, dim) bfloat16, dim at most 256.
        head: (words, dim) bfloat16.
        labels: (rows,), `ignore`: not predicted.
        losses: (rows,) float32, filled.
        factors: (rows,) float32, filled.

    Returns:
        e (rows, words) bfloat16; factors[:, None] * hidden (rows, dim) bfloat16.
    """
    hidden, head, (rows, dim), words = hidden.contiguous(), head.contiguous(), hidden.shape, head.shape[0]
    e = aligned_rows(hidden, words)
    sums, scaled = torch.empty_like(losses), torch.empty_like(hidden)
    padded = max(16, triton.next_power_of_2(dim))
    block_rows, block_words, warps = _tile(hidden.device, padded)
    exponentials[(triton.cdiv(rows, block_rows),)](
        hidden,
        head,
        labels,
        e,
        sums,
        rows,
        words,
        dim,
        e.stride(0),
        BLOCK_ROWS=block_rows,
        BLOCK_WORDS=block_words,
        BLOCK_DIM=padded,
        EVEN=dim == padded and words % block_words == 0,
        STAGES=_STAGES,
        num_warps=warps,
    )
    finish[(triton.cdiv(rows, _ROWS),)](
        hidden,
        labels,
        sums,
        e,
        losses,
        factors,
        scaled,
        rows,
        dim,
        e.stride(0),
        IGNORE=ignore,
        BLOCK_ROWS=_ROWS,
        BLOCK_DIM=padded,
    )
    return e, scaled


@triton.jit
def scale_rows(x, factors, scale, out, rows, dim, BLOCK_ROWS: tl.constexpr, BLOCK_DIM: tl.constexpr):
    """out = x * factors[:, None] * scale; x, out (rows, dim)."""
    o_r = (tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)).to(tl.int64)
    o_d = tl.arange(0, BLOCK_DIM)
    b_factor = tl.load(factors + o_r, mask=o_r < rows, other=0.0) * tl.load(scale).to(tl.float32)
    m_x = (o_r < rows)[:, None] & (o_d < dim)[None, :]
    o_x = o_r[:, None] * dim + o_d[None, :]
    b_x = tl.load(x + o_x, mask=m_x, other=0.0).to(tl.float32) * b_factor[:, None]
    tl.store(out + o_x, b_x.to(out.dtype.element_ty), mask=m_x)


@torch.library.custom_op("newllm::scaled_rows", mutates_args=())
@on_device_of_first_argument
def scaled_rows(x: Tensor, factors: Tensor, scale: Tensor) -> Tensor:
    """x (rows, dim) without gaps times factors (rows,) times scale (), both float32."""
    out = torch.empty_like(x)
    block = max(16, triton.next_power_of_2(x.shape[1]))
    scale_rows[(triton.cdiv(x.shape[0], _ROWS),)](
        x, factors, scale, out, *x.shape, BLOCK_ROWS=_ROWS, BLOCK_DIM=block
    )
    return out


@scaled_rows.register_fake
def _(x, factors, scale):
    return torch.empty_like(x)
