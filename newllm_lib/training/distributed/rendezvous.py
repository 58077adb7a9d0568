"""Where a run's processes meet: a part of torchrun's store that no earlier attempt has used.

torchrun's store outlives the processes that it starts again (`--max-restarts`), with the addresses of the
dead in it. Who reads one of them, instead of waiting for the new one, calls a port that nobody listens at.
Counting attempts does not help: each host counts its own. So the first process chooses a name, and tells it
to those that are alive: they have asked.
"""

from __future__ import annotations

import datetime
import time
import uuid

import torch.distributed as dist


def rendezvous(patience: datetime.timedelta) -> tuple[dist.Store, int, int]:
    """A store for the processes that the environment counts, this one's rank, and how many they are."""
    store, rank, world = next(dist.rendezvous("env://", timeout=patience))
    store.set_timeout(patience)
    return dist.PrefixStore(unique_store_prefix(store, rank, world, patience), store), rank, world


def unique_store_prefix(store: dist.Store, rank: int, world: int, patience: datetime.timedelta) -> str:
    """A name that all living processes agree on, and no earlier ones have had.

    Raises:
        RuntimeError: some did not come in time.
    """
    own = uuid.uuid4().hex
    if rank == 0:
        _tell(own, store, world, time.monotonic() + patience.total_seconds())
        return own
    store.set(f"asks/{rank}", own)
    name = store.get(f"answer/{own}").decode()  # waits for it
    store.set(f"{name}/knows/{rank}", "")
    return name


def _tell(name: str, store: dist.Store, world: int, end: float) -> None:
    """Answer whoever asks, perhaps one that is dead by now, until all have heard it."""
    missing, answered = set(range(1, world)), set()
    while missing:
        for rank in sorted(missing):
            who = store.get(f"asks/{rank}").decode() if store.check([f"asks/{rank}"]) else None
            if who is not None and who not in answered:
                store.set(f"answer/{who}", name)
                answered.add(who)
            if store.check([f"{name}/knows/{rank}"]):
                missing.discard(rank)
        if time.monotonic() > end:
            raise RuntimeError(f"{len(missing)} of {world} processes did not come: {sorted(missing)[:8]}")
        time.sleep(0.02)
