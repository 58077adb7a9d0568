"""The curvature schedule: its course, and that it stands on top of what is learned."""

import pytest

from newllm_lib.recipe import load_recipe
from newllm_lib.training.curvature import CurvatureSchedule, curvature_factor, has_curvature_schedule
from tests.helpers.small_phase7 import build


def recipe(**changes):
    return load_recipe("phase7_small", changes, device_kind="cpu")


def course(total=100, **changes):
    chosen = recipe(**changes)
    return [curvature_factor(step, total, chosen) for step in range(total + 1)]


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_it_rises_from_its_start_to_one_and_stays(schedule):
    found = course(curvature_schedule=schedule)
    assert found[0] == pytest.approx(0.1) and found[50:] == [pytest.approx(1.0)] * 51
    assert found == sorted(found) and found[25] == pytest.approx(0.55)


def test_each_schedule_has_its_own_course():
    base = course()
    assert course(curvature_schedule="off") == [1.0] * 101
    assert course(curvature_schedule="cosine")[10] < base[10]


def test_it_moves_the_factor_and_leaves_what_is_learned():
    model = build()
    learned = [p.clone() for p in model.parameters()]
    CurvatureSchedule(recipe()).set(model, 20, 100)
    assert float(model.model.curvature_factor) == pytest.approx(0.46)
    assert all((a == b).all() for a, b in zip(learned, model.parameters(), strict=True))


def test_only_a_fresh_hyperbolic_model_has_one():
    assert has_curvature_schedule(recipe())
    assert not has_curvature_schedule(recipe(curvature_schedule="off")) and not has_curvature_schedule(
        recipe(attention="dot")
    )
    assert not has_curvature_schedule(recipe(model="new_llm"))
