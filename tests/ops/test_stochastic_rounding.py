"""The optimizer's step in few bits: exact in float32, right on average in bfloat16, momentum near what was
put in.
"""

import os
import subprocess
import sys

import pytest
import torch

from newllm_lib.ops.stochastic_rounding import (
    AdamStep,
    RoundedStep,
    new_momentum,
    read_momentum,
    reference,
    stochastic_round,
)

SETTINGS = {"rate": 0.01, "decay": 0.001, "beta": 0.9, "correction": 1.3}


def walk(step, bits, dtype, device="cpu", steps=4, rows=21, columns=37):
    """(found, momentum) after some steps, and what they would be without any rounding."""
    draw = torch.Generator().manual_seed(0)
    start = torch.randn(rows, columns, generator=draw).mul(0.1).to(dtype)
    p = start.to(device, copy=True)
    momentum = new_momentum(p, bits)
    exact, average = start.double(), torch.zeros(rows, columns, dtype=torch.float64)
    for seed in range(steps):
        g = torch.randn(rows, columns, generator=draw).to(dtype)
        factors = torch.rand(rows, generator=draw) + 0.5, torch.rand(columns, generator=draw) + 0.5
        scale = torch.tensor([0.7])
        update = 0.7 * g.double() * factors[0][:, None].double() * factors[1].double()
        average = 0.9 * average + 0.1 * update if bits else update
        exact = exact * (1 - 0.001) - 0.01 * 1.3 * average
        step(
            p,
            g.to(device),
            momentum,
            tuple(f.to(device) for f in factors),
            scale.to(device),
            RoundedStep(seed=seed, **SETTINGS),
            bits,
        )
    held = read_momentum(momentum, p.shape, bits).cpu().double() if bits else None
    return p.cpu().double(), held, exact, average


def check(step, bits, dtype, device="cpu", **sizes):
    """Errors as large as the bits allow, and without a bias."""
    found, held, exact, average = walk(step, bits, dtype, device, **sizes)
    momentum_error = {0: 0.0, 4: 0.15, 8: 0.01, 32: 1e-6}[bits]  # of a standard deviation
    error = found - exact
    allowed = 1e-6 + momentum_error * 0.013 + {torch.bfloat16: 0.002, torch.float16: 0.00025}.get(dtype, 0)
    assert error.square().mean().sqrt() < allowed
    assert error.mean().abs() < 4 * allowed / found.numel() ** 0.5 + 1e-7
    if bits:
        relative = (held - average).square().mean().sqrt() / average.square().mean().sqrt()
        assert relative < 3 * momentum_error + 1e-6
        assert bits != 4 or relative > 0.01  # it really is in few bits


@pytest.mark.parametrize("bits", [0, 4, 8, 32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_step_is_adams_but_for_rounding(bits, dtype):
    check(reference.rounded_step_, bits, dtype, rows=64, columns=150)


@pytest.mark.parametrize(("dtype", "start"), [(torch.bfloat16, 0.02), (torch.float16, 0.16)])
def test_stochastic_rounding_keeps_the_expectation_where_the_nearest_value_keeps_nothing(dtype, start):
    p = torch.full((40_000,), start, dtype=dtype)
    nearest, start = p.clone(), float(p[0])
    for seed in range(10):  # each step is a hundredth of the distance between neighbouring values
        reference.rounded_step_(
            p,
            torch.ones_like(p),
            (),
            None,
            torch.ones(1),
            RoundedStep(rate=1e-6, decay=0.0, beta=0.0, correction=1.0, seed=seed),
            bits=0,
        )
        nearest.sub_(1e-6)
    assert float(nearest.float().mean()) == start
    assert start - float(p.float().mean()) == pytest.approx(1e-5, rel=0.1)


def test_rounding_takes_one_of_the_two_neighbours_and_leaves_exact_values_alone():
    x = torch.randn(2000)
    up = stochastic_round(x).float()
    assert ((up - x).abs() <= x.abs() * 2**-7).all() and (up != x).any()
    exact = x.bfloat16().float()
    assert torch.equal(stochastic_round(exact).float(), exact)


def test_rounding_to_float16_takes_neighbours_that_lie_evenly_near_zero_and_ends_at_its_largest():
    x = torch.cat([torch.randn(2000), torch.randn(2000) * 1e-6, torch.tensor([7e4, -1e9, 0.0, 2.0**-14])])
    found = stochastic_round(x, dtype=torch.float16).float()
    apart = (found - x).abs()[:4000]
    assert (apart < (x[:4000].abs() * 2**-10).clamp_min(2**-24)).all() and (apart > 0).any()
    assert found[4000:].tolist() == [65504.0, -65504.0, 0.0, 2.0**-14]
    exact = x[:4000].half().float()
    assert torch.equal(stochastic_round(exact, dtype=torch.float16).float(), exact)
    check_float16s_ends(reference.rounded_step_)


def check_float16s_ends(step, device="cpu"):
    """Numbers below 2^-14 step on average by less than their distance; large ones do not become infinite."""
    p = torch.full((40_000,), 2.0**-20, dtype=torch.float16, device=device)
    one = torch.ones(1, device=device)
    how = RoundedStep(rate=2.0**-27, decay=0.0, beta=0.0, correction=1.0, seed=3)  # an eighth of the distance
    step(p, torch.ones_like(p), (), None, one, how, bits=0)
    assert float(p.float().mean()) == pytest.approx(2.0**-20 - 2.0**-27, rel=2e-3)
    assert set(p.unique().tolist()) == {2.0**-20, 2.0**-20 - 2.0**-24}
    p = torch.tensor([6e4, -6e4, 1.0], dtype=torch.float16, device=device)
    how = RoundedStep(rate=1.0, decay=0.0, beta=0.0, correction=1.0, seed=3)
    step(p, torch.tensor([-6e4, 6e4, 0.0], device=device), (), None, one, how, bits=0)
    assert p.tolist() == [65504.0, -65504.0, 1.0]


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_momentum_is_unbiased_and_as_small_as_it_says(bits):
    values = torch.randn(5, 100)
    sums = torch.zeros_like(values)
    for seed in range(300):
        momentum = new_momentum(values, bits)
        reference._write_momentum(momentum, values, bits, torch.Generator().manual_seed(seed))
        sums += read_momentum(momentum, values.shape, bits)
    torch.testing.assert_close(sums / 300, values, rtol=0.0, atol=0.12 if bits == 4 else 0.01)
    large = new_momentum(torch.zeros(1024, 1024, device="meta"), bits)
    assert sum(t.nbytes for t in large) <= 1024 * 1024 * (bits / 8 + 4 / 128)


@pytest.mark.parametrize("bits", [0, 4, 8, 32])
def test_a_gradient_that_is_no_number_changes_nothing(bits):
    p = torch.randn(30, 20)
    momentum = new_momentum(p, bits)
    before = [t.clone() for t in (p, *momentum)]
    reference.rounded_step_(
        p,
        torch.full_like(p, float("nan")),
        momentum,
        None,
        torch.tensor([float("nan")]),
        RoundedStep(seed=0, **SETTINGS),
        bits,
    )
    assert all(torch.equal(a, b) for a, b in zip(before, (p, *momentum), strict=True))


def check_adam(step, device="cpu"):
    """Against torch's AdamW, whose momentum is divided by the root where this one averages what is divided
    already: the same where the second moment does not change; and nothing moves by a gradient that is no
    number."""
    p = torch.linspace(-1, 1, 1500).to(device)
    sign = torch.where(torch.arange(1500) % 3 == 0, 1.0, -1.0).to(device)
    theirs = p.clone().requires_grad_()
    adamw = torch.optim.AdamW([theirs], lr=0.01, betas=(0.9, 0.98), weight_decay=0.1, eps=1e-8)
    second, momentum = torch.zeros_like(p), torch.zeros_like(p)
    for number in range(1, 6):
        theirs.grad = 2 * sign
        adamw.step()
        settings = {"rate": 0.01, "decay": 0.001, "betas": (0.9, 0.98), "step": number, "seed": number}
        step(p, 4 * sign, second, momentum, torch.tensor([0.5], device=device), AdamStep(**settings))
    torch.testing.assert_close(p, theirs.detach(), rtol=1e-5, atol=1e-6)
    half, before = p.bfloat16(), [t.clone() for t in (p, second, momentum)]
    step(p, sign / 0, second, momentum, torch.tensor([float("nan")], device=device), AdamStep(**settings))
    assert all(torch.equal(a, b) for a, b in zip(before, (p, second, momentum), strict=True))
    moved = half.clone()
    step(
        moved,
        4 * sign,
        second,
        momentum,
        torch.tensor([0.5], device=device),
        AdamStep(**{**settings, "rate": 1e-4, "decay": 0.0}),
    )
    exact = half.float() - 1e-4 * momentum / (1 - 0.9**5)
    assert float((moved.float() - exact).abs().max()) < 2**-7
    assert (
        float((moved.float() - exact).mean().abs()) < 2e-5
    )  # of 1e-4, most of it smaller than half of bfloat16's spacing


def test_a_small_tensor_steps_as_adamw():
    check_adam(reference.adam_step_)


KERNEL = """
import torch
from newllm_lib.ops.stochastic_rounding import RoundedStep, new_momentum, reference, triton
from tests.ops.test_stochastic_rounding import SETTINGS, check
for bits in (0, 4, 8, 32):
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        check(triton.rounded_step_, bits, dtype)
    p = torch.randn(30, 20)
    momentum = new_momentum(p, bits)
    before = [t.clone() for t in (p, *momentum)]
    nan = torch.tensor([float("nan")])
    triton.rounded_step_(p, torch.randn(30, 20), momentum, None, nan, RoundedStep(seed=0, **SETTINGS), bits)
    assert all(torch.equal(a, b) for a, b in zip(before, (p, *momentum)))
from tests.ops.test_stochastic_rounding import check_adam, check_float16s_ends
check_adam(triton.adam_step_)
check_float16s_ends(triton.rounded_step_)
print("equal")
"""


def test_the_kernel_in_the_interpreter():
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", KERNEL], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.stdout.strip() == "equal", done.stderr[-2000:]


@pytest.mark.gpu
@pytest.mark.parametrize("bits", [0, 4, 8, 32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_kernel_on_a_gpu(bits, dtype):
    from newllm_lib.ops.stochastic_rounding import triton

    check(triton.rounded_step_, bits, dtype, "cuda", rows=513, columns=771)


@pytest.mark.gpu
def test_a_small_tensor_on_a_gpu():
    from newllm_lib.ops.stochastic_rounding import triton

    check_adam(triton.adam_step_, "cuda")
