"""The model of larger runs: what is known by hand comes out, and more GPUs are never free."""

import pytest

from benchmarks import scaling_model as model
from benchmarks.scaling_model import MEASURED, Model, days, step

DDP = Model("a", 25e6, "ddp", 1e6, 50e9, 1e6, 50_000, 8)
CUT = Model("b", 1.5e9, "fsdp2", 25e3, 80e9, 4e6, 10_000, 24)


def test_one_gpu_sends_nothing_and_two_send_each_gradient_once():
    assert step(DDP, 1).sending == 0 and step(DDP, 1).seconds == pytest.approx(1.0)
    two = step(DDP, 2)
    assert two.sending == pytest.approx(4 * 25e6 / 50e9)
    assert two.seconds == pytest.approx(0.5 + two.sending) and two.tokens_per_second == pytest.approx(
        1e6 / two.seconds
    )


def test_the_rate_gives_back_the_step_that_it_was_measured_by():
    assert model.rate(25e6, "ddp", 4, alone=1.0, together=step(DDP, 2).seconds) == pytest.approx(50e9)
    two = step(CUT, 2)
    found = model.rate(1.5e9, "fsdp2", 2e6 / 10_000, alone=step(CUT, 1).seconds, together=two.seconds)
    assert found == pytest.approx(80e9)


def test_parts_are_fetched_inside_the_host_and_summed_between_hosts():
    one_host, two_hosts = model.sending_time(CUT, 8, 1), model.sending_time(CUT, 16, 1)
    assert one_host == pytest.approx(3 * 7 / 8 * 6e9 / 80e9)
    assert two_hosts - one_host == pytest.approx(6e9 / 8 / model.BETWEEN_HOSTS)
    assert model.sending_time(CUT, 8, 4) == pytest.approx(4 * one_host)


@pytest.mark.parametrize("found", MEASURED, ids=lambda m: m.name)
def test_efficiency_falls_and_the_table_has_every_size(found):
    shares = [step(found, gpus).efficiency for gpus in model.GPUS]
    assert shares[0] == pytest.approx(1) and shares == sorted(shares, reverse=True)
    assert [line.split("|")[1].strip() for line in model.table(found).splitlines()[2:]] == [
        f"{n:,}" for n in model.GPUS
    ]


def test_failures_add_to_the_days():
    found = step(CUT, 1024)
    plain = 1e12 / found.tokens_per_second / 86400
    assert days(found) == pytest.approx(plain * (1 + 1024 * model.RESTART / 3600 / model.GPU_HOURS_A_FAILURE))
