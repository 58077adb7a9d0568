"""What Triton's interpreter lets pass: it reads and writes wherever a pointer points, one program at a time.

    with kernel_memory.checked():
        ...  # launches

Each address that a kernel reads or writes must be an element of a tensor that this launch was given. Programs
of a launch run in any order and at once: what one of them stores no other may store or read, but by atomics;
nor may a program read what it has stored itself before a barrier: another of its threads may have done that.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from triton.runtime import interpreter
from triton.tools.tensor_descriptor import TensorDescriptor

_NOBODY, _SEVERAL = 0, -1  # instead of a program's number, which counts from 1
_SHOWN = 8  # faults of one launch
_PACKAGE = str(Path(interpreter.__file__).parents[1])


class KernelMemoryError(AssertionError):
    """A kernel left its tensors, or its programs meet."""


class _Launch:
    """The memory of one launch: of each element who has stored, added to and read it so far.

    Args:
        arguments: of the launch, on the host, by name.
    """

    def __init__(self, name: str, arguments: dict[str, object]):
        self.name, self.program, self.grid_index, self.barriers = name, 0, (0, 0, 0), 0
        self.faults: dict[tuple, str] = {}
        self.tensors = dict(_tensors(arguments))
        storages = {x.untyped_storage().data_ptr(): [] for x in self.tensors.values()}
        for x in self.tensors.values():
            storages[x.untyped_storage().data_ptr()].append(x)
        storages = dict(sorted((start, views) for start, views in storages.items() if start))
        self.starts = np.array(list(storages), np.int64)
        sizes = [views[0].untyped_storage().nbytes() for views in storages.values()]
        self.ends = self.starts + np.array(sizes, np.int64)
        # places are counted in the smallest elements that a storage is seen in
        self.units = np.array([min(x.element_size() for x in v) for v in storages.values()], np.int64)
        counts = [-(-size // unit) for size, unit in zip(sizes, self.units, strict=True)]
        self.firsts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        total = int(self.firsts[-1])
        self.covered = np.zeros(total, bool)
        for first, start, unit, views in zip(
            self.firsts, self.starts, self.units, storages.values(), strict=False
        ):
            for x in views:
                self._cover(int(first), int(start), int(unit), x)
        self.stored, self.added, self.read = (np.zeros(total, np.int32) for _ in range(3))
        self.stored_at = np.zeros(total, np.int32)  # how many barriers its program had met

    def _cover(self, first: int, start: int, unit: int, x: torch.Tensor) -> None:
        if not x.numel():
            return
        at = np.full((1,) * x.ndim, x.data_ptr() - start, np.int64)
        for dim, (size, stride) in enumerate(zip(x.shape, x.stride(), strict=True)):
            steps = np.arange(size, dtype=np.int64) * stride * x.element_size()
            at = at + steps.reshape(-1, *(1,) * (x.ndim - dim - 1))
        for part in range(0, x.element_size(), unit):
            self.covered[first + (at + part) // unit] = True

    def begin_program(self, x: int, y: int, z: int) -> None:
        self.program, self.grid_index = self.program + 1, (x, y, z)

    def places(self, what: str, pointers, mask) -> tuple[np.ndarray, np.ndarray]:
        """The places of the lanes that are not masked, and the mask without those that lie outside."""
        size = interpreter._get_np_dtype(pointers.get_element_ty()).itemsize
        addresses, wanted = np.broadcast_arrays(pointers.data.astype(np.int64), mask.data.astype(bool))
        within = np.searchsorted(self.starts, addresses, side="right") - 1
        inside = (within >= 0) & (addresses % size == 0)
        within = within.clip(0)
        if not len(self.starts):
            self._fault(what, "reads or writes, and was given no tensor", 0)
            return np.zeros(0, np.int64), np.zeros_like(wanted)
        inside &= addresses + size <= self.ends[within]
        places = self.firsts[within] + (addresses - self.starts[within]) // self.units[within]
        inside &= self.covered[np.where(inside, places, 0)]
        for address in addresses[wanted & ~inside][:1]:
            self._fault(what, f"{self._where(int(address), size)}", int((wanted & ~inside).sum()))
        return places[wanted & inside], wanted & inside

    def load(self, places: np.ndarray) -> None:
        self._meets("reads what another program stores", self.stored[places], places)
        self._meets("reads what another program adds to", self.added[places], places)
        own = (self.stored[places] == self.program) & (self.stored_at[places] == self.barriers)
        if own.any():
            self._fault("load", "reads what it has stored itself, with no barrier between", int(own.sum()))
        before = self.read[places]
        self.read[places] = np.where((before == _NOBODY) | (before == self.program), self.program, _SEVERAL)

    def store(self, places: np.ndarray) -> None:
        self._meets("stores where another program stores", self.stored[places], places)
        self._meets("stores where another program adds", self.added[places], places)
        self._meets("stores what another program reads", self.read[places], places)
        if len(np.unique(places)) < len(places):
            self._fault("store", "stores twice to one place", len(places) - len(np.unique(places)))
        self.stored[places], self.stored_at[places] = self.program, self.barriers

    def add(self, places: np.ndarray) -> None:
        self._meets("adds where another program stores", self.stored[places], places)
        self._meets("adds to what another program reads", self.read[places], places)
        before = self.added[places]
        self.added[places] = np.where((before == _NOBODY) | (before == self.program), self.program, _SEVERAL)

    def _meets(self, what: str, others: np.ndarray, places: np.ndarray) -> None:
        meets = (others != _NOBODY) & (others != self.program)
        if meets.any():
            at = int(places[meets][0])
            within = int(np.searchsorted(self.firsts, at, side="right")) - 1
            unit = int(self.units[within])
            address = int(self.starts[within]) + (at - int(self.firsts[within])) * unit
            other = int(others[meets][0])
            who = f"program {other - 1}" if other != _SEVERAL else "several programs"
            self._fault(what, f"{who}: {self._where(address, unit)}", int(meets.sum()))

    def _where(self, address: int, size: int) -> str:
        """The address as seen from the tensor that is nearest before it."""
        before = [
            (address - x.data_ptr(), name) for name, x in self.tensors.items() if x.data_ptr() <= address
        ]
        if not before:
            return f"address {address:#x} ({size} bytes), before every tensor"
        offset, name = min(before)
        x = self.tensors[name]
        return f"{size} bytes at byte {offset} of {name} {tuple(x.shape)} {x.stride()} {x.dtype}"

    def _fault(self, what: str, detail: str, lanes: int) -> None:
        frame, line = sys._getframe(1), "?"
        while frame is not None:
            file = frame.f_code.co_filename
            if not file.startswith((_PACKAGE, __file__)):
                line = f"{Path(file).parent.name}/{Path(file).name}:{frame.f_lineno}"
                break
            frame = frame.f_back
        text = f"{self.name} ({line}), program {self.grid_index}: {what}: {detail} ({lanes} lanes)"
        self.faults.setdefault((what, line), text)

    def end(self) -> None:
        if self.faults:
            raise KernelMemoryError("\n".join(list(self.faults.values())[:_SHOWN]))


def _tensors(arguments: dict[str, object]) -> Iterator[tuple[str, torch.Tensor]]:
    for name, value in arguments.items():
        if isinstance(value, tuple):
            yield from _tensors({f"{name}[{i}]": x for i, x in enumerate(value)})
        elif isinstance(value, TensorDescriptor):
            yield name, value.base
        elif hasattr(value, "data_ptr"):
            yield name, interpreter._unwrap_tensor(value)


@contextlib.contextmanager
def checked() -> Iterator[list[str]]:
    """Within it each launch that strays, or whose programs meet, raises KernelMemoryError at its end.

    Yields:
        the names of the kernels that were launched.
    """
    executor, builder = interpreter.GridExecutor, interpreter.InterpreterBuilder
    launches: list[_Launch] = []
    launched: list[str] = []

    def call(self, *arguments, **keywords):
        launched.append(self.fn.__name__)
        launches.append(_Launch(self.fn.__name__, {}))
        try:
            result = before["__call__"](self, *arguments, **keywords)
        finally:
            launch = launches.pop()
        launch.end()
        return result

    def to_host(self, arguments, keywords):
        on_host = before["_init_args_hst"](self, arguments, keywords)
        named = dict(zip(self.arg_names, on_host[0], strict=False)) | on_host[1]
        launches[-1] = _Launch(self.fn.__name__, named)
        return on_host

    def set_grid_idx(self, x, y, z):
        launches[-1].begin_program(x, y, z)
        return before["set_grid_idx"](self, x, y, z)

    def load(self, pointers, mask, *rest, **more):
        places, inside = launches[-1].places("load", pointers, mask)
        launches[-1].load(places)
        return before["create_masked_load"](self, pointers, _masked(inside), *rest, **more)

    def store(self, pointers, value, mask, *rest):
        places, inside = launches[-1].places("store", pointers, mask)
        launches[-1].store(places)
        return before["create_masked_store"](self, pointers, value, _masked(inside), *rest)

    def atomic(self, operation, pointers, value, mask, *rest):
        places, inside = launches[-1].places("atomic", pointers, mask)
        launches[-1].add(places)
        return before["create_atomic_rmw"](self, operation, pointers, value, _masked(inside), *rest)

    def compare_and_swap(self, pointers, *rest):
        whole = _masked(np.ones_like(pointers.data, bool))
        launches[-1].add(launches[-1].places("atomic", pointers, whole)[0])
        return before["create_atomic_cas"](self, pointers, *rest)

    def barrier(self):
        launches[-1].barriers += 1

    made = {
        executor: {"__call__": call, "_init_args_hst": to_host},
        builder: {
            "set_grid_idx": set_grid_idx,
            "create_masked_load": load,
            "create_masked_store": store,
            "create_atomic_rmw": atomic,
            "create_atomic_cas": compare_and_swap,
            "create_barrier": barrier,
        },
    }
    before = {name: getattr(owner, name) for owner, names in made.items() for name in names}
    for owner, names in made.items():
        for name, function in names.items():
            setattr(owner, name, function)
    try:
        yield launched
    finally:
        for owner, names in made.items():
            for name in names:
                setattr(owner, name, before[name])


def _masked(inside: np.ndarray):
    return interpreter.TensorHandle(inside, interpreter.tl.int1)
