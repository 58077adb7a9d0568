"""The check of the kernels on a user's machine: it passes where they are right, and names the one that is
wrong.
"""

import pytest
import torch

from newllm_lib.errors import NewLLMError, UsageError
from newllm_lib.ops import self_check, short_conv


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_right_operations_pass(dtype):
    found = self_check.check_kernels(torch.device("cpu"), dtype)
    assert [c.name for c in found] == list(self_check.OPERATIONS) and all(c.passed for c in found)
    self_check.refuse_mismatch(found)


@pytest.mark.parametrize(
    "wrong", [lambda y: y * 1.01, lambda y: y * float("nan"), lambda y: y.detach() + 0 * y]
)
def test_a_wrong_result_or_gradient_is_refused_by_name(monkeypatch, wrong):
    right = short_conv.short_conv
    monkeypatch.setattr(short_conv, "short_conv", lambda *x: (wrong(right(*x)[0]),))
    found = self_check.check_kernels(torch.device("cpu"), torch.float32, ["relu2_mlp", "short_conv"])
    assert [c.passed for c in found] == [True, False]
    with pytest.raises(NewLLMError, match="short_conv") as error:
        self_check.refuse_mismatch(found)
    assert "\n" not in str(error.value)


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(UsageError, match="hyperbolic_attention"):
        self_check.check_kernels(torch.device("cpu"), torch.float32, ["attention"])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_on_this_gpu(dtype):
    self_check.refuse_mismatch(self_check.check_kernels(torch.device("cuda"), dtype))
