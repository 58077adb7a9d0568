"""Processes that are started again meet each other, not those that are dead (`torchrun --max-restarts`)."""

import datetime
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist

from newllm_lib.training.distributed.rendezvous import unique_store_prefix

PATIENCE = datetime.timedelta(seconds=20)


@pytest.fixture
def store():
    """As torchrun's: it outlives the processes."""
    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=PATIENCE)


def meet(store, *ranks: int, world: int, late: int | None = None, patience=PATIENCE) -> list[str]:
    """The names that these ranks of one attempt get; `late` begins a moment after the others."""

    def one(rank: int) -> str:
        client = dist.TCPStore("127.0.0.1", store.port, is_master=False, timeout=patience)
        if rank == late:
            time.sleep(0.3)
        return unique_store_prefix(client, rank, world, patience)

    with ThreadPoolExecutor(len(ranks)) as pool:
        return list(pool.map(one, ranks))


@pytest.mark.parametrize("late", [0, 1, 2])
def test_each_attempt_has_a_name_of_its_own_whoever_comes_last(store, late):
    attempts = [meet(store, 0, 1, 2, world=3, late=late) for _ in range(3)]
    assert all(len(set(names)) == 1 for names in attempts)
    assert len({names[0] for names in attempts}) == 3


def test_an_attempt_that_some_did_not_live_to_see_leaves_nothing_behind(store):
    moment = datetime.timedelta(seconds=0.5)
    with pytest.raises(RuntimeError, match=r"1 of 3 processes did not come: \[2\]"):
        meet(store, 0, 1, world=3, patience=moment)
    with pytest.raises(dist.DistStoreError):  # nobody answers: the first process is dead
        meet(store, 1, 2, world=3, patience=moment)
    assert len(set(meet(store, 0, 1, 2, world=3, late=1))) == 1
