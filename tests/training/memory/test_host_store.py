"""Copies beside the computation, on streams that only note what waits for what."""

import contextlib
import gc
import weakref
from types import SimpleNamespace

import pytest
import torch

from newllm_lib.training.memory import host_store


@pytest.fixture
def store(monkeypatch):
    """A store whose streams are notes: `store.waited` are the copies that the computation waits for."""
    copies, waited = iter(range(100)), []
    current = SimpleNamespace(wait_event=waited.append)
    beside = SimpleNamespace(wait_stream=lambda other: None, record_event=lambda: next(copies))
    cuda = SimpleNamespace(
        Stream=lambda device: beside,
        current_stream=lambda device: current,
        stream=lambda stream: contextlib.nullcontext(),
    )
    empty = lambda *sizes, pin_memory=False, **kind: torch.empty(*sizes, **kind)  # noqa: E731
    monkeypatch.setattr(host_store, "torch", SimpleNamespace(empty=empty, cuda=cuda))
    made = host_store.HostStore(torch.device("cpu"))
    made.waited = waited
    return made


def test_what_was_put_is_taken_again_and_each_copy_waited_for(store):
    values = [torch.full((3,), float(i)) for i in range(3)]
    handles = [store.put(x) for x in values]
    assert store.waited == [0, 1]
    for handle, x in zip(reversed(handles), reversed(values), strict=True):
        assert store.take(handle).equal(x)
    assert store.waited == [0, 1, 2, 3, 4, 5] and not store.copied
    assert [len(free) for free in store.free.values()] == [3]


def test_what_leaves_is_held_until_the_computation_waits_for_its_copy(store):
    left = torch.ones(3)
    gone = weakref.ref(left)
    handle = store.put(left)
    del left
    assert gone() is not None and not store.waited
    store.put(torch.ones(3))
    assert gone() is None and store.waited == [0] and handle.host.equal(torch.ones(3))


def test_what_was_fetched_for_a_graph_that_is_thrown_away_is_held_as_long(store):
    first, second = store.put(torch.zeros(3)), store.put(torch.ones(3))
    store.take(second)
    fetched = weakref.ref(first.on_device)
    del first, second
    gc.collect()
    assert fetched() is not None
    store.put(torch.ones(3))
    assert fetched() is None and store.waited == [0, 1, 2, 3]


def test_what_was_fetched_early_is_not_fetched_again(store):
    first, second = store.put(torch.zeros(3)), store.put(torch.ones(3))
    store.take(second)
    fetched = first.on_device
    store.take(store.put(torch.ones(3)))
    assert first.on_device is fetched and store.take(first).equal(torch.zeros(3))
