"""The cell of the sequential recurrence as one Triton kernel each way; sizes and meanings as in `cell`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from newllm_lib.ops.context_scan.kernels import sigmoid


@triton.jit
def _flag(flags, row, rows, HAS: tl.constexpr, DEFAULT: tl.constexpr):
    """A column of bools for the program's rows: the stored bytes, or DEFAULT."""
    if HAS:
        return tl.load(flags + row, mask=row < rows, other=0) != 0
    return tl.full(row.shape, DEFAULT, tl.int32) != 0


@triton.jit
def _mix(gates, before, row, dims, mask, dim):
    """The gates' sigmoids, delta, and the context before its norm, for rows x dims."""
    base = gates + row * 3 * dim + dims
    delta = tl.load(base, mask=mask, other=0.0).to(tl.float32)
    keep = sigmoid(tl.load(base + dim, mask=mask, other=0.0).to(tl.float32))
    share = sigmoid(tl.load(base + 2 * dim, mask=mask, other=0.0).to(tl.float32))
    return delta, keep, share, keep * before + share * delta


@triton.jit
def _normalise(mixed, mask, dim, eps):
    mean = tl.sum(tl.where(mask, mixed, 0.0), axis=1, keep_dims=True) / dim
    centred = tl.where(mask, mixed - mean, 0.0)
    inverse = tl.rsqrt(tl.sum(centred * centred, axis=1, keep_dims=True) / dim + eps)
    return centred * inverse, inverse


@triton.jit(do_not_specialize=["rows"])
def cell_forward(
    gates, state, next_context, next_start, valid, norm_weight, norm_bias, rows, dim, eps,
    HAS_START: tl.constexpr, HAS_VALID: tl.constexpr, ROWS: tl.constexpr, BLOCK_DIM: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    dims = tl.arange(0, BLOCK_DIM)[None, :]
    mask = (row < rows) & (dims < dim)
    before = tl.load(state + row * dim + dims, mask=mask, other=0.0)
    _, _, _, mixed = _mix(gates, before, row, dims, mask, dim)
    normal, _ = _normalise(mixed, mask, dim, eps)
    scale = tl.load(norm_weight + dims, mask=dims < dim, other=0.0).to(tl.float32)
    shift = tl.load(norm_bias + dims, mask=dims < dim, other=0.0).to(tl.float32)
    new = tl.where(_flag(valid, row, rows, HAS_VALID, 1), normal * scale + shift, before)
    new = tl.where(_flag(next_start, row, rows, HAS_START, 0), 0.0, new)
    tl.store(state + row * dim + dims, new, mask=mask)
    tl.store(next_context + row * dim + dims, new.to(next_context.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows"])
def cell_backward(
    gates, context, grad_state, grad_context, next_start, valid, norm_weight, grad_gates, grad_norm, rows, dim, eps,
    HAS_START: tl.constexpr, HAS_VALID: tl.constexpr, ROWS: tl.constexpr, BLOCK_DIM: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    dims = tl.arange(0, BLOCK_DIM)[None, :]
    mask = (row < rows) & (dims < dim)
    place = row * dim + dims
    total = tl.load(grad_state + place, mask=mask, other=0.0)
    total += tl.load(grad_context + place, mask=mask, other=0.0).to(tl.float32)
    total = tl.where(_flag(next_start, row, rows, HAS_START, 0), 0.0, total)
    counts = _flag(valid, row, rows, HAS_VALID, 1)
    into = tl.where(counts, total, 0.0)
    before = tl.load(context + place, mask=mask, other=0.0).to(tl.float32)
    delta, keep, share, mixed = _mix(gates, before, row, dims, mask, dim)
    normal, inverse = _normalise(mixed, mask, dim, eps)
    scale = tl.load(norm_weight + dims, mask=dims < dim, other=0.0).to(tl.float32)
    scaled = into * scale
    mean = tl.sum(scaled, axis=1, keep_dims=True) / dim
    along = tl.sum(scaled * normal, axis=1, keep_dims=True) / dim
    grad = inverse * (scaled - mean - normal * along)
    base = grad_gates + row * 3 * dim + dims
    dtype = grad_gates.dtype.element_ty
    tl.store(base, (grad * share).to(dtype), mask=mask)
    tl.store(base + dim, (grad * keep * (1.0 - keep) * before).to(dtype), mask=mask)
    tl.store(base + 2 * dim, (grad * share * (1.0 - share) * delta).to(dtype), mask=mask)
    tl.store(grad_state + place, tl.where(counts, grad * keep, total), mask=mask)
    # Every program owns a row of the accumulator and the steps follow one another: no atomics, the same sum every time.
    dims = tl.arange(0, BLOCK_DIM)
    own = grad_norm + tl.program_id(0) * 2 * dim + dims
    to_weight = tl.load(own, mask=dims < dim, other=0.0) + tl.sum(into * normal, axis=0)
    to_bias = tl.load(own + dim, mask=dims < dim, other=0.0) + tl.sum(into, axis=0)
    tl.store(own, to_weight, mask=dims < dim)
    tl.store(own + dim, to_bias, mask=dims < dim)


def _tile(dim: int) -> dict[str, int]:
    block = triton.next_power_of_2(dim)
    return dict(ROWS=max(1, min(16, 1024 // block)), BLOCK_DIM=block, num_warps=4)


def _bytes(flags: torch.Tensor | None) -> torch.Tensor | None:
    return None if flags is None else flags.view(torch.uint8)


def forward(gates, state, next_context, next_start, valid, norm_weight, norm_bias, eps: float) -> None:
    """As `cell.forward`; every tensor contiguous."""
    rows, dim = state.shape
    tile = _tile(dim)
    cell_forward[(triton.cdiv(rows, tile["ROWS"]),)](
        gates, state, next_context, _bytes(next_start), _bytes(valid), norm_weight, norm_bias, rows, dim, eps,
        HAS_START=next_start is not None, HAS_VALID=valid is not None, **tile,
    )  # fmt: skip


def norm_gradients(rows: int, context: int, like: torch.Tensor) -> torch.Tensor:
    """As `cell.norm_gradients`, with one row for each program."""
    programs = triton.cdiv(rows, _tile(context)["ROWS"])
    return torch.zeros(programs, 2, context, dtype=torch.float32, device=like.device)


def backward(
    gates, context, grad_state, grad_context, next_start, valid, norm_weight, norm_bias, eps, grad_gates, grad_norm
) -> None:
    """As `cell.backward`; every tensor contiguous."""
    rows, dim = grad_state.shape
    tile = _tile(dim)
    cell_backward[(triton.cdiv(rows, tile["ROWS"]),)](
        gates, context, grad_state, grad_context, _bytes(next_start), _bytes(valid), norm_weight, grad_gates, grad_norm,
        rows, dim, eps, HAS_START=next_start is not None, HAS_VALID=valid is not None, **tile,
    )  # fmt: skip
