"""What a step asks of a gradient: against torch, and the kernels in the interpreter and on a GPU."""

import pytest
import torch

from newllm_lib.ops.gradient_norms import clip, limited, second_moment, squares
from tests.helpers import kernel_checks as checks, phase7_checks


def test_clipping_counts_all_norms_and_refuses_none_that_is_no_number():
    known = torch.tensor([9.0, 1.0, 0.0])
    assert float(clip(known, 1, torch.tensor(16.0), 2.5)) == pytest.approx(0.5)
    assert known.tolist() == [9.0, 16.0, 0.0]
    assert float(clip(known, 0, torch.tensor([4.0]), 1e3)) == 1.0
    assert clip(known, 0, torch.tensor([float("inf")]), 0.0).isnan().all()


def test_a_gradient_that_overflows_under_loss_scaling_is_marked_and_leaves_the_norms_as_they_were():
    known, skipped, scale = torch.tensor([9.0, 1.0, 0.0]), torch.ones(3), torch.tensor(4.0)
    found = clip(known, 1, torch.tensor(256.0), 2.5, scale, skipped)
    assert float(found) == pytest.approx(0.5 / 4)
    assert known.tolist() == [9.0, 16.0, 0.0] and skipped.tolist() == [1.0, 0.0, 1.0]
    for value in ("inf", "nan"):
        assert clip(known, 0, torch.tensor(float(value)), 2.5, scale, skipped).isnan().all()
        assert known.tolist() == [9.0, 16.0, 0.0] and skipped.tolist() == [1.0, 0.0, 1.0]
    assert float(clip(known, 2, torch.tensor(0.0), 2.5, scale, skipped)) == pytest.approx(0.5 / 4)


def test_a_gradient_whose_squares_are_rows_times_columns_comes_out_as_its_signs():
    row, column = torch.rand(40) + 0.5, torch.rand(30) + 0.5
    gradient = torch.outer(row, column) * torch.randn(40, 30).sign()
    averages = torch.zeros(40), torch.zeros(30)
    factors = second_moment(squares(gradient), *averages, torch.ones(1), 0.02, 0.02)
    torch.testing.assert_close(gradient * factors[0][:, None] * factors[1], gradient.sign())
    assert float(limited(gradient, factors, torch.ones(1))) == pytest.approx(1.0, rel=1e-5)
    assert float(limited(3 * gradient, factors, torch.ones(1))) == pytest.approx(1 / 3, rel=1e-5)


def test_in_the_interpreter():
    checks.run_interpreted("gradient_norms")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (513, 771), (8192, 2048), (2048, 4096)])
def test_on_a_gpu(dtype, rows, columns):
    phase7_checks.check_gradient_norms("cuda", dtype, rows, columns)
