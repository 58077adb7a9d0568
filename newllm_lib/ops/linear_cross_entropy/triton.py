"""Cross-entropy and its gradient for rows of logits, which the gradient overwrites; and where nothing is
learned, the loss and whether the label is the first of the most probable.

No tensor-core dot, so it runs from sm70 on. A row that registers hold is read once; a longer one in parts,
twice.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from newllm_lib.ops.common.dispatch import on_device_of_first_argument

MAX_VOCABULARY = 1 << 17
WHOLE = 1 << 14  # longest row that is held whole: of 50,257 half lay in local memory, in six times the time
PART = 4096


@triton.jit
def _softmax_gradient(logits, labels, losses, vocabulary, stride, IGNORE: tl.constexpr, BLOCK: tl.constexpr):
    i_r = tl.program_id(0).to(tl.int64)
    b_label = tl.load(labels + i_r)
    o_c = tl.arange(0, BLOCK)
    m_c = o_c < vocabulary
    p_x = logits + i_r * stride + o_c
    b_x = tl.load(p_x, mask=m_c, other=float("-inf")).to(tl.float32)
    b_max = tl.max(b_x, 0)
    b_exp = tl.exp(b_x - b_max)
    b_sum = tl.sum(b_exp, 0)
    m_label = o_c == b_label
    m_row = b_label != IGNORE
    b_loss = tl.log(b_sum) + b_max - tl.sum(tl.where(m_label, b_x, 0.0), 0)
    tl.store(losses + i_r, tl.where(m_row, b_loss, 0.0))
    b_dx = b_exp / b_sum - tl.where(m_label, 1.0, 0.0)
    tl.store(p_x, tl.where(m_row, b_dx, 0.0).to(logits.dtype.element_ty), mask=m_c)


@triton.jit
def _row_scores(logits, labels, losses, hits, vocabulary, stride, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    label = tl.load(labels + row)
    columns = tl.arange(0, BLOCK)
    x = tl.load(logits + row * stride + columns, mask=columns < vocabulary, other=float("-inf")).to(
        tl.float32
    )
    highest = tl.max(x, 0)
    first = tl.min(tl.where(x == highest, columns, BLOCK), 0)
    loss = tl.log(tl.sum(tl.exp(x - highest), 0)) + highest - tl.sum(tl.where(columns == label, x, 0.0), 0)
    tl.store(losses + row, loss)
    tl.store(hits + row, first == label)


@on_device_of_first_argument
def row_scores(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of logits (rows, vocabulary) against labels (rows,): losses in nats, float32, and hits, bool."""
    rows, vocabulary = logits.shape
    losses = torch.empty(rows, device=logits.device, dtype=torch.float32)
    hits = torch.empty(rows, device=logits.device, dtype=torch.bool)
    block, warps = _block_of(vocabulary)
    _row_scores[(rows,)](
        logits, labels, losses, hits, vocabulary, logits.stride(0), BLOCK=block, num_warps=warps
    )
    return losses, hits


def _block_of(vocabulary: int) -> tuple[int, int]:
    """Columns that a program holds of a row, and its warps."""
    block = triton.next_power_of_2(vocabulary)
    return block, min(32, max(4, block // 512)) if block <= 8192 else 16 if block <= 32768 else 32


@triton.jit
def _softmax_gradient_in_parts(
    logits, labels, losses, vocabulary, stride, IGNORE: tl.constexpr, BLOCK: tl.constexpr
):
    i_r = tl.program_id(0).to(tl.int64)
    b_label = tl.load(labels + i_r)
    m_row = b_label != IGNORE
    p_row = logits + i_r * stride
    b_own = tl.load(p_row + tl.where(m_row, b_label, 0)).to(tl.float32)  # before it is overwritten
    o_c = tl.arange(0, BLOCK)
    # a maximum and a sum for each place of the part: the vocabulary is longer than one, so each sees a logit
    b_maxima = tl.full([BLOCK], float("-inf"), tl.float32)
    b_sums = tl.zeros([BLOCK], tl.float32)
    for i_c in range(0, vocabulary, BLOCK):
        b_x = tl.load(p_row + i_c + o_c, mask=i_c + o_c < vocabulary, other=float("-inf")).to(tl.float32)
        b_new = tl.maximum(b_maxima, b_x)
        b_sums = b_sums * tl.exp(b_maxima - b_new) + tl.exp(b_x - b_new)
        b_maxima = b_new
    b_max = tl.max(b_maxima, 0)
    b_sum = tl.sum(b_sums * tl.exp(b_maxima - b_max), 0)
    tl.store(losses + i_r, tl.where(m_row, tl.log(b_sum) + b_max - b_own, 0.0))
    for i_c in range(0, vocabulary, BLOCK):
        m_c = i_c + o_c < vocabulary
        b_x = tl.load(p_row + i_c + o_c, mask=m_c, other=float("-inf")).to(tl.float32)
        b_dx = tl.exp(b_x - b_max) / b_sum - tl.where(i_c + o_c == b_label, 1.0, 0.0)
        tl.store(p_row + i_c + o_c, tl.where(m_row, b_dx, 0.0).to(logits.dtype.element_ty), mask=m_c)


@on_device_of_first_argument
def softmax_gradient_(logits: torch.Tensor, labels: torch.Tensor, ignore: int, losses: torch.Tensor) -> None:
    """Overwrite logits (rows, vocabulary) by the gradient of their summed cross-entropy, and fill losses
    (rows,), float32.

    Rows whose label (rows,) is `ignore` get a loss and a gradient of 0.
    """
    rows, vocabulary = logits.shape
    arguments = logits, labels, losses, vocabulary, logits.stride(0), ignore
    if vocabulary > WHOLE:
        _softmax_gradient_in_parts[(rows,)](*arguments, BLOCK=PART, num_warps=8)
        return
    block, warps = _block_of(vocabulary)
    _softmax_gradient[(rows,)](*arguments, BLOCK=block, num_warps=warps)
