"""Checks of the kernels that the interpreter's tests (tiny sizes, on the CPU) and the GPU's tests (odd sizes)
share.

Each check draws inputs in the wanted dtype, runs the operation with every buffer that it allocates filled
with NaN first, runs the float64 reference on the same values, and asks that every output and every gradient
be near: ||found - exact|| / ||exact||.
"""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from newllm_lib.ops.gated_scan import reference as gated_reference
from newllm_lib.ops.short_conv import reference as conv_reference

TOLERANCE = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 1e-2}


@contextlib.contextmanager
def poisoned_buffers():
    """torch.empty and its kin give NaN, so that an element which a kernel forgets to write shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    try:
        assert torch.empty(3).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def assert_near(found, exact, tolerance, what=""):
    assert found.shape == exact.shape, what
    assert found.isfinite().all(), f"{what}: not finite"
    error = (found.double() - exact).norm() / exact.norm().clamp_min(1e-30)
    assert error < tolerance, f"{what}: {error:.2e} is not below {tolerance:.0e}"


class Draw:
    """Random tensors on a device, the same for the same seed; every value exact in `dtype`."""

    def __init__(self, device, dtype, seed=0):
        self.device, self.dtype = device, dtype
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *sizes, dtype=None, scale=1.0):
        values = torch.randn(*sizes, generator=self.generator, dtype=torch.float64) * scale
        return values.to(self.device, dtype or self.dtype).requires_grad_()

    def uniform(self, *sizes):
        values = torch.rand(*sizes, generator=self.generator, dtype=torch.float64)
        return values.to(self.device, self.dtype).requires_grad_()

    def flags(self, *sizes, share):
        return (torch.rand(*sizes, generator=self.generator) < share).to(self.device)


def compare(names, operation, reference, inputs, tolerance, seed=1):
    """Outputs and gradients of `operation(*inputs)` against `reference` on the same inputs in float64."""
    exact = [x.detach().double().requires_grad_() if x is not None and x.requires_grad else x for x in inputs]
    expected, upstream = outputs_and_gradients(reference, exact, None, seed)
    with poisoned_buffers():
        found, _ = outputs_and_gradients(operation, inputs, upstream, seed)
    assert len(found) == len(expected)
    for index, (x, y) in enumerate(zip(found, expected, strict=True)):
        assert_near(x, y, tolerance, names[index] if index < len(names) else f"result {index}")


def outputs_and_gradients(function, inputs, upstream, seed):
    outputs = [x for x in function(*inputs) if x is not None]
    if upstream is None:
        generator = torch.Generator().manual_seed(seed)
        upstream = [torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in outputs]
        upstream = [x.to(torch.bfloat16).to(outputs[0].device) for x in upstream]  # exact in every dtype
    wanted = [x for x in inputs if x is not None and x.requires_grad]
    gradients = torch.autograd.grad(
        outputs, wanted, [u.to(x.dtype) for u, x in zip(upstream, outputs, strict=True)]
    )
    return [*(x.detach() for x in outputs), *gradients], upstream


def check_gated_scan(device, dtype, batch, time, dim, flags=True, with_state=True, seed=0):
    from newllm_lib.ops.gated_scan import triton

    draw = Draw(device, dtype, seed)
    doc_starts, mask = (draw.flags(batch, time, share=share) if flags else None for share in (0.1, 0.8))
    projection, bias = draw.normal(batch, time, 3 * dim), draw.normal(dim, dtype=torch.float32, scale=2.0)
    weight = draw.normal(dim, dtype=torch.float32)
    initial = draw.normal(batch, dim, dtype=torch.float32) if with_state else None
    names = ["y", "c", "final", "dprojection", "dbias", "dweight", "dinitial"]

    def with_flags(function):
        return lambda p, bias, weight, initial: function(p, bias, weight, doc_starts, mask, initial)

    found, exact = with_flags(triton.gated_scan), with_flags(gated_reference.gated_scan)
    compare(names, found, exact, [projection, bias, weight, initial], TOLERANCE[dtype])


def check_short_conv(device, dtype, batch, time, dim, width=4, flags=True, with_tail=True, seed=0):
    from newllm_lib.ops.short_conv import triton

    draw = Draw(device, dtype, seed)
    doc_starts = draw.flags(batch, time, share=0.2) if flags else None
    conv_state = draw.normal(batch, width - 1, dim, dtype=torch.float32) if with_tail else None
    inputs = [draw.normal(batch, time, dim), draw.normal(dim, width, dtype=torch.float32), conv_state]

    def with_flags(function):
        return lambda x, weight, conv_state: (function(x, weight, doc_starts, conv_state),)

    names = ["u", "dx", "dweight", "dconv_state"]
    compare(
        names, with_flags(triton.short_conv), with_flags(conv_reference.short_conv), inputs, TOLERANCE[dtype]
    )


def check_add_norm(device, dtype, rows, dim, with_branch=True, seed=0):
    from newllm_lib.ops.add_norm import reference, triton

    draw = Draw(device, dtype, seed)
    residual = draw.normal(rows, dim) if with_branch else None
    inputs = [draw.normal(rows, dim, scale=3.0), residual, draw.normal(dim, dtype=torch.float32)]

    def both(module):
        return lambda *inputs: module.add_norm(*inputs, 1e-6)

    def norm(module):  # the stream ends there: nothing but n has a gradient
        return lambda *inputs: (module.add_norm(*inputs, 1e-6)[1],)

    names = ["dx", "dbranch", "dweight"] if with_branch else ["dx", "dweight"]
    compare(["r", "n", *names], both(triton), both(reference), inputs, TOLERANCE[dtype])
    if dim > 1:  # one channel's norm is its sign: all of its gradient is cancellation
        compare(["n", *names], norm(triton), norm(reference), inputs, TOLERANCE[dtype])


def check_add_norm_conv(
    device, dtype, batch, time, dim, width=4, flags=True, with_tail=True, with_branch=True, seed=0
):
    from newllm_lib.ops.add_norm import reference, triton

    draw = Draw(device, dtype, seed)
    doc_starts = draw.flags(batch, time, share=0.2) if flags else None
    conv_state = draw.normal(batch, width - 1, dim, dtype=torch.float32) if with_tail else None
    residual = draw.normal(batch, time, dim) if with_branch else None
    parameters = draw.normal(dim, dtype=torch.float32), draw.normal(dim, width, dtype=torch.float32)
    inputs = [draw.normal(batch, time, dim), residual, *parameters, conv_state]

    def with_flags(module):
        return lambda x, residual, weight, conv_weight, conv_state: module.add_norm_conv(
            x, residual, weight, conv_weight, doc_starts, conv_state, 1e-6
        )

    def conv(module):  # the stream ends there
        return lambda *inputs: with_flags(module)(*inputs)[1:]

    names = (
        ["dx", "dbranch", "dweight", "dtaps", "dconv_state"]
        if with_branch
        else ["dx", "dweight", "dtaps", "dconv_state"]
    )
    compare(["r", "u", *names], with_flags(triton), with_flags(reference), inputs, TOLERANCE[dtype])
    if dim > 1:
        compare(["u", *names], conv(triton), conv(reference), inputs, TOLERANCE[dtype])


def check_last_rows(device, dtype, batch, time, dim, width=4, flags=True, seed=0):
    from newllm_lib.ops.add_norm import reference, triton
    from newllm_lib.ops.short_conv import new_conv_state

    draw = Draw(device, dtype, seed)
    doc_starts = draw.flags(batch, time, share=0.3) if flags else None
    inputs = [draw.normal(batch, time, dim), draw.normal(dim, dtype=torch.float32)]

    def expected(r, weight):
        last = slice(time - width + 1, None)
        return (
            new_conv_state(
                reference.norm(r[:, last], weight, 1e-6),
                width,
                None if doc_starts is None else doc_starts[:, last],
                None,
            ),
        )

    found = lambda r, weight: (triton.last_rows(r, weight, width, doc_starts, None, 1e-6),)  # noqa: E731
    compare(["conv_state", "dr", "dweight"], found, expected, inputs, TOLERANCE[dtype])


def check_steps(device, dtype, conv, scan, batch, dim, width=4, flags=True, seed=0):
    """One token by the modules `conv` and `scan` against a sequence of length 1 in float64: what is read, the
    state after it.
    """
    draw = Draw(device, dtype, seed)
    x, conv_weight = draw.normal(batch, dim), draw.normal(dim, width, dtype=torch.float32)
    projection, bias = draw.normal(batch, 3 * dim), draw.normal(dim, dtype=torch.float32, scale=2.0)
    weight, state = (
        draw.normal(dim, dtype=torch.float32),
        draw.normal(batch, 2, width * dim, dtype=torch.float32),
    )
    start = draw.flags(batch, share=0.4) if flags else None
    doc_starts = None if start is None else start.unsqueeze(1)
    exact = [t.detach().double() for t in (x, conv_weight, projection, bias, weight)]
    one = state.detach()[:, 1].double()  # a layer's part of the state: its rows lie apart
    conv_state = one[:, dim:].reshape(batch, width - 1, dim)
    u = conv_reference.short_conv(exact[0].unsqueeze(1), exact[1], doc_starts, conv_state)
    y, _, context = gated_reference.gated_scan(
        exact[2].unsqueeze(1), exact[3], exact[4], doc_starts, None, one[:, :dim]
    )
    kept = conv_state if start is None else conv_state.masked_fill(start[:, None, None], 0.0)
    with poisoned_buffers(), torch.no_grad():
        new = torch.empty(batch, width * dim, device=device)
        found_u = conv.short_conv_step(x, conv_weight, start, state[:, 1, dim:], new[:, dim:])
        found_y = scan.gated_scan_step(projection, bias, weight, start, state[:, 1, :dim], new[:, :dim])
    assert_near(found_u, u[:, 0], TOLERANCE[dtype], "u")
    assert_near(found_y, y[:, 0], TOLERANCE[dtype], "y")
    assert_near(new[:, :dim], context, 1e-6 if dtype == torch.float32 else 1e-5, "context")
    if width > 1:
        expected = torch.cat([kept, exact[0].unsqueeze(1)], 1)[:, 1:].flatten(1)
        assert_near(new[:, dim:], expected, 1e-6, "conv_state")


def check_token_embedding(device, dtype, words, dim, shape, seed=0):
    from newllm_lib.ops.embedding import reference, triton

    draw = Draw(device, torch.float32, seed)
    weight, upstream = draw.normal(words, dim), draw.normal(*shape, dim).detach().to(dtype)
    ids = torch.randint(0, words, shape, generator=torch.Generator().manual_seed(seed)).to(device)
    found, expected = (module.token_embedding(ids, weight, dtype) for module in (triton, reference))
    assert found.dtype == dtype and torch.equal(found, expected)
    (expected,) = torch.autograd.grad(
        reference.token_embedding(ids, weight.double(), torch.float64), weight, upstream.double()
    )
    (gradient,) = torch.autograd.grad(found, weight, upstream)
    assert_near(gradient, expected, 1e-6, "dweight")


def check_relu2_mlp(device, dtype, rows, dim, inner, seed=0):
    from newllm_lib.ops.relu2_mlp import elementwise, reference, triton

    draw = Draw(device, dtype, seed)
    inputs = [
        draw.normal(rows, dim),
        draw.normal(inner, dim, scale=dim**-0.5),
        draw.normal(dim, inner, scale=inner**-0.5),
    ]

    def alone(module):
        return lambda *inputs: (module.relu2_mlp(*inputs),)

    for module in (triton, elementwise):
        compare(["y", "dx", "dup", "ddown"], alone(module), alone(reference), inputs, TOLERANCE[dtype])


def run_interpreted(selection, file="interpreted_kernels.py"):
    """Run the tests of that file that match, in a process whose Triton interprets its kernels on the CPU."""
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    file = Path(__file__).with_name(file)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        str(file),
        "-k",
        selection,
    ]
    done = subprocess.run(
        command, env=environment, cwd=file.parents[2], capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout, done.stdout
