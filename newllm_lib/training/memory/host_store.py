"""Where activations wait between forward and backward pass: in the host's memory, or where they are."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor


class InPlace:
    """Activations stay on the device."""

    def put(self, x: Tensor) -> Tensor:
        return x

    def take(self, handle: Tensor) -> Tensor:
        return handle


class HostStore:
    """Activations in pinned host memory, copied by a stream of their own beside the computation.

    What was put last is taken first, so taking one starts the fetch of the one put before it. Host buffers
    are used again in every step.
    """

    def __init__(self, device: torch.device):
        self.device, self.stream = device, torch.cuda.Stream(device)
        self.free: dict[tuple, list[Tensor]] = {}
        self.waiting: list[weakref.ref[_Stored]] = []  # a graph that is thrown away takes its own with it
        self.copied: list[tuple[Tensor, torch.cuda.Event]] = []  # on the device, by copies not waited for yet

    def put(self, x: Tensor) -> _Stored:
        """Start the copy of `x` (on the GPU, not changed afterwards) to the host."""
        key = (x.shape, x.dtype)
        free = self.free.setdefault(key, [])
        host = free.pop() if free else torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
        self._let_go()
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            host.copy_(x, non_blocking=True)
        self.copied.append((x, self.stream.record_event()))
        stored = _Stored(host, key)
        self.waiting.append(weakref.ref(stored))
        return stored

    def _let_go(self) -> None:
        """Let go of what the last copies read or wrote, as soon as they are done. The GPU waits for that, a
        block later, and not the memory (`record_stream`): memory that only the copy's end sets free would be
        missing while the CPU is many blocks ahead of the GPU. What was fetched for a graph that is thrown
        away is held as long: else it would be others' memory in which the copy still writes."""
        for _, done in self.copied:
            torch.cuda.current_stream(self.device).wait_event(done)
        self.copied.clear()

    def take(self, stored: _Stored) -> Tensor:
        """The tensor, on the GPU again."""
        self._let_go()  # of its own fetch too, where that has begun
        self._fetch(stored)
        self._let_go()
        self.waiting = [ref for ref in self.waiting if ref() not in (None, stored)]
        # the next copy into it comes after this one, in the same stream
        self.free[stored.key].append(stored.host)
        x, stored.on_device = stored.on_device, None
        if self.waiting:
            self._fetch(self.waiting[-1]())
        return x

    def _fetch(self, stored: _Stored) -> None:
        if stored.on_device is None:
            stored.on_device = torch.empty(stored.host.shape, dtype=stored.host.dtype, device=self.device)
            # who had this memory before is done with it
            self.stream.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(self.stream):
                stored.on_device.copy_(stored.host, non_blocking=True)
            self.copied.append((stored.on_device, self.stream.record_event()))


class _Stored:
    def __init__(self, host: Tensor, key: tuple):
        self.host, self.key = host, key
        self.on_device: Tensor | None = None
