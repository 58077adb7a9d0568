"""Compile every kernel for a GPU that need not be there: `python compiled_kernels.py 75`. Prints one line a
kernel.

Triton's compiler needs no GPU, only to be told of one. Every launch becomes a compilation, so the results are
garbage.
"""

import itertools
import re
import sys

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver, jit

from newllm_lib.ops.add_norm import triton as stream
from newllm_lib.ops.embedding import triton as embedding
from newllm_lib.ops.gated_scan import triton as gated
from newllm_lib.ops.gradient_norms import triton as norms
from newllm_lib.ops.hyperbolic_attention import triton as attention
from newllm_lib.ops.linear_attention import sizes, triton as linear
from newllm_lib.ops.linear_cross_entropy import exponentials, triton as softmax
from newllm_lib.ops.relu2_mlp import elementwise, triton as mlp
from newllm_lib.ops.short_conv import triton as conv
from newllm_lib.ops.stochastic_rounding import AdamStep, RoundedStep, new_momentum, triton as rounded
from newllm_lib.ops.swiglu import triton as gates

CAPABILITY = int(sys.argv[1])
SHARED_MEMORY = {75: 65_536, 80: 166_912, 89: 101_376, 90: 232_448}  # bytes that one program may have
# Launched only where Triton has the tensor cores.
WITH_DOT = {"product", "exponentials", "forward", "backward_queries", "backward_keys"}
WITH_DOT |= {"collect", "read", "collect_gradients", "gradients", "features_forward", "features_backward"}


class NoDriver:
    """What the compiler asks a driver."""

    def get_current_target(self):
        return GPUTarget("cuda", CAPABILITY, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device=0):
        return 0

    def get_active_torch_device(self):
        return torch.device("cpu")


def compile_instead(kernel, grid):
    def compile_it(*arguments, **constants):
        compiled = kernel.warmup(*arguments, grid=grid, **constants)
        name = kernel.fn.__name__
        uses_dot = bool(re.search(r"\b(wg)?mma\b", compiled.asm["ptx"]))
        assert uses_dot == (name in WITH_DOT), f"{name}: tensor-core dot {uses_dot}"
        assert compiled.metadata.shared <= SHARED_MEMORY[CAPABILITY], (
            f"{name} needs {compiled.metadata.shared} bytes"
        )
        print(name, len(compiled.asm["cubin"]))

    return compile_it


def run_everything(dtype, batch=2, time=64, dim=64):
    def normal(*size, dtype=dtype):
        return torch.randn(*size, dtype=dtype, requires_grad=True)

    def float32(*size):
        return normal(*size, dtype=torch.float32)

    doc_starts = torch.zeros(batch, time, dtype=torch.bool)
    for chunks in (1, 4):
        gated.count_chunks = lambda programs, steps, device, chunks=chunks: chunks if steps == time else 1
        y, c, final = gated.gated_scan(
            normal(batch, time, 3 * dim),
            float32(dim),
            float32(dim),
            doc_starts,
            doc_starts,
            float32(batch, dim),
        )
        (y * 2).sum().backward()
    inputs = normal(batch, time, dim), normal(batch, time, dim), float32(dim)
    r, n = stream.add_norm(*inputs, 1e-6)
    (r * n).sum().backward()
    r, u = stream.add_norm_conv(*inputs, float32(dim, 4), doc_starts, float32(batch, 3, dim), 1e-6)
    (r * u).sum().backward()
    stream.last_rows(inputs[0], inputs[2], 4, doc_starts, None, 1e-6)
    (
        conv.short_conv(normal(batch, time, dim), float32(dim, 4), doc_starts, float32(batch, 3, dim)) * 2
    ).sum().backward()
    state = torch.zeros(batch, 4 * dim)
    conv.short_conv_step(
        normal(batch, dim), float32(dim, 4), doc_starts[:, 0], state[:, dim:], torch.empty(batch, 3 * dim)
    )
    new = torch.empty(batch, dim)
    gated.gated_scan_step(
        normal(batch, 3 * dim), float32(dim), float32(dim), doc_starts[:, 0], state[:, :dim], new
    )
    weight, one = (
        torch.zeros(dim, time, dtype=dtype),
        torch.ones(1),
    )
    how = RoundedStep(rate=1e-3, decay=0.0, beta=0.9, correction=1.0, seed=7)
    factors = torch.ones(dim), torch.ones(time)
    for bits in (0, 4, 8, 32):
        rounded.rounded_step_(weight, weight, new_momentum(weight, bits), factors, one, how, bits)
    rounded.rounded_step_(weight, weight, (), None, one, how, bits=0)
    rounded.adam_step_(
        weight,
        weight,
        factors[0],
        factors[0],
        one,
        AdamStep(0.1, decay=0.0, betas=(0.9, 0.9), step=1, seed=7),
    )
    sums = norms.squares(weight)
    norms.clip(factors[0], 0, one, 1.0)
    norms.clip(factors[0], 0, one, 1.0, one, factors[0].clone())
    norms.limited(weight, norms.second_moment(sums, *factors, one, 0.1, 0.5), one)
    total, normed = stream.add_norm(normal(batch, time, dim), normal(batch, time, dim), float32(dim), 1e-6)
    gated_sum = gates.mix(
        gates.swiglu(normal(batch, time, 2 * dim)), gates.group_gate(total, normal(batch, time, 4)), normed
    )
    (gated_sum * 2).sum().backward()
    (
        embedding.token_embedding(torch.zeros(batch, time, dtype=torch.long), float32(time, dim), dtype) * 2
    ).sum().backward()
    elementwise.relu2_mlp(normal(batch, dim), normal(time, dim), normal(dim, time)).sum().backward()
    for words in (4096, 50_257):
        logits = torch.empty(batch, words, dtype=dtype)
        softmax.softmax_gradient_(logits, torch.zeros(batch, dtype=torch.long), -100, torch.empty(batch))
        softmax.row_scores(logits, torch.zeros(batch, dtype=torch.long))


def run_with_dot(rows=300, dim=256, inner=1024, words=8192):
    def normal(*size):
        return torch.randn(*size, dtype=torch.bfloat16, requires_grad=True)

    for module in (exponentials, mlp, attention):
        module.shared_memory = lambda device: SHARED_MEMORY[CAPABILITY]
    (mlp.relu2_mlp(normal(rows, dim), normal(inner, dim), normal(dim, inner)) * 2).sum().backward()
    losses, factors = torch.empty(2, rows)
    labels = torch.zeros(rows, dtype=torch.long)
    exponentials.scaled_rows(normal(rows, dim).detach(), losses, torch.ones(()))
    exponentials.softmax_factors(
        normal(rows, dim).detach(), normal(words, dim).detach(), labels, -100, losses, factors
    )


def attend(dtype, head_size):
    q, k, v = (torch.randn(1, 2, 64, head_size, dtype=dtype) for _ in "qkv")
    inputs = q, k, v, torch.ones(2), torch.ones(2)
    seen = 20, torch.zeros(1, 64, dtype=torch.bool)
    saved = attention.forward(*inputs, *seen)
    attention.backward(inputs, *seen, saved, saved[0])
    turn = torch.ones(64, head_size // 2), torch.ones(64, head_size // 2)
    attention._turn_(torch.zeros(1, 64, 6 * head_size, dtype=dtype), *turn, 2, 1.0, 1)


def attend_linearly(dtype, features, head_size):
    """Where the sizes are said to fit; elsewhere plain torch runs."""
    q, k = (torch.rand(1, 2, 100, features, dtype=dtype, requires_grad=True) for _ in "qk")
    v, log_decay = torch.randn(1, 2, 100, head_size, dtype=dtype), torch.zeros(1, 2, 100)
    doc_starts = torch.zeros(1, 100, dtype=torch.bool)
    if sizes.chunk(features, head_size, dtype, v.device):
        out, state = linear.linear_attention(
            q, k, v, log_decay, doc_starts, torch.zeros(1, 2, head_size + 1, features)
        )
        torch.autograd.grad(out.sum() + state.sum(), [q, k])
    if sizes.features_fit(features, head_size, dtype, v.device):
        points = torch.randn(2, features, head_size)
        found = linear.horosphere_features(v.requires_grad_(), points, torch.ones(2), torch.ones(2))
        torch.autograd.grad(found.sum(), [v])


driver.set_active(NoDriver())
jit.JITFunction.__getitem__ = compile_instead
run_everything(torch.float16)
if CAPABILITY >= 80:
    run_everything(torch.bfloat16)
    run_with_dot()
    for dtype, head_size in ((torch.bfloat16, 128), (torch.bfloat16, 256), (torch.float32, 80)):
        attend(dtype, head_size)
    sizes.dispatch.shared_memory = lambda device: SHARED_MEMORY[CAPABILITY]
    assert sizes.chunk(64, 64, torch.bfloat16, None) and sizes.features_fit(
        64, 64, torch.bfloat16, None
    )  # Phase 8's presets
    for dtype, features, head_size in itertools.product(
        (torch.bfloat16, torch.float32), (64, 128), (64, 128)
    ):
        attend_linearly(dtype, features, head_size)
