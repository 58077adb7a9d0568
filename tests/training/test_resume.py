"""A run killed at any moment and started again gives, step by step, the numbers of the run that was never
killed.
"""

import pytest

from tests.helpers.killed import killed


def check(result: dict, kills: int) -> None:
    assert result["kills"] == kills
    assert len(result["whole"]) > 8
    assert (
        result["killed"] == result["whole"]
    )  # steps, losses, rates, norms, evaluations, marks: to the last bit


def test_a_run_killed_three_times_equals_the_undisturbed_one(tmp_path):
    check(killed(tmp_path, 3, seed=1), 3)


def test_a_run_on_data_prepared_meanwhile_equals_the_undisturbed_one(tmp_path):
    """With caches of their own, so that the preparation is killed with the run."""
    check(killed(tmp_path, 2, 1, "streamed"), 2)
    packed = list(tmp_path.glob("cache-killed/streams/*/*/*.bin"))
    assert len(packed) > 6 and all(
        path.read_bytes()
        == (tmp_path / "cache-whole" / path.relative_to(tmp_path / "cache-killed")).read_bytes()
        for path in packed
    )


@pytest.mark.slow
def test_a_streamed_run_killed_twenty_times_equals_the_undisturbed_one(tmp_path):
    check(killed(tmp_path, 20, 2, "streamed"), 20)


@pytest.mark.slow
def test_a_run_killed_twenty_times_equals_the_undisturbed_one(tmp_path):
    check(killed(tmp_path, 20, seed=2), 20)
