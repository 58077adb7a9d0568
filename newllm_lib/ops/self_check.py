"""Each operation run once on this device and compared with its float64 reference, gradients too.

The tests do this at many sizes; here it answers one question on a user's machine: do the kernels work on this
GPU and driver?
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from newllm_lib.errors import NewLLMError, UsageError

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 3e-2, torch.float16: 1e-2}  # ||found - exact|| / ||exact||


@dataclass(frozen=True)
class Checked:
    """An operation's largest relative error over its outputs and gradients, and what is allowed."""

    name: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.error < self.tolerance  # also false for NaN


def check_kernels(device: torch.device, dtype: torch.dtype, names: list[str] | None = None) -> list[Checked]:
    """Run the named operations (default: all).

    Raises:
        UsageError: one of the names is not known.
    """
    unknown = [name for name in names or () if name not in _OPERATIONS]
    if unknown:
        raise UsageError(f"No operation {unknown[0]!r}: there are {', '.join(_OPERATIONS)}.")
    return [
        _checked(name, *_OPERATIONS[name](_Draw(device, dtype)), TOLERANCE[dtype])
        for name in names or _OPERATIONS
    ]


def refuse_mismatch(found: list[Checked]) -> None:
    """
    Raises:
        NewLLMError: an operation does not compute what its reference does; names it.
    """
    wrong = [f"{c.name} (off by {c.error:.1e}, allowed {c.tolerance:.0e})" for c in found if not c.passed]
    if wrong:
        raise NewLLMError(
            f"Kernels differ from their references: {', '.join(wrong)}. Train with --kernels off, and report "
            "it."
        )


def _checked(
    name: str, function: Callable, reference: Callable, inputs: list[Tensor], tolerance: float
) -> Checked:
    exact = _results(
        reference, [x.detach().double().requires_grad_() if x.requires_grad else x for x in inputs]
    )
    found = _results(function, inputs)
    errors = [
        float((a.double() - b).norm() / b.norm().clamp_min(1e-30)) for a, b in zip(found, exact, strict=True)
    ]
    return Checked(name, float("nan") if any(e != e for e in errors) else max(errors), tolerance)


def _results(function: Callable, inputs: list[Tensor]) -> list[Tensor]:
    """Outputs, and the gradients of the inputs that want one."""
    outputs = function(*inputs)
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    generator = torch.Generator().manual_seed(1)
    upstream = [torch.randn(y.shape, generator=generator).to(y.device, y.dtype) for y in outputs]
    gradients = torch.autograd.grad(outputs, [x for x in inputs if x.requires_grad], upstream)
    return [*(y.detach() for y in outputs), *gradients]


class _Draw:
    def __init__(self, device: torch.device, dtype: torch.dtype):
        self.device, self.dtype, self.generator = device, dtype, torch.Generator().manual_seed(0)

    def normal(self, *sizes: int, scale: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
        values = scale * torch.randn(*sizes, generator=self.generator)
        return values.to(self.device, dtype or self.dtype).requires_grad_()

    def positive(self, *sizes: int) -> Tensor:
        return (torch.rand(*sizes, generator=self.generator) + 0.5).to(self.device).requires_grad_()


def _gated_scan(draw: _Draw):
    from newllm_lib.ops.gated_scan import gated_scan, reference

    inputs = [
        draw.normal(2, 129, 3 * 96),
        draw.normal(96, dtype=torch.float32),
        draw.normal(96, dtype=torch.float32),
    ]
    return lambda *x: gated_scan(*x)[::2], lambda *x: reference.gated_scan(*x)[::2], inputs


def _short_conv(draw: _Draw):
    from newllm_lib.ops.short_conv import reference, short_conv

    inputs = [draw.normal(2, 129, 96), draw.normal(96, 4, dtype=torch.float32)]
    return lambda *x: short_conv(*x)[0], reference.short_conv, inputs


def _relu2_mlp(draw: _Draw):
    from newllm_lib.ops.relu2_mlp import reference, relu2_mlp

    return (
        relu2_mlp,
        reference.relu2_mlp,
        [
            draw.normal(2, 129, 96),
            draw.normal(256, 96, scale=0.1),
            draw.normal(96, 256, scale=0.06),
        ],
    )


def _hyperbolic_attention(draw: _Draw):
    from newllm_lib.ops.hyperbolic_attention import hyperbolic_attention

    inputs = [draw.normal(2, 4, 200, 64, scale=s) for s in (0.12, 0.12, 1.0)] + [
        draw.positive(4),
        draw.positive(4),
    ]

    def plain(*x):
        return hyperbolic_attention(*x, window=128, backend="reference")

    return lambda *x: hyperbolic_attention(*x, window=128), plain, inputs


def _linear_attention(draw: _Draw):
    from newllm_lib.ops.linear_attention import linear_attention

    q, k = (draw.normal(2, 4, 200, 64).detach().softmax(-1).requires_grad_() for _ in range(2))
    log_decay = draw.positive(2, 4, 200).detach().mul(-0.1).requires_grad_()
    inputs = [q, k, draw.normal(2, 4, 200, 64), log_decay]

    def plain(*x):
        return linear_attention(*x, backend="reference")

    return linear_attention, plain, inputs


def _cross_entropy(draw: _Draw):
    from newllm_lib.ops.linear_cross_entropy import linear_cross_entropy

    labels = torch.randint(0, 1000, (300,), generator=draw.generator).to(draw.device)
    inputs = [draw.normal(300, 96), draw.normal(1000, 96, scale=0.1)]

    def plain(x, w):
        return torch.nn.functional.cross_entropy(x @ w.T, labels)

    return lambda x, w: linear_cross_entropy(x, w, labels), plain, inputs


_OPERATIONS: dict[str, Callable] = {
    "gated_scan": _gated_scan,
    "short_conv": _short_conv,
    "relu2_mlp": _relu2_mlp,
    "hyperbolic_attention": _hyperbolic_attention,
    "linear_attention": _linear_attention,
    "cross_entropy": _cross_entropy,
}
OPERATIONS = tuple(_OPERATIONS)
