"""Kernels stay in their tensors: what finds out those that do not, and training steps under it."""

import pytest

from tests.helpers import kernel_checks as checks


def test_a_kernel_that_strays_is_told():
    checks.run_interpreted("strays")


@pytest.mark.slow
def test_training_steps_stay_in_their_tensors():
    """Minutes, for they are as wide as a recipe's."""
    checks.run_interpreted("stay", "interpreted_steps.py")
