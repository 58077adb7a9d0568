"""Kernels that each have one fault, for `kernel_memory` to find."""

import triton
import triton.language as tl


@triton.jit
def copy(x, out, count, reach, BLOCK: tl.constexpr):
    """Sound where `reach` is `count`."""
    o_x = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + o_x, tl.load(x + o_x, mask=o_x < reach, other=0.0), mask=o_x < count)


@triton.jit
def store_beyond(out, count, BLOCK: tl.constexpr):
    o_x = tl.arange(0, BLOCK)
    tl.store(out + o_x, o_x.to(tl.float32), mask=o_x <= count)


@triton.jit
def all_store(out, BLOCK: tl.constexpr):
    """Every program stores to the same places."""
    tl.store(out + tl.arange(0, BLOCK), tl.zeros((BLOCK,), tl.float32))


@triton.jit
def all_add(out, BLOCK: tl.constexpr):
    """The same by atomics: sound."""
    tl.atomic_add(out + tl.arange(0, BLOCK), tl.full((BLOCK,), 1.0, tl.float32))


@triton.jit
def shift(x, count, BLOCK: tl.constexpr):
    """In place: a program reads what the next one stores."""
    o_x = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(x + o_x, tl.load(x + o_x + 1, mask=o_x + 1 < count, other=0.0), mask=o_x < count)


@triton.jit
def one_place(out, BLOCK: tl.constexpr):
    tl.store(out + tl.arange(0, BLOCK) // 2, tl.arange(0, BLOCK).to(tl.float32))


@triton.jit
def there_and_back(out, BLOCK: tl.constexpr, BARRIER: tl.constexpr):
    """Sound with the barrier."""
    o_x = tl.arange(0, BLOCK)
    tl.store(out + o_x, o_x.to(tl.float32))
    if BARRIER:
        tl.debug_barrier()
    tl.store(out + BLOCK + o_x, tl.load(out + BLOCK - 1 - o_x))
