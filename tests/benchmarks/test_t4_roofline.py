"""The least that a T4 needs: operations are those of the parameters, and every launch is a T4's."""

import pytest

from benchmarks.t4_roofline import BANDWIDTH, cost_of_a_step
from newllm_lib.ops.common import dispatch


def test_a_step_of_the_demo_has_the_operations_that_its_parameters_ask_for():
    pytest.importorskip("triton")
    rule = dispatch.runs_triton.__code__
    cost, tokens, parameters = cost_of_a_step("demo", "new_llm")
    assert cost.flops == pytest.approx(6 * parameters * tokens, rel=0.1)
    assert cost.seconds > cost.bytes / BANDWIDTH and 100 < cost.launches < 400
    for kernel in ("relu2_forward", "scan_backward", "norm_conv_forward", "_softmax_gradient", "add_rows"):
        assert cost.kinds[kernel] >= 1, kernel
    assert not {"product", "exponentials"} & cost.kinds.keys()  # tensor cores, which Triton has not there
    assert dispatch.runs_triton.__code__ is rule
